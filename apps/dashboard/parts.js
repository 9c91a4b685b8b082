// Lists whose parts come, go and change places while somebody is in them.
const states = new WeakMap();

/**
 * Show the parts `[[key, content]]` of a list or table, each as `build(content, former)` makes it; `former` is what was
 * there under the same key, if anything was. What is as it was stays, and the keyboard stays in the part where it is.
 */
export function showParts(place, name, parts, build) {
  const former = new Map([...place.children].map(part => [part.dataset[name], part]));
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.closest(`[data-${name}]`)?.dataset[name];
  const now = parts.map(([own, content]) => {
    const [was, state] = [former.get(own), JSON.stringify(content)];
    if (was && states.get(was) === state) {
      return was;
    }
    const part = build(content, was);
    part.dataset[name] = own;
    states.set(part, state);
    return part;
  });
  if (now.length === place.children.length && now.every((part, at) => part === place.children[at])) {
    return;
  }
  place.replaceChildren(...now);
  if (focused) {
    const part = now.find(one => one.dataset[name] === key);
    focus(part?.contains(focused) ? focused : (part?.querySelector('a, button') ?? part ?? place));
  }
}

/** Not only what the keyboard reaches by itself can be where it is. */
function focus(place) {
  if (place.tabIndex < 0) {
    place.tabIndex = -1;
  }
  place.focus({ preventScroll: true });
}
