// The page: what the server tells by itself is shown at once, and what it says has changed is asked for again.
import { call, information } from '/ohif/vqseg/server.js';
import * as codebook from './codebook.js';
import * as curves from './curves.js';
import * as labels from './labels.js';
import * as models from './models.js';
import { element, showText } from './page.js';
import * as ranking from './ranking.js';
import * as training from './training.js';

const OF = {
  // The codebook shows what the validation of the live model said, which is told after that has gone live.
  trainings: [curves.readTrainings, codebook.readCodebook],
  points: [curves.readTrainings],
  models: [models.readModels, ranking.readRanking, codebook.readCodebook, readStudies],
  images: [ranking.readRanking, readStudies],
  labels: [labels.readLabels, ranking.readRanking, readStudies],
  scores: [ranking.readRanking, codebook.readCodebook],
};
// A server that scores changes every second. What takes it long to answer is asked for the less often.
const PAUSES = 4;
const [underWay, wanted] = [new Set(), new Set()];
let known = {};

async function readStudies() {
  const found = await information();
  const { total = 0, completed = 0 } = found.datastore ?? {};
  showText(element('studies'), `${total} studies, ${completed} labelled`);
  ranking.showStrategies(found);
  const { objects = {} } = await call('GET', '/datastore/', { query: { output: 'all' } });
  codebook.showStudies(Object.keys(objects).sort());
}

function refresh(changed) {
  const names = Object.keys(changed).filter(name => changed[name] !== known[name]);
  known = changed;
  new Set(names.flatMap(name => OF[name] ?? [])).forEach(askAgain);
}

/** Ask now, or, where the same is under way or was just answered, once more afterwards. */
async function askAgain(ask) {
  if (underWay.has(ask)) {
    wanted.add(ask);
    return;
  }
  underWay.add(ask);
  const begin = performance.now();
  await ask().catch(tell);
  const pause = PAUSES * (performance.now() - begin);
  await new Promise(resolve => setTimeout(resolve, pause));
  underWay.delete(ask);
  if (wanted.delete(ask)) {
    askAgain(ask);
  }
}

const tell = error => showText(element('connection'), error.message);

function follow() {
  const events = new EventSource('/vqseg/events');
  events.addEventListener('open', () => tell({ message: 'live' }));
  events.addEventListener('error', () => tell({ message: 'The server does not answer; trying again.' }));
  events.addEventListener('training', ({ data }) => training.showTraining(JSON.parse(data)));
  events.addEventListener('changed', ({ data }) => refresh(JSON.parse(data)));
}

[training, curves, models, ranking, codebook].forEach(part => part.listen());
follow();
