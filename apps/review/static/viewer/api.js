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
    return this.#with(this.urls.slice, { role: series, plane, index, ...window, frame });
  }

  /** A coloured, see-through picture of the uncertainty. */
  overlay(plane, index, frame) {
    return this.#with(this.urls.slice, { role: 'uncertainty', plane, index, frame });
  }

  /** The value of a pixel. */
  value({ series, plane, geometry }, mm, frame) {
    const [x, y] = locate(geometry, mm).map(fromCorner);
    return this.#with(this.urls.value, { role: series, plane, index: pictureAt(geometry, mm), x, y, frame });
  }

  /** Mean and standard deviation of a box. */
  roi({ series, plane, geometry }, points, frame) {
    const [a, b] = points.map((mm) => locate(geometry, mm).map(fromCorner));
    const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    return this.#with(this.urls.roi, { role: series, plane, index: pictureAt(geometry, points[0]), box: box.join(','), frame });
  }
}

/** The server counts pixels from the corner of the first one, the geometry from its centre. */
function fromCorner(value) {
  return Number((value + 0.5).toFixed(3));
}

/** Six digits are more than a screen shows, and make the same window the same address. */
function rounded(value) {
  return Number(value.toPrecision(6));
}
