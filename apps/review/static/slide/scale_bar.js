/** A bar of a round length in micrometres, and the magnification in words. */

const STEPS = [1, 2, 5];
const LONGEST_PX = 160;

/** The longest round length that fits, in micrometres, and its pixels on the screen. */
export function roundLength(micrometresPerPixel) {
  const most = LONGEST_PX * micrometresPerPixel;
  const decade = 10 ** Math.floor(Math.log10(most));
  const length = Math.max(...STEPS.map((step) => step * decade).filter((value) => value <= most));
  return { length, pixels: length / micrometresPerPixel };
}

/** A length in the unit that people say. */
export function inWords(micrometres) {
  return micrometres >= 1000 ? `${micrometres / 1000} mm` : `${micrometres} µm`;
}

export class ScaleBar {
  /** @param mpp micrometres a pixel of level 0, or null: then the bar says that it is unknown. */
  constructor(mpp) {
    this.mpp = mpp;
    this.element = document.createElement('div');
    this.element.className = 'scale';
    this.bar = this.element.appendChild(document.createElement('div'));
    this.words = this.element.appendChild(document.createElement('span'));
  }

  /** @param zoom screen pixels a pixel of level 0. */
  update(zoom) {
    if (!this.mpp) {
      this.bar.hidden = true;
      this.words.textContent = 'Pixel size unknown: no scale';
      return;
    }
    const { length, pixels } = roundLength(this.mpp / zoom);
    this.bar.style.width = `${pixels}px`;
    // A microscope's 40x is about a quarter of a micrometre a pixel.
    const times = (10 * zoom) / this.mpp;
    this.words.textContent = `${inWords(length)}  ·  ${times < 1 ? times.toFixed(2) : times.toFixed(1)}×`;
  }
}
