// How the studies use the codebook of the live model, and the codes of one of them.
import { call } from '/ohif/vqseg/server.js';
import { draw } from './charts.js';
import { attempt, decimals, element, showFigures, showOptions } from './page.js';

let model = null;

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
    table: { head: ['Place', 'Share'], rows: found.usage.slice(0, 100).map((share, at) => [at + 1, share]) },
  });
  model = found.codes ? found.model_version : null;
  await showCodes();
}

/** Take the studies among which one can be chosen. */
export const showStudies = ids => showOptions(element('code-study'), [['', 'choose'], ...ids.map(id => [id, id])]);

function showCodes() {
  const [study, figure] = [element('code-study').value, element('code-map')];
  return attempt(element('codebook-refusal'), async () => {
    figure.hidden = true;
    if (study && model) {
      const picture = figure.querySelector('img');
      // The version is in the address so that no browser shows the codes of another model.
      const address = `/vqseg/studies/${encodeURIComponent(study)}/picture?codes=true&of=${model}`;
      const reply = await fetch(address);
      if (!reply.ok) {
        throw new Error((await reply.json()).detail);
      }
      URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(await reply.blob());
      picture.alt = `Codes of the middle slice of ${study}`;
      figure.hidden = false;
    }
  });
}

/** Let the list work. */
export function listen() {
  element('code-study').addEventListener('change', showCodes);
}
