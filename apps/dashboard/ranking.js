// The unlabelled studies in the order in which they are worth labelling, with the reason.
import { call } from '/ohif/vqseg/server.js';
import { attempt, decimals, element, make, showOptions } from './page.js';

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
    const query = { strategy: element('strategy').value || 'random', page, per_page: PER_PAGE };
    const found = await call('GET', '/vqseg/ranking', { query });
    if (page > 1 && page > found.pages) {
      page = Math.max(1, found.pages);
      return readRanking();
    }
    element('page').textContent = found.total ? `${page} of ${found.pages}` : '';
    element('former-page').disabled = page <= 1;
    element('next-page').disabled = page >= found.pages;
    element('ranking-note').textContent = noteOf(found);
    element('ranking').replaceChildren(...found.studies.map(item));
    return undefined;
  });
}

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

function item({ rank, id, score, reason, viewer }) {
  const name = viewer ? make('a', { href: viewer }, id) : id;
  return make(
    'li',
    { 'data-study': id },
    make('img', { src: `/vqseg/studies/${encodeURIComponent(id)}/picture`, alt: `Middle slice of ${id}`, loading: 'lazy' }),
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
  element('former-page').addEventListener('click', () => turnTo(page - 1));
  element('next-page').addEventListener('click', () => turnTo(page + 1));
}
