// Dice and losses of the training now and of those before it.
import { call } from '/ohif/vqseg/server.js';
import { draw } from './charts.js';
import { dateOf, decimals, element, showOptions } from './page.js';

let trainings = [];

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
  const { validations = [], points = [], started } = chosen ?? {};
  showDice(validations, started);
  // Of the newest training there are losses between the validations too.
  showLosses(points.length ? points : validations, started);
}

function showDice(validations, training) {
  const structures = Object.keys(validations.at(-1)?.per_class ?? {});
  const curve = curveOver(validations);
  draw(element('dice-chart'), {
    traces: validations.length
      ? [
          curve('mean', ({ dice }) => dice, { line: { width: 3 } }),
          ...structures.map(name => curve(name, ({ per_class: found }) => found?.[name], { line: { dash: 'dot' } })),
        ]
      : [],
    says: validations.length ? `Validation Dice, at the last of ${validations.length} validations ${decimals(validations.at(-1).dice)}` : 'No validation yet.',
    x: 'step',
    y: 'Dice',
    table: {
      head: ['Step', 'Mean', ...structures],
      rows: validations.map(({ step, dice, per_class: found }) => [step, decimals(dice), ...structures.map(name => decimals(found?.[name]))]),
    },
    about: training,
  });
}

function showLosses(points, training) {
  const losses = [...new Set(points.flatMap(({ losses: found }) => Object.keys(found ?? {})))];
  const curve = curveOver(points);
  draw(element('loss-chart'), {
    traces: losses.map(name => curve(wordsOf(name), ({ losses: found }) => found?.[name])),
    says: losses.length ? `Losses: ${losses.map(wordsOf).join(', ')}` : '',
    x: 'step',
    y: 'loss',
    table: {
      head: ['Step', ...losses.map(wordsOf)],
      rows: points.map(({ step, losses: found }) => [step, ...losses.map(name => decimals(found?.[name], 4))]),
    },
    about: training,
  });
}

const MOST_MARKERS = 40;

const curveOver = points => (name, valueOf, extra = {}) => ({
  x: points.map(({ step }) => step),
  y: points.map(point => valueOf(point) ?? null),
  name,
  mode: points.length > MOST_MARKERS ? 'lines' : 'lines+markers',
  ...extra,
});

const wordsOf = loss => loss.replaceAll('_', ' ');

/** Let the list work. */
export function listen() {
  element('training-choice').addEventListener('change', showCurves);
}
