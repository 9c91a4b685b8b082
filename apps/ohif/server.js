// The calls to the server this page came from. A refusal becomes an Error with the server's own words.

export async function call(method, path, { query = {}, body, form } = {}) {
  const address = new URL(path, window.location.origin);
  address.search = new URLSearchParams(query);
  const headers = body ? { 'Content-Type': 'application/json' } : {};
  let reply;
  try {
    reply = await fetch(address, { method, headers, body: form ?? (body && JSON.stringify(body)) });
  } catch {
    throw new Error('The server does not answer.');
  }
  if (!reply.ok) {
    throw new Error(wordsOf(await reply.text(), reply.status));
  }
  return reply.json();
}

/** What went wrong, out of the body of a refused request. */
export function wordsOf(text, status) {
  try {
    const { detail } = JSON.parse(text);
    if (detail) {
      return typeof detail === 'string' ? detail : JSON.stringify(detail);
    }
  } catch {
    // not one of the server's own answers
  }
  return `The server answered with status ${status}.`;
}

export const information = () => call('GET', '/info/');

/** The study to label next, `{}` when none is left. */
export const nextStudy = (strategy, annotator) =>
  call('POST', `/activelearning/${encodeURIComponent(strategy)}`, { body: annotator ? { client_id: annotator } : {} });

export const train = options => call('POST', '/train/', { body: options });

export const stopTraining = () => call('DELETE', '/train/');

/** Keep a mask (one byte a voxel, x fastest) as the final label of a series; `names` as `[{name, idx}]`. */
export function submitLabel(series, voxels, names, annotator) {
  const form = new FormData();
  form.append('params', JSON.stringify({ label_info: names, ...(annotator ? { client_id: annotator } : {}) }));
  form.append('label', new Blob([voxels]), 'label.bin');
  return call('PUT', '/datastore/label', { query: { image: series }, form });
}
