// Small pictures of studies. The server draws one after the other, and refuses what its line is too long for.
import { make, shortened } from './page.js';

const TRIES = 3;
const SECONDS = 10;

/** The middle slice of a study. Until it is there its alternative text stands in its place. */
export function pictureOf(study) {
  const address = `/vqseg/studies/${encodeURIComponent(study)}/picture`;
  const picture = make('img', { src: address, alt: `Middle slice of ${shortened(study)}`, loading: 'lazy' });
  picture.addEventListener('error', () => askAgain(picture, address).catch(() => {}), { once: true });
  return picture;
}

/** Ask as often and as late as the server wants it, while the picture is on the page. */
async function askAgain(picture, address) {
  for (let tries = 0; tries < TRIES && picture.isConnected; tries += 1) {
    const reply = await fetch(address);
    if (reply.ok) {
      picture.addEventListener('load', () => URL.revokeObjectURL(picture.src), { once: true });
      picture.src = URL.createObjectURL(await reply.blob());
      return;
    }
    if (reply.status !== 503) {
      return;
    }
    const seconds = Number(reply.headers.get('Retry-After')) || SECONDS;
    await new Promise(resolve => setTimeout(resolve, 1000 * seconds));
  }
}
