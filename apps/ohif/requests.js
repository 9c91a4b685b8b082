// The requests of MONAI Label's panel, which says that one failed but never why and does not mind what happened
// meanwhile.
import { wordsOf } from './server.js';

const INFERENCE = /^\/infer\//;
let running = null;

/** Watch inferences: `refused(words)` when one fails, `answered()` when its mask is painted. */
export function watchInferences({ refused, answered }) {
  const { open } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, address, ...rest) {
    if (INFERENCE.test(new URL(address, window.location.href).pathname)) {
      running = this;
      this.addEventListener('load', () => this.status >= 400 && refused(wordsOf(textOf(this), this.status)));
      this.addEventListener('error', () => refused('The server does not answer.'));
      this.addEventListener('loadend', () => {
        running = null;
        if (this.status === 200) {
          // The panel paints in what follows directly on this event.
          window.setTimeout(answered, 0);
        }
      });
    }
    return open.call(this, method, address, ...rest);
  };
}

/** Give up the inference that is running; returns whether there was one. */
export function abandonInference() {
  const abandoned = running;
  abandoned?.abort();
  return Boolean(abandoned);
}

const textOf = ({ response }) => new TextDecoder().decode(response); // the panel asks for an array buffer
