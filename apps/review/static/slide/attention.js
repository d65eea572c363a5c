/** The attention over a slide: how strong, from which percentile on, and the patches with the most of it. */

const WAIT_MS = 250;

function slider(name, value, low, high, unit, change) {
  const label = document.createElement('label');
  label.append(name);
  const input = label.appendChild(document.createElement('input'));
  Object.assign(input, { type: 'range', min: low, max: high, step: 1 });
  input.value = String(value);
  const words = label.appendChild(document.createElement('output'));
  const show = () => (words.textContent = `${input.value} ${unit}`);
  input.addEventListener('input', () => {
    show();
    change(Number(input.value));
  });
  show();
  return { label, input };
}

export class Attention {
  /**
   * @param osd the OpenSeadragon viewer, @param state {opacity, percentile, overlay}, changed in place,
   * @param api address by percentile, and the width of its picture in pixels of level 0, @param changed called after a change.
   */
  constructor(osd, state, api, changed) {
    Object.assign(this, { osd, state, api, changed });
    this.strength = slider('Opacity', state.opacity, 0, 100, '%', (value) => this.#set({ opacity: value }));
    this.share = slider('Above percentile', state.percentile, 0, 99, '', (value) => this.#set({ percentile: value }));
    this.button = document.createElement('button');
    this.button.type = 'button';
    this.button.append('Attention ');
    this.button.appendChild(document.createElement('kbd')).textContent = 'U';
    this.button.addEventListener('click', () => this.toggle());
    this.controls = [this.button, this.strength.label, this.share.label];
  }

  toggle() {
    this.#set({ overlay: !this.state.overlay });
  }

  #set(change) {
    Object.assign(this.state, change);
    this.changed();
    if ('percentile' in change) {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.show(), WAIT_MS);
    } else this.#paint();
  }

  #paint() {
    this.button.setAttribute('aria-pressed', String(this.state.overlay));
    this.layer?.setOpacity(this.state.overlay ? this.state.opacity / 100 : 0);
  }

  /** Load the overlay for the present percentile; the old one stays until the new one is there. */
  show() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const old = this.layer;
    const slide = this.osd.world.getItemAt(0);
    const bounds = slide.imageToViewportRectangle(0, 0, this.api.width, 1);
    this.osd.addSimpleImage({
      url: this.api.url(this.state.percentile),
      x: bounds.x,
      y: bounds.y,
      width: bounds.width,
      opacity: 0,
      success: ({ item }) => {
        if (turn !== this.turn) return this.osd.world.removeItem(item);
        if (old) this.osd.world.removeItem(old);
        this.layer = item;
        this.#paint();
        this.osd.element.dataset.overlay = String(this.state.percentile);
        return undefined;
      },
    });
    this.#paint();
  }
}

/** The patches with the most attention, as buttons that go there. */
export function strip(patches, go) {
  const element = document.createElement('div');
  element.className = 'strip';
  element.setAttribute('role', 'group');
  element.setAttribute('aria-label', 'Patches with the highest attention');
  patches.forEach((patch, at) => {
    const button = element.appendChild(document.createElement('button'));
    button.type = 'button';
    const picture = button.appendChild(document.createElement('img'));
    Object.assign(picture, { src: patch.url, alt: '', loading: 'lazy', width: 92, height: 92 });
    button.appendChild(document.createElement('span')).textContent = `${at + 1} · ${patch.words}`;
    button.setAttribute('aria-label', `Patch ${at + 1}, attention ${patch.words}: go there`);
    button.addEventListener('click', () => go(patch));
  });
  return element;
}
