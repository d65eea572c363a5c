/** How a reconstruction came about: what was measured, by which coils, and a swipe between before and after. */

import { focusField, isTyping } from '../viewer/keys.js';
import { ask, PictureError } from '../viewer/pictures.js';

const CAPTIONS = {
  mask: 'Sampling mask (white: measured)',
  kspace: 'k-space, log magnitude (dB)',
  coils: 'Coil images',
  maps: 'Coil maps',
  reference: 'Reference, fully sampled',
  ssim: 'SSIM map of the result (white: 1)',
  error: 'Result − reference, ±10 % of the window',
};

function figure(source, caption) {
  const element = document.createElement('figure');
  const picture = element.appendChild(document.createElement('img'));
  Object.assign(picture, { src: source, alt: caption });
  element.appendChild(document.createElement('figcaption')).textContent = caption;
  element.className = /^Coil/.test(caption) ? 'wide' : '';
  return element;
}

/** The letters at the edges of the acquired plane. */
async function lettersOf(url) {
  const { planes } = await (await ask(url)).json();
  return Object.entries(planes.stack.letters).map(([side, text]) =>
    Object.assign(document.createElement('div'), { className: `letter ${side}`, textContent: text }),
  );
}

class Recon {
  constructor(root, data) {
    Object.assign(this, { root, data, index: 0 });
    this.bar = document.createElement('div');
    this.bar.className = 'bar';
    this.swipe = document.createElement('div');
    this.swipe.className = 'swipe';
    this.sheet = document.createElement('div');
    this.sheet.className = 'sheet';
    const halves = document.createElement('div');
    halves.className = 'halves';
    halves.append(this.swipe, this.sheet);
    root.replaceChildren(this.bar, halves);
    this.keys = (event) => this.#key(event);
    globalThis.addEventListener('keydown', this.keys, true);
  }

  #url(name, more = '') {
    const [path, query] = this.data.urls.recon.split('?');
    return `${path}/${name}?${query}&index=${this.index}${more}`;
  }

  async show() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    let info;
    try {
      info = await (await ask(`${this.data.urls['recon-info']}&index=${this.index}`)).json();
    } catch (error) {
      if (!(error instanceof PictureError)) throw error;
      this.swipe.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return;
    this.info = info;
    this.letters ??= await lettersOf(this.data.urls.info);
    this.#words();
    this.#compare();
    const names = Object.keys(CAPTIONS).filter((name) => info.pictures.includes(name));
    this.sheet.replaceChildren(...names.map((name) => figure(this.#url(name), this.#caption(name))));
  }

  #caption(name) {
    if (name === 'maps') return `Coil maps, from ${this.info.maps_from}`;
    if (name === 'ssim') return `${CAPTIONS.ssim}, mean ${this.info.ssim.result.toFixed(3)}`;
    return CAPTIONS[name];
  }

  #words() {
    const { slices, coils, matrix, acceleration, measured } = this.info;
    const words = document.createElement('span');
    const times = acceleration ? `${acceleration.toFixed(1)}-fold undersampled (${(100 * measured).toFixed(0)} % measured)` : '';
    words.textContent = `Slice ${this.index + 1}/${slices} · ${coils} coils · ${matrix.join(' × ')} · ${times}`;
    const step = (words_, by) => {
      const button = document.createElement('button');
      Object.assign(button, { type: 'button', textContent: words_, disabled: this.index + by < 0 || this.index + by >= slices });
      button.addEventListener('click', () => this.go(by));
      return button;
    };
    this.bar.replaceChildren(words, ...(slices > 1 ? [step('Previous slice', -1), step('Next slice', 1)] : []));
  }

  #compare() {
    if (!this.info.pictures.includes('result')) {
      this.swipe.replaceChildren(figure(this.#url('zero-filled'), 'Zero-filled; there is no result to compare with'));
      return;
    }
    const slider = document.createElement('img-comparison-slider');
    slider.setAttribute('aria-label', 'Swipe between zero-filled and reconstructed');
    slider.append(figure(this.#url('zero-filled'), ''), figure(this.#url('result'), ''));
    slider.children[0].slot = 'first';
    slider.children[1].slot = 'second';
    const scores = this.info.ssim;
    const words = document.createElement('p');
    const note = (name) => (scores ? ` (SSIM ${scores[name].toFixed(3)})` : '');
    words.textContent = `Left: zero-filled${note('zero-filled')}. Right: reconstructed${note('result')}. Drag the line, or use ← → on it.`;
    this.swipe.replaceChildren(slider, words, ...this.letters);
  }

  go(by) {
    if (!this.info) return;
    const to = Math.min(Math.max(this.index + by, 0), this.info.slices - 1);
    if (to === this.index) return;
    this.index = to;
    this.show();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event)) return;
    const actions = {
      ArrowDown: () => this.go(1),
      ArrowUp: () => this.go(-1),
      m: () => focusField('comment'),
      w: () => focusField('reason'),
    };
    if (!actions[event.key]) return;
    actions[event.key]();
    event.preventDefault();
  }

  close() {
    globalThis.removeEventListener('keydown', this.keys, true);
  }
}

/** Put the view into the page's component and keep it while the page runs again. */
export async function mount({ parentElement, data }) {
  const root = parentElement.querySelector('.viewer');
  if (root.held?.data.item === data.item) {
    root.held.data = data;
    return;
  }
  root.held?.close();
  await import('../vendor/img-comparison-slider/index.js');
  root.held = new Recon(root, data);
  await root.held.show();
}

/** Stop listening when the component goes. */
export function unmount({ parentElement }) {
  const root = parentElement.querySelector('.viewer');
  root?.held?.close();
  if (root) root.held = null;
}
