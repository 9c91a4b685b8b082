// What all parts of the page need: its elements, small pieces of it, and refusals in the server's words.
export const element = id => document.getElementById(id);

/** A new element; `children` are elements or text, never markup. */
export function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) {
      made.addEventListener(key.slice(2), value);
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(key, value === true ? '' : value);
    }
  }
  made.append(...children);
  return made;
}

/** Put text in its place, unless it stands there: a screen reader may read out what is put anew. */
export function showText(place, text) {
  if (place.textContent !== String(text)) {
    place.textContent = text;
  }
}

/** Fill a list of figures with `[[name, text]]`; what has no text is left out. Numbers change in their place. */
export function showFigures(list, figures) {
  const known = figures.filter(([, text]) => text !== '' && text !== null && text !== undefined);
  const same = known.length === list.children.length && known.every(([name], at) => list.children[at].dataset.name === name);
  if (!same) {
    list.replaceChildren(...known.map(([name]) => make('div', { 'data-name': name }, make('dt', {}, name), make('dd'))));
  }
  known.forEach(([, text], at) => showText(list.children[at].lastElementChild, text));
}

/** Keep the options of a list `[[value, text]]`, and what is chosen if it is still there. */
export function showOptions(select, options) {
  const chosen = select.value;
  const same = options.length === select.options.length && options.every(([value, text], at) => select.options[at].value === value && select.options[at].text === text);
  if (!same) {
    select.replaceChildren(...options.map(([value, text]) => make('option', { value }, text)));
    select.value = options.some(([value]) => value === chosen) ? chosen : (options[0]?.[0] ?? '');
  }
}

/** Whether a button may be pressed. A disabled one would lose the keyboard's place on the page, so it only says so. */
export const allow = (button, allowed) => button.setAttribute('aria-disabled', String(!allowed));

/** Do `work` when a button is pressed that may be pressed. */
export function onPress(button, work) {
  button.addEventListener('click', () => {
    if (button.getAttribute('aria-disabled') !== 'true') {
      work();
    }
  });
}

/** Do what may be refused; a refusal is shown at `place`. */
export async function attempt(place, work) {
  try {
    await work();
    showText(place, '');
  } catch (error) {
    showText(place, error.message);
  }
}

export const decimals = (value, digits = 3) => (typeof value === 'number' ? value.toFixed(digits) : '');

export const dateOf = seconds => new Date(1000 * seconds).toISOString().slice(0, 16).replace('T', ' ');

const LONGEST = 24;

/** The id of a study; a long one, such as the UID of a series, without its middle. UIDs of one PACS begin alike. */
export const shortened = id => (id.length > LONGEST ? `${id.slice(0, 7)}…${id.slice(-12)}` : id);

/** An element with the id of a study, shortened, and then whole as title. */
export function nameOf(id, name = 'span', attributes = {}) {
  const [start, end] = shortened(id).split('…');
  return make(name, { ...attributes, title: end && id }, ...(end ? [`${start}…`, make('wbr'), end] : [id]));
}
