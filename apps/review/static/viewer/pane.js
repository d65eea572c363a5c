/** One picture on the screen with what a reader must see around it: who, where, how, and which side is which. */

import { locate, pictureAt, placed, toScreen } from './geometry.js';
import { drawMarks } from './marks.js';

const TITLES = { before: 'Before', after: 'After', difference: 'After − before' };
const CORNERS = ['top-left', 'top-right', 'bottom-left', 'bottom-right'];

const number = (value, digits = 0) => value.toLocaleString('en-GB', { maximumFractionDigits: digits });

export class Pane {
  /**
   * @param series name of the series, @param plane name of the plane,
   * @param viewer what holds view, pictures and api.
   */
  constructor(series, plane, viewer) {
    Object.assign(this, { series, plane, viewer });
    this.element = document.createElement('div');
    this.element.className = 'pane';
    this.element.dataset.series = series;
    this.element.dataset.plane = plane;
    this.canvas = this.element.appendChild(document.createElement('canvas'));
    this.marks = this.element.appendChild(document.createElementNS('http://www.w3.org/2000/svg', 'svg'));
    this.texts = {};
    for (const name of [...CORNERS, 'left', 'right', 'top', 'bottom', 'legend', 'problem']) {
      this.texts[name] = this.element.appendChild(document.createElement('div'));
      this.texts[name].className = ['left', 'right', 'top', 'bottom'].includes(name) ? `letter ${name}` : `text ${name}`;
    }
    this.value = '';
    this.asked = 0;
  }

  get geometry() {
    return this.viewer.view.plane(this.series, this.plane);
  }

  /** Where the picture lies on the screen now. */
  place() {
    const { zoom, pan } = this.viewer.view.state;
    return placed(this.geometry, this.width, this.height, zoom, pan[this.plane] ?? [0, 0]);
  }

  /** Millimetres to screen pixels of this pane. */
  project(mm) {
    return toScreen(this.geometry, this.place(), locate(this.geometry, mm));
  }

  /** Addresses of the pictures to draw: the base first, what lies over it after. */
  urls(index) {
    const { api, view } = this.viewer;
    const window = view.state.window;
    const base = (series) => api.slice(series, this.plane, index, window, view.state.frame);
    const urls = { base: base(this.series) };
    if (view.state.layout === 'swipe') {
      const under = view.index('before', this.plane);
      if (under !== null) urls.under = api.slice('before', this.plane, under, window, view.state.frame);
    }
    if (view.state.overlay && this.series === 'after' && view.info.series.uncertainty) {
      const over = view.index('uncertainty', this.plane);
      if (over !== null) urls.over = api.overlay(this.plane, over, view.state.frame);
    }
    return urls;
  }

  /** Draw what is loaded, load what is missing, then draw again. */
  async draw(direction = 0) {
    const { view, pictures } = this.viewer;
    const box = this.element.getBoundingClientRect();
    if (!box.width || !box.height) return;
    this.width = box.width;
    this.height = box.height;
    this.#words();
    const index = view.index(this.series, this.plane);
    if (index === null) {
      this.#paint({});
      this.#problem(`${TITLES[this.series] ?? this.series} does not reach this place.`);
      return;
    }
    const turn = ++this.asked;
    const urls = this.urls(index);
    const names = Object.keys(urls);
    this.#paint(Object.fromEntries(names.map((name) => [name, pictures.peek(urls[name])])), true);
    try {
      const loaded = await Promise.all(names.map((name) => pictures.load(urls[name])));
      if (turn !== this.asked) return;
      this.#problem('');
      this.#paint(Object.fromEntries(names.map((name, at) => [name, loaded[at]])));
      this.element.dataset.shown = String(index);
      this.element.dataset.window = `${view.state.window.lo},${view.state.window.hi}`;
    } catch (error) {
      if (turn === this.asked) this.#problem(error.message);
      return;
    }
    if (direction) this.#ahead(index, direction);
  }

  #ahead(index, direction) {
    const steps = [1, 2, 3].map((step) => index + step * direction);
    const inside = steps.filter((step) => step >= 0 && step < this.geometry.count);
    this.viewer.pictures.prefetch(inside.map((step) => this.urls(step).base));
  }

  /** Paint; while the new picture is on its way the old one stays, so that nothing flashes. */
  #paint(found, waiting = false) {
    if (waiting && !found.base) {
      if (!this.last) return;
      found = this.last;
    } else if (found.base) this.last = found;
    const ratio = globalThis.devicePixelRatio || 1;
    const [wide, tall] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== wide || this.canvas.height !== tall) Object.assign(this.canvas, { width: wide, height: tall });
    const context = this.canvas.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.imageSmoothingQuality = 'high';
    const { left, top, width, height } = this.place();
    const put = (bitmap, alpha = 1) => {
      context.globalAlpha = alpha;
      context.drawImage(bitmap, left, top, width, height);
      context.globalAlpha = 1;
    };
    if (found.base) put(found.base);
    if (found.over) put(found.over, 0.6);
    if (found.under) this.#swipe(context, () => put(found.under));
    drawMarks(this);
  }

  #swipe(context, put) {
    const x = this.viewer.view.state.swipe * this.width;
    context.save();
    context.beginPath();
    context.rect(0, 0, x, this.height);
    context.clip();
    context.clearRect(0, 0, x, this.height);
    put();
    context.restore();
  }

  #problem(words) {
    this.texts.problem.textContent = words;
    this.texts.problem.hidden = !words;
  }

  /** The texts in the corners and the letters at the edges. */
  #words() {
    const { view } = this.viewer;
    const { info, state } = view;
    const geometry = this.geometry;
    const index = pictureAt(geometry, view.at(this.series));
    const name = state.layout === 'swipe' ? 'Before | After' : (TITLES[this.series] ?? this.series);
    this.#text('top-left', info.pseudonym, info.series[this.series].name);
    this.#text('top-right', name, geometry.name, info.laterality ? `Laterality ${info.laterality}` : '');
    const position = geometry.positions ? `${number(geometry.positions[index], 1)} mm` : '';
    const frame = info.frames > 1 ? `Frame ${state.frame + 1}/${info.frames}` : '';
    this.#text('bottom-left', this.value, frame, `Slice ${index + 1}/${geometry.count}  ${position}`);
    const digits = view.width() < 10 ? 3 : 0;
    const units = info.units === '1' ? '' : ` ${info.units}`;
    const window =
      this.series === 'difference'
        ? `±${number(info.difference_half, digits)}${units}`
        : `L ${number(view.level(), digits)} W ${number(view.width(), digits)}${units}`;
    const preset = this.series !== 'difference' && info.presets.find((entry) => entry.key === state.window.key);
    this.#text('bottom-right', preset ? preset.name : '', window, `Zoom ${number(state.zoom * 100)} %`);
    this.#legend(units, digits);
    for (const side of ['left', 'right', 'top', 'bottom']) this.texts[side].textContent = geometry.letters[side];
    this.element.setAttribute('aria-label', `${name}, ${geometry.name}, slice ${index + 1} of ${geometry.count}`);
  }

  /** The colours of a difference or of uncertainty, with their limits. */
  #legend(units, digits) {
    const { info, state } = this.viewer.view;
    const spread = state.overlay && this.series === 'after' && info.uncertainty;
    const difference = this.series === 'difference';
    this.texts.legend.hidden = !spread && !difference;
    if (this.texts.legend.hidden) return;
    const half = number(info.difference_half, digits);
    const words = difference ? [`−${half}`, `+${half}${units}`] : ['sd 0', `${Number(info.uncertainty.high.toPrecision(3))}${units}`];
    const ramp = document.createElement('i');
    ramp.className = difference ? 'ramp diverging' : 'ramp spread';
    this.texts.legend.replaceChildren(words[0], ramp, words[1]);
  }

  #text(corner, ...lines) {
    this.texts[corner].replaceChildren(
      ...lines.filter(Boolean).map((line) => {
        const row = document.createElement('div');
        row.textContent = line;
        return row;
      }),
    );
  }

  /** Show the value of a pixel, or nothing. */
  showValue(words) {
    this.value = words;
    this.#words();
  }
}
