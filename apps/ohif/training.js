// The state of the training in the words of the panel.

/** `{running, share, dice, words, continueWith}` out of the answer to /info/; the last are the options with which a
 * stopped training goes on, or null. */
export function trainingOf({ train_stats: stats }) {
  const [status = {}] = Object.values(stats ?? {});
  const { state, step = 0, total_steps: total = 0, best_metric: dice = 0, message = '', continue_with: continueWith = null } = status;
  const found = dice ? `Dice ${dice.toFixed(3)}` : '';
  const at = `step ${step} of ${total}`;
  const train = continueWith ? 'Train goes on from there' : 'Train begins anew';
  const words = {
    running: join([total ? at : 'starts', found, timeLeft(status)]),
    done: join(['trained', found]),
    failed: `failed: ${message}`,
    stopped: `stopped at ${at}; ${train}`,
    interrupted: `interrupted at ${at}; ${train}`,
  };
  return {
    running: state === 'running',
    share: state === 'done' ? 1 : total ? step / total : 0,
    dice,
    words: words[state] ?? message,
    continueWith,
  };
}

const join = parts => parts.filter(Boolean).join(', ');

function timeLeft({ remaining_seconds: seconds }) {
  if (seconds === undefined || seconds === null) {
    return '';
  }
  return seconds < 90 ? `${Math.ceil(seconds)} s left` : `${Math.ceil(seconds / 60)} min left`;
}
