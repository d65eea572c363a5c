/** Addresses of the server, made from the signed ones that the page gave; this is the only file that knows their form. */

import { locate, pictureAt } from './geometry.js';

export class Api {
  constructor(data) {
    this.renew(data);
  }

  /** Fresh signatures. */
  renew(data) {
    this.urls = data.urls;
  }

  #with(base, values) {
    const url = new URL(base, globalThis.location.href);
    for (const [name, value] of Object.entries(values)) url.searchParams.set(name, String(value));
    return url.href;
  }

  /** A windowed picture. */
  slice(series, plane, index, { lo, hi }, frame) {
    const window = series === 'difference' ? {} : { lo: rounded(lo), hi: rounded(hi) };
    return this.#with(this.urls.slice, { series, plane, index, ...window, frame });
  }

  /** A coloured, see-through picture of the uncertainty. */
  overlay(plane, index, frame) {
    return this.#with(this.urls.slice, { series: 'uncertainty', plane, index, frame, overlay: 1 });
  }

  /** The value of a pixel. */
  value({ series, plane, geometry }, mm, frame) {
    const [x, y] = locate(geometry, mm).map(Math.round);
    return this.#with(this.urls.value, { series, plane, index: pictureAt(geometry, mm), x, y, frame });
  }

  /** Mean and standard deviation of a box. */
  roi({ series, plane, geometry }, points, frame) {
    const [a, b] = points.map((mm) => locate(geometry, mm).map(Math.round));
    const index = pictureAt(geometry, points[0]);
    const box = { x0: Math.min(a[0], b[0]), y0: Math.min(a[1], b[1]), x1: Math.max(a[0], b[0]), y1: Math.max(a[1], b[1]) };
    return this.#with(this.urls.roi, { series, plane, index, ...box, frame });
  }
}

/** Six digits are more than a screen shows, and make the same window the same address. */
function rounded(value) {
  return Number(value.toPrecision(6));
}
