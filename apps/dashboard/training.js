// The training that runs.
import { call } from '/ohif/vqseg/server.js';
import { trainingOf } from '/ohif/vqseg/training.js';
import { allow, attempt, decimals, element, make, onPress, showFigures, showText } from './page.js';

// The options of a training that was stopped; with others it would begin anew.
let continueWith = null;

/** Show `{status, memory_bytes}` as the server tells it. */
export function showTraining({ status, memory_bytes: memory }) {
  const { running, share, words, ...training } = trainingOf({ train_stats: { vqseg: status } });
  continueWith = training.continueWith;
  showText(element('training-words'), running && status.message !== 'training' ? `${words}; ${status.message}` : words);
  showText(element('training-news'), running ? newsOf(status) : words);
  element('training-share').value = share;
  showFigures(element('training-figures'), [
    ['Step', status.total_steps ? `${status.step} of ${status.total_steps}` : ''],
    ['Epoch', status.total_steps ? `${status.epoch} of ${status.total_epochs}` : ''],
    ['Validation Dice', decimals(status.validation?.dice)],
    ['Best Dice', decimals(status.best_metric || undefined)],
    ['Time left', running ? clock(status.remaining_seconds) : ''],
    ['Memory', memory ? `${(memory / 2 ** 30).toFixed(2)} GiB` : ''],
    ['Method', status.method],
    ['Labelled', status.labelled],
    ['Unlabelled', status.unlabelled],
    ...Object.entries(status.losses ?? {}).map(([name, value]) => [`Loss: ${name.replaceAll('_', ' ')}`, decimals(value, 4)]),
  ]);
  allow(element('start'), !running);
  showText(element('start'), continueWith ? 'Continue training' : 'Start training');
  allow(element('stop'), running);
  const leftOut = status.left_out ?? [];
  const details = element('left-out');
  details.hidden = !leftOut.length;
  showText(details.firstElementChild, `${leftOut.length} studies were left out`);
  details.lastElementChild.replaceChildren(...leftOut.map(({ id, reason }) => make('li', {}, `${id}: ${reason}`)));
}

/** What a screen reader reads out of a training that runs: that it does, and each validation, but not each second. */
const newsOf = ({ validation }) => (validation ? `The training runs; validation Dice ${decimals(validation.dice)}` : 'The training runs');

function clock(seconds) {
  if (typeof seconds !== 'number') {
    return '';
  }
  const minutes = Math.floor(seconds / 60);
  return minutes >= 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
}

/** Let the buttons work. */
export function listen() {
  const refusal = element('training-refusal');
  onPress(element('start'), () => attempt(refusal, () => call('POST', '/train/vqseg', { body: continueWith ?? {} })));
  onPress(element('stop'), () => attempt(refusal, () => call('DELETE', '/train/')));
}
