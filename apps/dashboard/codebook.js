// How the studies use the codebook of the live model, and the codes of one of them.
import { call } from '/ohif/vqseg/server.js';
import { draw } from './charts.js';
import { decimals, element, make, shortened, showFigures, showOptions, showText } from './page.js';

let model = null;
// The study and model whose codes are shown, or under way.
let asked = '';

/** Ask for the use of the codes again. */
export async function readCodebook() {
  const found = await call('GET', '/vqseg/codebook');
  showFigures(element('codebook-figures'), [
    ['Codes', found.codes || ''],
    ['In use', found.studies ? found.used : ''],
    ['As if equally used', decimals(found.perplexity, 1)],
    ['Effective replacements', decimals(found.replacement_codes, 1)],
    ['Studies looked at', found.codes ? found.studies : ''],
  ]);
  const ranks = found.usage.map((_, at) => at + 1);
  draw(element('usage-chart'), {
    traces: found.studies ? [{ x: ranks, y: found.usage, type: 'bar', name: 'share of tokens' }] : [],
    says: found.studies ? `Share of the tokens of each of the ${found.used} codes in use, the most used first` : 'No study was looked at yet.',
    x: 'code, by use',
    y: 'share of tokens',
    log: true,
    table: { head: ['Place', 'Share'], rows: found.usage.map((share, at) => [at + 1, share]) },
  });
  model = found.codes ? found.model_version : null;
  await showCodes();
}

/** Take the studies among which one can be chosen. */
export const showStudies = ids => showOptions(element('code-study'), [['', 'choose'], ...ids.map(id => [id, id])]);

async function showCodes() {
  const [study, figure, refusal] = [element('code-study').value, element('code-map'), element('codebook-refusal')];
  const wanted = keyOf(study, model);
  if (wanted === asked) {
    return;
  }
  asked = wanted;
  figure.hidden = true;
  showText(refusal, '');
  if (!study || !model) {
    return;
  }
  // Whatever comes of what nobody waits for any more, it must not take the place of what came later.
  try {
    const found = await call('GET', `/vqseg/studies/${encodeURIComponent(study)}/codes`);
    if (wanted === asked) {
      // Another version may have gone live while the server worked.
      asked = keyOf(study, found.model_version);
      fill(figure, study, found);
    }
  } catch (error) {
    if (wanted === asked) {
      asked = '';
      showText(refusal, error.message);
    }
  }
}

const keyOf = (study, version) => JSON.stringify([study, version]);

function fill(figure, study, { picture, codes }) {
  const image = figure.querySelector('img');
  image.src = picture;
  image.alt = `Codes of the middle slice of ${shortened(study)}`;
  figure.querySelector('tbody').replaceChildren(
    ...codes.map(({ code, share, colour }) =>
      make(
        'tr',
        { 'data-code': code },
        make('td', {}, make('span', { class: 'swatch', style: `background: ${colour}` })),
        make('th', { scope: 'row' }, String(code)),
        make('td', {}, `${(100 * share).toFixed(1)} %`),
      ),
    ),
  );
  figure.hidden = false;
}

/** Let the list work. */
export function listen() {
  element('code-study').addEventListener('change', showCodes);
}
