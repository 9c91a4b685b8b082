// The training that runs, and the curves of those before it.
import { call } from '/ohif/vqseg/server.js';
import { trainingOf } from '/ohif/vqseg/training.js';
import { draw } from './charts.js';
import { attempt, dateOf, decimals, element, make, showFigures, showOptions } from './page.js';

let trainings = [];

/** Show `{status, memory_bytes}` as the server tells it. */
export function showTraining({ status, memory_bytes: memory }) {
  const { running, share, words } = trainingOf({ train_stats: { vqseg: status } });
  element('training-words').textContent = running && status.message !== 'training' ? `${words}; ${status.message}` : words;
  element('training-share').value = share;
  showFigures(element('training-figures'), [
    ['Step', status.total_steps ? `${status.step} of ${status.total_steps}` : ''],
    ['Epoch', status.total_epochs ? `${status.epoch} of ${status.total_epochs}` : ''],
    ['Validation Dice', decimals(status.validation?.dice)],
    ['Best Dice', decimals(status.best_metric || undefined)],
    ['Time left', running ? clock(status.remaining_seconds) : ''],
    ['Memory', memory ? `${(memory / 2 ** 30).toFixed(2)} GiB` : ''],
    ['Method', status.method],
    ['Labelled', status.labelled],
    ['Unlabelled', status.unlabelled],
    ...Object.entries(status.losses ?? {}).map(([name, value]) => [`Loss: ${name.replaceAll('_', ' ')}`, decimals(value, 4)]),
  ]);
  element('start').disabled = running;
  element('start').textContent = ['stopped', 'interrupted'].includes(status.state) ? 'Continue training' : 'Start training';
  element('stop').disabled = !running;
  const leftOut = status.left_out ?? [];
  const details = element('left-out');
  details.hidden = !leftOut.length;
  details.firstElementChild.textContent = `${leftOut.length} studies were left out`;
  details.lastElementChild.replaceChildren(...leftOut.map(({ id, reason }) => make('li', {}, `${id}: ${reason}`)));
}

/** Ask for the curves again. */
export async function readTrainings() {
  const all = await call('GET', '/vqseg/training');
  const newest = trainings.at(-1)?.started;
  trainings = all.trainings;
  const choice = element('training-choice');
  const followed = choice.value === '' || choice.value === String(newest);
  const named = trainings.map(({ started, method }) => [String(started), `${dateOf(started)} UTC${method ? `, ${method}` : ''}`]);
  showOptions(choice, named.reverse());
  if (followed && trainings.length) {
    choice.value = String(trainings.at(-1).started);
  }
  showLink(element('last-report'), all.reports[0]);
  showCurves();
}

/** A link to a report, hidden where there is none. */
function showLink(link, report) {
  link.hidden = !report;
  if (report) {
    link.href = `/vqseg/reports/${encodeURIComponent(report)}`;
  }
}

function showCurves() {
  const chosen = trainings.find(({ started }) => String(started) === element('training-choice').value);
  showLink(element('report'), chosen?.report);
  const validations = chosen?.validations ?? [];
  const steps = validations.map(({ step }) => step);
  const structures = Object.keys(validations.at(-1)?.per_class ?? {});
  const curve = (name, values, extra = {}) => ({ x: steps, y: values, name, mode: 'lines+markers', ...extra });
  const ofStructure = name => validations.map(({ per_class: found }) => found?.[name] ?? null);
  draw(element('dice-chart'), {
    traces: steps.length
      ? [
          curve('mean', validations.map(({ dice }) => dice), { line: { width: 3 } }),
          ...structures.map(name => curve(name, ofStructure(name), { line: { dash: 'dot' } })),
        ]
      : [],
    says: steps.length ? `Validation Dice, at the last of ${steps.length} validations ${decimals(validations.at(-1).dice)}` : 'No validation yet.',
    x: 'step',
    y: 'Dice',
    table: {
      head: ['Step', 'Mean', ...structures],
      rows: validations.map(({ step, dice, per_class: found }) => [step, decimals(dice), ...structures.map(name => decimals(found?.[name]))]),
    },
  });
  const losses = [...new Set(validations.flatMap(({ losses: found }) => Object.keys(found ?? {})))];
  const ofLoss = name => validations.map(({ losses: found }) => found?.[name] ?? null);
  draw(element('loss-chart'), {
    traces: losses.map(name => curve(name.replaceAll('_', ' '), ofLoss(name))),
    says: losses.length ? `Losses: ${losses.join(', ').replaceAll('_', ' ')}` : '',
    x: 'step',
    y: 'loss',
    table: {
      head: ['Step', ...losses],
      rows: validations.map(({ step, losses: found }) => [step, ...losses.map(name => decimals(found?.[name], 4))]),
    },
  });
}

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
  element('start').addEventListener('click', () => attempt(refusal, () => call('POST', '/train/vqseg', { body: {} })));
  element('stop').addEventListener('click', () => attempt(refusal, () => call('DELETE', '/train/')));
  element('training-choice').addEventListener('change', showCurves);
}
