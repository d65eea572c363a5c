/** Pictures by address: loaded once, the oldest forgotten first, the next ones fetched ahead. */

const KEPT = 160;

/** A failed answer of the server, in words for the person at the screen. */
export class PictureError extends Error {}

const WORDS = {
  401: 'Your session has ended. Reload the page to sign in again.',
  403: 'Your session has ended. Reload the page to sign in again.',
  404: 'This picture is not there any more.',
  410: 'The file of this picture was deleted or changed since the run.',
  429: 'Too many requests. Wait a moment.',
};

/** The answer to a request, or a `PictureError` that says what is wrong. */
export async function ask(url, signal) {
  let answer;
  try {
    answer = await fetch(url, { signal });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new PictureError('The server does not answer. Your decisions are kept; try again in a moment.');
  }
  if (!answer.ok) throw new PictureError(await reason(answer));
  return answer;
}

async function reason(answer) {
  if ((answer.headers.get('content-type') ?? '').includes('json')) {
    const said = await answer.json().catch(() => ({}));
    if (typeof said.error === 'string') return said.error;
  }
  return WORDS[answer.status] ?? `The server could not make this picture (${answer.status}).`;
}

export class Pictures {
  constructor() {
    this.loaded = new Map();
    this.coming = new Map();
  }

  /** The picture if it is there already. */
  peek(url) {
    const bitmap = this.loaded.get(url);
    if (bitmap) {
      // The last one used is the last one in the map.
      this.loaded.delete(url);
      this.loaded.set(url, bitmap);
    }
    return bitmap;
  }

  /** A promise of the picture. */
  async load(url) {
    const known = this.peek(url);
    if (known) return known;
    if (!this.coming.has(url)) this.coming.set(url, this.#fetch(url));
    return this.coming.get(url);
  }

  async #fetch(url) {
    try {
      const answer = await ask(url);
      const bitmap = await createImageBitmap(await answer.blob());
      this.loaded.set(url, bitmap);
      for (const [old, picture] of this.loaded) {
        if (this.loaded.size <= KEPT) break;
        this.loaded.delete(old);
        picture.close();
      }
      return bitmap;
    } finally {
      this.coming.delete(url);
    }
  }

  /** Load for later; what fails is asked for again when it is needed. */
  prefetch(urls) {
    for (const url of urls) {
      if (!this.loaded.has(url) && this.coming.size < 4) this.load(url).catch(() => {});
    }
  }

  /** Forget everything. */
  close() {
    for (const bitmap of this.loaded.values()) bitmap.close();
    this.loaded.clear();
  }
}
