/**
 * What a viewer shows: layout, place, window, zoom. Kept in the tab of the browser, so that it survives a rerun of the page
 * and a reload, and told to the page, which records with each decision what was on the screen.
 */

import { clamp, middle, moveTo, pictureAt, reaches } from './geometry.js';

const STORE = 'medseq.view.';
const LINKED = 'linked';

export const LAYOUTS = ['pair', 'after', 'before', 'planes', 'swipe', 'difference'];

export class View {
  /**
   * @param info answer of the info route.
   * @param id opaque id of the item, the name under which the view is kept.
   */
  constructor(info, id) {
    this.info = info;
    this.id = id;
    this.listeners = new Set();
    const first = info.planes[0];
    const series = info.series.after ?? info.series.before;
    this.state = {
      layout: this.can('pair') ? 'pair' : 'after',
      plane: info.native_plane ?? first,
      window: { ...info.window, key: info.presets[0]?.key ?? null },
      zoom: 1,
      pan: {},
      at: { [LINKED]: middle(series.planes[info.native_plane ?? first]) },
      frame: 0,
      overlay: false,
      swipe: 0.5,
      crosshair: false,
      tool: 'window',
    };
    this.initial = structuredClone(this.state);
    this.#restore();
  }

  #restore() {
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem(STORE + this.id) ?? 'null');
    } catch {
      return;
    }
    if (!kept || !this.can(kept.layout) || !this.info.planes.includes(kept.plane)) return;
    Object.assign(this.state, kept);
  }

  /** Whether the data have what a layout shows. */
  can(layout) {
    const { series, linked } = this.info;
    const both = Boolean(series.before && series.after);
    if (layout === 'pair') return both;
    if (layout === 'swipe') return both && linked;
    if (layout === 'planes') return this.info.three.length > 1;
    return Boolean(series[layout]);
  }

  /** Change some fields, keep them, tell everybody. */
  set(change) {
    Object.assign(this.state, change);
    try {
      sessionStorage.setItem(STORE + this.id, JSON.stringify(this.state));
    } catch {
      // A full or forbidden store: the view then lasts as long as the page.
    }
    for (const listener of this.listeners) listener(this.state);
  }

  /** Panes of the layout, as [series, plane]. */
  panes() {
    const { layout, plane } = this.state;
    if (layout === 'pair') return [['before', plane], ['after', plane]];
    if (layout === 'difference') return [['after', plane], ['difference', plane]];
    if (layout === 'planes') return this.info.three.map((name) => [this.main(), name]);
    if (layout === 'swipe') return [['after', plane]];
    return [[layout, plane]];
  }

  /** The series that stands for the item. */
  main() {
    return this.info.series.after ? 'after' : 'before';
  }

  #cursorOf(series) {
    return this.info.linked || series !== 'before' ? LINKED : series;
  }

  /** Where a series is looked at, in millimetres. */
  at(series) {
    const known = this.state.at[this.#cursorOf(series)];
    return known ?? middle(this.info.series[series].planes[this.state.plane]);
  }

  /** Look at another place. */
  look(series, mm) {
    this.set({ at: { ...this.state.at, [this.#cursorOf(series)]: mm } });
  }

  plane(series, plane) {
    return this.info.series[series].planes[plane];
  }

  /** Number of the picture of a series, or null where it has none at this place. */
  index(series, plane) {
    const geometry = this.plane(series, plane);
    return reaches(geometry, this.at(series)) ? pictureAt(geometry, this.at(series)) : null;
  }

  /** Go `steps` pictures further, through the plane of a series. */
  scroll(series, plane, steps) {
    const geometry = this.plane(series, plane);
    const from = pictureAt(geometry, this.at(series));
    const to = clamp(from + steps, 0, geometry.count - 1);
    if (to !== from) this.look(series, moveTo(geometry, this.at(series), to));
    return Math.sign(steps);
  }

  /** A window by level and width; the width stays positive. */
  setWindow(level, width, key = null) {
    const wide = Math.max(width, this.info.window_step);
    this.set({ window: { lo: level - wide / 2, hi: level + wide / 2, key } });
  }

  /** The window of a number key, if there is one. */
  preset(key) {
    const preset = this.info.presets.find((entry) => entry.key === key);
    if (preset) this.set({ window: { lo: preset.lo, hi: preset.hi, key } });
    return preset;
  }

  level() {
    return (this.state.window.lo + this.state.window.hi) / 2;
  }

  width() {
    return this.state.window.hi - this.state.window.lo;
  }

  /** Switch a layout on, and by the same key back to the one before. */
  toggle(layout) {
    if (!this.can(layout)) return false;
    const { layout: now } = this.state;
    if (now === layout) this.set({ layout: this.can('pair') ? 'pair' : this.main() });
    else this.set({ layout });
    return true;
  }

  /** Zoom by a factor, or pan by millimetres on the screen. */
  zoomBy(factor) {
    this.set({ zoom: clamp(this.state.zoom * factor, 0.25, 40) });
  }

  panBy(plane, dx, dy) {
    const [x, y] = this.state.pan[plane] ?? [0, 0];
    this.set({ pan: { ...this.state.pan, [plane]: [x + dx, y + dy] } });
  }

  /** Back to the whole picture and the first window; the slice stays. */
  reset() {
    this.set({ zoom: 1, pan: {}, window: { ...this.initial.window } });
  }

  /** What a decision records of the screen. */
  shown() {
    const { layout, plane, window: { lo, hi, key }, zoom, frame, overlay } = this.state;
    const slice = this.index(this.main(), plane);
    return { layout, plane, slice: slice === null ? null : slice + 1, window: [lo, hi], preset: key, zoom, frame, overlay };
  }
}
