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

/** Fill a list of figures with `[[name, text]]`; what has no text is left out. Numbers change in their place. */
export function showFigures(list, figures) {
  const known = figures.filter(([, text]) => text !== '' && text !== null && text !== undefined);
  const same = known.length === list.children.length && known.every(([name], at) => list.children[at].dataset.name === name);
  if (!same) {
    list.replaceChildren(...known.map(([name]) => make('div', { 'data-name': name }, make('dt', {}, name), make('dd'))));
  }
  known.forEach(([, text], at) => {
    const place = list.children[at].lastElementChild;
    if (place.textContent !== String(text)) {
      place.textContent = text;
    }
  });
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

/** Do what may be refused; a refusal is shown at `place`. */
export async function attempt(place, work) {
  try {
    await work();
    place.textContent = '';
  } catch (error) {
    place.textContent = error.message;
  }
}

export const decimals = (value, digits = 3) => (typeof value === 'number' ? value.toFixed(digits) : '');

export const dateOf = seconds => new Date(1000 * seconds).toISOString().slice(0, 16).replace('T', ' ');
