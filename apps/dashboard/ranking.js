// The unlabelled studies in the order in which they are worth labelling, with the reason.
import { call } from '/ohif/vqseg/server.js';
import { allow, attempt, decimals, element, make, nameOf, onPress, showOptions, showText } from './page.js';
import { showParts } from './parts.js';
import { pictureOf } from './pictures.js';

const PER_PAGE = 12;
let page = 1;

/** Take the strategies, as `/info/` tells them. */
export function showStrategies({ strategies = {} }) {
  // `random` is what OHIF asks for: the strategy that the server was started with.
  const names = Object.keys(strategies).filter(name => name !== 'random').sort();
  showOptions(element('strategy'), [['random', 'the default one'], ...names.map(name => [name, name.replaceAll('_', ' ')])]);
}

/** Ask for the ranking again. */
export function readRanking() {
  return attempt(element('ranking-refusal'), async () => {
    const query = { strategy: chosen(), page, per_page: PER_PAGE };
    const found = await call('GET', '/vqseg/ranking', { query });
    if (query.page !== page || query.strategy !== chosen()) {
      return undefined; // slower than what was asked for meanwhile
    }
    if (page > 1 && page > found.pages) {
      page = Math.max(1, found.pages);
      return readRanking();
    }
    showText(element('page'), found.total ? `${page} of ${found.pages}` : '');
    allow(element('former-page'), page > 1);
    allow(element('next-page'), page < found.pages);
    showText(element('ranking-note'), noteOf(found));
    showParts(element('ranking'), 'study', found.studies.map(study => [study.id, study]), item);
    return undefined;
  });
}

const chosen = () => element('strategy').value || 'random';

function noteOf({ strategy_used: used, total, scored, missing, model_version: version, note, scoring, left_out: leftOut }) {
  const words = [`${used.replaceAll('_', ' ')}: ${total} studies`];
  if (version) {
    words.push(`${scored} scored by model ${version}`);
  }
  if (scoring?.state === 'running') {
    words.push(`scoring ${scoring.done ?? 0} of ${scoring.total ?? '?'}`);
  } else if (missing) {
    words.push(`${missing} not scored yet`);
  }
  const unusable = Object.keys(leftOut ?? {}).length;
  if (unusable) {
    words.push(`${unusable} left out`);
  }
  return [words.join(', '), note].filter(Boolean).join('; ');
}

function item({ rank, id, score, reason, viewer }, former) {
  const name = viewer ? nameOf(id, 'a', { href: viewer }) : nameOf(id);
  return make(
    'li',
    {},
    former?.querySelector('img') ?? pictureOf(id),
    make('div', {}, make('p', {}, `${rank}. `, name), make('p', {}, score === null ? '' : `score ${decimals(score, 4)}`), make('p', { class: 'reason' }, reason ?? '')),
  );
}

/** Let the controls work. */
export function listen() {
  const turnTo = to => {
    page = to;
    return readRanking();
  };
  element('strategy').addEventListener('change', () => turnTo(1));
  onPress(element('former-page'), () => turnTo(page - 1));
  onPress(element('next-page'), () => turnTo(page + 1));
}
