// The versions of the model, side by side, and which of them is live.
import { call } from '/ohif/vqseg/server.js';
import { allow, attempt, decimals, element, make, onPress, showText } from './page.js';
import { showParts } from './parts.js';

/** Ask for the versions again. */
export async function readModels() {
  const { versions, rollback_to: former } = await call('GET', '/vqseg/models');
  const rollback = element('rollback');
  allow(rollback, Boolean(former));
  showText(rollback, former ? `Roll back to ${former}` : 'Roll back');
  const structures = [...new Set(versions.flatMap(({ per_class: found }) => Object.keys(found ?? {})))];
  const best = Math.max(...versions.map(({ dice }) => dice ?? 0));
  const head = ['Version', 'Dice', ...structures, 'Labelled', 'Unlabelled', 'Method', 'Steps', 'Made (UTC)', 'Validated on', ''];
  const [thead, tbody] = [element('models').tHead, element('models').tBodies[0]];
  thead.replaceChildren(make('tr', {}, ...head.map(text => (text ? make('th', { scope: 'col' }, text) : make('td')))));
  showParts(tbody, 'version', versions.map(version => [version.version, { version, structures, best: version.dice === best }]), row);
  if (!versions.length) {
    tbody.replaceChildren(make('tr', {}, make('td', { colspan: head.length }, 'Nothing was trained yet.')));
  }
}

function row({ version, structures, best }) {
  const dice = decimals(version.dice);
  const action = version.live
    ? 'live'
    : make('button', { type: 'button', onclick: () => change(`/vqseg/models/${version.version}/live`), 'aria-label': `Make ${version.version} live` }, 'Make live');
  return make(
    'tr',
    { class: version.live && 'live' },
    make('th', { scope: 'row' }, version.version),
    make('td', {}, best && dice ? make('strong', {}, dice) : dice),
    ...structures.map(name => make('td', {}, decimals(version.per_class?.[name]))),
    ...[version.labelled, version.unlabelled, version.method, version.step].map(value => make('td', {}, String(value ?? ''))),
    make('td', {}, (version.created ?? '').slice(0, 16).replace('T', ' ')),
    make('td', {}, version.validated_on ?? ''),
    make('td', {}, version.damaged ? 'damaged' : action),
  );
}

const change = path =>
  attempt(element('models-refusal'), async () => {
    await call('POST', path);
    await readModels();
  });

/** Let the button work. */
export function listen() {
  onPress(element('rollback'), () => change('/vqseg/models/rollback'));
}
