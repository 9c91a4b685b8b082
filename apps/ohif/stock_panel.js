// The panel of MONAI Label 0.8.5 inside the viewer: what it shows and which of its buttons are answered here.

export const element = () => document.querySelector('.monaiLabelPanel');

export const isConnected = () => Boolean(element()?.querySelector('.subtitle'));

/** The panel takes the address of its server from its field, where it puts port 8000 of this host. */
export function enterAddress() {
  const field = element()?.querySelector('#monailabelServerURL');
  if (field) {
    field.value = `${window.location.origin}/`;
  }
}

/** Let the panel read /info/ anew. */
export function connect() {
  enterAddress();
  element()?.querySelector('.settingsTable button.actionButton')?.click();
}

const STRATEGIES = '.monaiLabelPanel .optionsTable select.actionInput';
let strategy = 'random';
document.addEventListener('change', ({ target }) => {
  if (target.matches(STRATEGIES)) {
    strategy = target.value;
  }
});

/** The strategy the user chose, also after the panel was made anew; the panel itself always asks for `random`. */
export const chosenStrategy = () => strategy;

/** Whether the panel offers the models the server has: it looks only when it connects. */
export function offers(models) {
  const options = [...(element()?.querySelectorAll('.modelSelector option') ?? [])].map(({ value }) => value);
  return models.every(model => options.includes(model));
}

/** Bring the figures up to date that the panel reads only when it connects. */
export function show({ strategies: known, datastore }, training) {
  showStrategies(known);
  const { completed, total } = datastore;
  bar('w3-blue', total ? completed / total : 0, `${completed}/${total} studies labelled`);
  bar('w3-orange', training.share, training.words);
  bar('w3-green', training.dice, 'Dice of the best model so far');
}

function showStrategies(known) {
  const list = document.querySelector(STRATEGIES);
  for (const option of list?.options ?? []) {
    option.title = known[option.value]?.description ?? '';
    if (option.value === 'random') {
      option.textContent = 'default'; // `random` answers with the server's strategy, plain random is `uniform`
    }
  }
  if (list) {
    list.value = strategy;
  }
}

function bar(name, share, words) {
  const found = element()?.querySelector(`.optionsTable .${name}`);
  if (found) {
    found.textContent = `${Math.round(100 * share)}%`;
    found.closest('td').title = words;
  }
}

/** Show on the panel's own button what it does next. */
export function showTrainingButton(running) {
  const texts = ['Update Model', 'Stop Training'];
  const button = [...(element()?.querySelectorAll('button') ?? [])].find(it => texts.includes(it.textContent.trim()));
  if (button) {
    button.textContent = texts[Number(running)];
  }
}

/** Answer buttons of the viewer: `actions` by selector and text. The viewer goes on only where an action is true. */
export function answer(actions) {
  const listener = event => {
    for (const { selector, text, action } of actions) {
      const pressed = event.target.closest?.(selector);
      if (pressed && (!text || pressed.textContent.trim() === text) && action() !== true) {
        event.stopImmediatePropagation();
        event.preventDefault();
      }
    }
  };
  // React listens further down, at the root of the viewer.
  document.addEventListener('click', listener, { capture: true });
}
