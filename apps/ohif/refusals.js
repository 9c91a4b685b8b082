// The panel of MONAI Label says that something failed, never why: the server's words are shown beside it.
import { wordsOf } from './server.js';
import { notify } from './viewer.js';

const OF_THE_PANEL = /^\/(infer|train|activelearning|datastore)\//;

/** Look at the answers to the viewer's own requests that change something. */
export function showRefusals() {
  const open = XMLHttpRequest.prototype.open;
  XMLHttpRequest.prototype.open = function (method, address, ...rest) {
    if (method.toUpperCase() !== 'GET' && OF_THE_PANEL.test(new URL(address, window.location.href).pathname)) {
      this.addEventListener('load', () => this.status >= 400 && notify(wordsOf(textOf(this), this.status), 'error'));
      this.addEventListener('error', () => notify('The server does not answer.', 'error'));
    }
    return open.call(this, method, address, ...rest);
  };
}

function textOf({ responseType, response }) {
  if (responseType === 'arraybuffer') {
    return new TextDecoder().decode(response);
  }
  return typeof response === 'string' ? response : JSON.stringify(response);
}
