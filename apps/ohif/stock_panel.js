// The panel of MONAI Label 0.8.5 inside the viewer: what it shows and which of its buttons are answered here.

export const element = () => document.querySelector('.monaiLabelPanel');

export const isConnected = () => Boolean(element()?.querySelector('.subtitle'));

/** Let the panel read /info/ anew; a mask that is drawn stays. */
export const connect = () => element()?.querySelector('.settingsTable button.actionButton')?.click();

const strategies = () => element()?.querySelector('.optionsTable select.actionInput');

/** The strategy the user chose; the panel itself always asks for `random`. */
export const chosenStrategy = () => strategies()?.value ?? 'random';

/** Whether the panel offers the models the server has: it looks only when it connects. */
export function offers(models) {
  const options = [...(element()?.querySelectorAll('.modelSelector option') ?? [])].map(({ value }) => value);
  return models.every(model => options.includes(model));
}

/** Bring the figures up to date that the panel reads only when it connects. */
export function show({ strategies: known, datastore }, training) {
  for (const option of strategies()?.options ?? []) {
    option.title = known[option.value]?.description ?? '';
    if (option.value === 'random') {
      option.textContent = 'default'; // `random` answers with the server's strategy, plain random is `uniform`
    }
  }
  bar('w3-blue', datastore.total ? datastore.completed / datastore.total : 0, `${datastore.completed}/${datastore.total} studies labelled`);
  bar('w3-orange', training.share, training.words);
  bar('w3-green', training.dice, 'Dice of the best model so far');
  const update = button('Update Model', 'Stop Training');
  if (update) {
    update.textContent = training.running ? 'Stop Training' : 'Update Model';
  }
}

function bar(name, share, words) {
  const found = element()?.querySelector(`.optionsTable .${name}`);
  if (found) {
    found.textContent = `${Math.round(100 * share)}%`;
    found.closest('td').title = words;
  }
}

function button(...texts) {
  return [...(element()?.querySelectorAll('button') ?? [])].find(({ textContent }) => texts.includes(textContent.trim()));
}

/** Answer the panel's buttons instead of the panel: `actions` by the button's text. An action that returns true lets the
 * panel go on. */
export function answer(actions) {
  const listener = event => {
    const pressed = event.target.closest?.('.monaiLabelPanel button');
    const action = pressed && actions[pressed.textContent.trim()];
    if (action && !action()) {
      event.stopImmediatePropagation();
      event.preventDefault();
    }
  };
  // React listens further down, at the root of the viewer.
  document.addEventListener('click', listener, { capture: true });
}
