/** The viewer of slides: deep zoom by OpenSeadragon, attention over it, the patches with the most of it beside it. */

import { focusField, isTyping } from '../viewer/keys.js';
import { ask, PictureError } from '../viewer/pictures.js';
import { Attention, strip } from './attention.js';
import { ScaleBar } from './scale_bar.js';

const STORE = 'medseq.slide.';
const REST_MS = 700;

function script(url) {
  return new Promise((done, failed) => {
    if (globalThis.OpenSeadragon) return done();
    const element = document.createElement('script');
    Object.assign(element, { src: url, onload: done, onerror: () => failed(new PictureError('The slide viewer cannot be loaded.')) });
    document.head.append(element);
    return undefined;
  });
}

/** Size, pixel and power of a slide in words. */
function facts(slide) {
  if (!slide) return [];
  const words = [`${slide.width.toLocaleString('en-GB')} × ${slide.height.toLocaleString('en-GB')} px`];
  if (slide.mpp) words.push(`${slide.mpp[0].toFixed(3)} µm/px${slide.mpp_source === 'user' ? ' (given by the user)' : ''}`);
  return words;
}

/** The patches of the strip; without a slide there are no pictures of them. */
function patchesOf(info, urls) {
  if (!info.slide) return [];
  return info.top
    .filter((patch) => patch.x !== null)
    .map((patch) => ({ ...patch, url: `${urls.patch}&index=${patch.index}&side=92`, words: patch.value.toPrecision(2) }));
}

function remembered(item) {
  try {
    return JSON.parse(sessionStorage.getItem(STORE + item) ?? 'null') ?? {};
  } catch {
    return {};
  }
}

class Slide {
  constructor(root, info, data, tell) {
    Object.assign(this, { root, info, data, tell });
    this.state = { opacity: 55, percentile: 50, overlay: Boolean(info.overlay), ...remembered(data.item) };
    this.bar = document.createElement('div');
    this.bar.className = 'bar';
    this.stage = document.createElement('div');
    this.stage.className = 'stage';
    this.facts = document.createElement('div');
    this.facts.className = 'text top-left';
    this.facts.textContent = [data.label, ...facts(info.slide)].join('\n');
    this.words = document.createElement('div');
    this.words.className = 'text problem';
    this.words.hidden = true;
    this.scale = new ScaleBar(info.slide?.mpp ? info.slide.mpp[0] : null);
    this.patches = strip(patchesOf(info, data.urls), (patch) => this.go(patch));
    root.replaceChildren(this.bar, this.stage, this.patches);
    this.osd = globalThis.OpenSeadragon({
      element: this.stage,
      tileSources: info.slide ? data.urls.dzi : { type: 'image', url: `${data.urls.stored}&name=overlay` },
      drawer: 'canvas',
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: 'BOTTOM_RIGHT',
      navigatorHeight: '110px',
      navigatorWidth: '150px',
      navigatorDisplayRegionColor: '#ffd166',
      animationTime: globalThis.matchMedia('(prefers-reduced-motion: reduce)').matches ? 0 : 0.4,
      maxZoomPixelRatio: 4,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      timeout: 60000,
    });
    this.stage.append(this.facts, this.scale.element, this.words);
    this.attention = new Attention(this.osd, this.state, { url: (percentile) => `${this.data.urls.overlay}&threshold=${percentile / 100}`, width: info.overlay?.width }, () => this.#keep());
    const control = (words, press) => {
      const button = document.createElement('button');
      Object.assign(button, { type: 'button', textContent: words });
      button.addEventListener('click', press);
      return button;
    };
    const viewport = () => this.osd.viewport;
    this.bar.append(
      control('Whole slide', () => this.home()),
      control('+', () => this.#move(() => viewport().zoomBy(1.6))),
      control('−', () => this.#move(() => viewport().zoomBy(1 / 1.6))),
      ...(this.#hasAttention ? this.attention.controls : []),
    );
    this.osd.addHandler('open', () => this.#opened());
    this.osd.addHandler('open-failed', () => this.#problem(this.info.missing || 'The slide cannot be opened.'));
    this.osd.addHandler('tile-load-failed', () => (this.failed = (this.failed ?? 0) + 1));
    // A slide that was not moved stays whole when the page finds its size.
    // OpenSeadragon puts back its old place after telling of the new size: so one turn later.
    this.osd.addHandler('resize', () => setTimeout(() => this.atHome && this.osd.viewport?.goHome(true)));
    for (const act of ['canvas-drag', 'canvas-scroll', 'canvas-double-click', 'navigator-click', 'navigator-drag']) {
      this.osd.addHandler(act, () => (this.atHome = false));
    }
    this.osd.addHandler('animation', () => this.#measure());
    this.osd.addHandler('animation-finish', () => this.#keep());
    this.keys = (event) => this.#key(event);
    globalThis.addEventListener('keydown', this.keys, true);
  }

  #opened() {
    this.atHome = !this.state.bounds;
    if (this.atHome) this.osd.viewport.goHome(true);
    else this.osd.viewport.fitBounds(new globalThis.OpenSeadragon.Rect(...this.state.bounds), true);
    if (this.#hasAttention) this.attention.show();
    if (!this.info.slide) this.#problem(`The slide is not there any more: ${this.info.missing} This picture was stored by the run.`);
    this.#measure();
    this.stage.dataset.open = 'true';
    this.image.addHandler('fully-loaded-change', ({ fullyLoaded }) => (this.stage.dataset.loaded = String(fullyLoaded)));
  }

  #problem(words) {
    this.words.textContent = words;
    this.words.hidden = !words;
  }

  get #hasAttention() {
    return Boolean(this.info.overlay && this.info.slide);
  }

  /** Fresh signatures, for the tiles that come from now on. */
  renew(data) {
    this.data = data;
    const source = this.image?.source;
    if (source?.queryParams) source.queryParams = new URL(data.urls.dzi, globalThis.location.href).search;
  }

  get image() {
    return this.osd.world.getItemAt(0);
  }

  #measure() {
    if (!this.image) return;
    const zoom = this.image.viewportToImageZoom(this.osd.viewport.getZoom(true));
    this.scale.update(zoom);
    this.stage.dataset.zoom = zoom.toFixed(5);
  }

  #keep() {
    if (!this.image) return;
    this.#measure();
    const { x, y, width, height } = this.osd.viewport.getBounds(true);
    this.state.bounds = this.atHome ? null : [x, y, width, height];
    try {
      sessionStorage.setItem(STORE + this.data.item, JSON.stringify(this.state));
    } catch {
      // The view then lasts as long as the page.
    }
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.tell.view(this.shown()), REST_MS);
  }

  /** What a decision records of the screen, in pixels of level 0. */
  shown() {
    const corner = this.image.viewportToImageRectangle(this.osd.viewport.getBounds(true));
    const region = [corner.x, corner.y, corner.width, corner.height].map(Math.round);
    const { opacity, percentile, overlay } = this.state;
    return { region, overlay, opacity, percentile };
  }

  home() {
    this.atHome = true;
    this.osd.viewport.goHome();
  }

  #move(act) {
    this.atHome = false;
    act();
  }

  /** Go to a patch, three times its size in view. */
  go({ x, y, size }) {
    this.atHome = false;
    const area = new globalThis.OpenSeadragon.Rect(x - size, y - size, 3 * size, 3 * size);
    this.osd.viewport.fitBounds(this.image.imageToViewportRectangle(area));
    this.frame(x, y, size);
  }

  /** Outline a patch. */
  frame(x, y, size) {
    this.outline ??= Object.assign(document.createElement('div'), { className: 'outline' });
    this.osd.removeOverlay(this.outline);
    this.osd.addOverlay(this.outline, this.image.imageToViewportRectangle(new globalThis.OpenSeadragon.Rect(x, y, size, size)));
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event)) return;
    const { viewport } = this.osd;
    const step = 0.15 / viewport.getZoom();
    const pan = (x, y) => this.#move(() => viewport.panBy(new globalThis.OpenSeadragon.Point(x * step, y * step)));
    const zoom = (factor) => this.#move(() => viewport.zoomBy(factor));
    const actions = {
      u: () => this.#hasAttention && this.attention.toggle(),
      m: () => focusField('comment'),
      w: () => focusField('reason'),
      0: () => this.home(),
      '+': () => zoom(1.6),
      '=': () => zoom(1.6),
      '-': () => zoom(1 / 1.6),
      ArrowLeft: () => pan(-1, 0),
      ArrowRight: () => pan(1, 0),
      ArrowUp: () => pan(0, -1),
      ArrowDown: () => pan(0, 1),
    };
    const patch = /^[1-9]$/.test(event.key) && this.info.top[Number(event.key) - 1];
    const action = patch ? () => this.go(patch) : actions[event.key];
    if (!action) return;
    action();
    event.preventDefault();
    event.stopPropagation();
  }

  close() {
    globalThis.removeEventListener('keydown', this.keys, true);
    clearTimeout(this.resting);
    this.osd.destroy();
  }
}

/** Put a slide into the page's component and keep it while the page runs again. */
export async function mount(component) {
  const { parentElement, data } = component;
  const root = parentElement.querySelector('.viewer');
  if (root.held?.item === data.item) {
    root.held.component = component;
    root.held.slide?.renew(data);
    return;
  }
  root.held?.slide?.close();
  const held = { item: data.item, component, slide: null };
  root.held = held;
  root.textContent = 'Loading…';
  try {
    await script(new URL('../vendor/openseadragon/openseadragon.min.js', import.meta.url).href);
    const info = await (await ask(data.urls['slide-info'])).json();
    if (root.held === held) held.slide = new Slide(root, info, data, { view: (shown) => held.component.setStateValue('view', shown) });
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    root.textContent = error.message;
  }
}

/** Stop listening when the component goes. */
export function unmount(component) {
  const root = component.parentElement.querySelector('.viewer');
  root?.held?.slide?.close();
  if (root) root.held = null;
}
