/**
 * The viewer of volumes: panes, bar, keys and pointer around one view. Pictures come windowed from the server; nothing here
 * changes a value, and every number shown is asked of the server or follows from the geometry it gave.
 */

import { Api } from './api.js';
import { Bar, keyList } from './bar.js';
import { apply, locate, moveTo, pictureAt } from './geometry.js';
import { notes, regionInWords, valueInWords } from './info.js';
import { listenKeys } from './keys.js';
import { Pane } from './pane.js';
import { ask, PictureError, Pictures } from './pictures.js';
import { listen } from './pointer.js';
import { View } from './view.js';

// The page hears of the view when it rests, so that scrolling does not run the page.
const REST_MS = 700;
const HOVER_MS = 60;

export class Viewer {
  /**
   * @param root element to fill, @param info answer of the info route, @param data what the page gives,
   * @param tell {view(shown), mark(mark)}: called when the view rests, and for a new point or box.
   */
  constructor(root, info, data, tell) {
    this.root = root;
    this.tell = tell;
    this.api = new Api(data);
    this.view = new View(info, data.item);
    this.pictures = new Pictures();
    this.marks = [];
    this.panes = [];
    this.bar = new Bar(this);
    this.grid = document.createElement('div');
    this.status = document.createElement('div');
    this.help = keyList();
    this.notes = document.createElement('div');
    this.notes.className = 'notes';
    this.notes.append(...notes(info).map((words) => Object.assign(document.createElement('div'), { textContent: words })));
    this.grid.className = 'panes';
    this.status.className = 'status';
    this.status.setAttribute('aria-live', 'polite');
    root.replaceChildren(this.bar.element, this.notes, this.grid, this.help, this.status);
    this.direction = 0;
    this.view.listeners.add((state) => this.#changed(state));
    this.stopKeys = listenKeys(this);
    this.resize = new ResizeObserver(() => this.#drawAll());
    this.resize.observe(this.grid);
    // A decision must record what is on the screen when it is made.
    this.flush = () => this.#report();
    globalThis.addEventListener('keydown', this.flush, true);
    globalThis.addEventListener('pointerdown', this.flush, true);
    this.update(data);
    this.#build();
  }

  /** New data from the page: fresh addresses, stored marks. */
  update(data) {
    this.api.renew(data);
    const drafts = this.marks.filter((mark) => !mark.stored && (mark.kind === 'distance' || mark.kind === 'roi'));
    this.marks = [...drafts, ...(data.marks ?? []).map((mark) => ({ ...mark, stored: true }))];
    this.#drawAll();
  }

  #build() {
    const panes = this.view.panes();
    this.layout = this.view.state.layout + this.view.state.plane;
    this.panes = panes.map(([series, plane]) => new Pane(series, plane, this));
    this.grid.dataset.count = String(panes.length);
    this.grid.dataset.layout = this.view.state.layout;
    this.grid.replaceChildren(...this.panes.map((pane) => pane.element));
    for (const pane of this.panes) {
      pane.element.setAttribute('role', 'img');
      listen(pane);
    }
    this.activate(this.panes.find((pane) => pane.plane === this.view.state.plane) ?? this.panes[0]);
    this.bar.update(this.view.state);
    this.#drawAll();
  }

  #changed(state) {
    if (this.layout !== state.layout + state.plane) this.#build();
    else {
      this.bar.update(state);
      this.#drawAll();
    }
    clearTimeout(this.resting);
    this.unsaid = true;
    this.resting = setTimeout(() => this.#report(), REST_MS);
  }

  #report() {
    if (!this.unsaid) return;
    this.unsaid = false;
    clearTimeout(this.resting);
    this.tell.view(this.view.shown());
  }

  /** One drawing a frame, however many changes. */
  #drawAll() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      for (const pane of this.panes) pane.draw(this.direction);
    });
  }

  /** The pane that the keys mean. */
  activate(pane) {
    this.active = pane;
    for (const each of this.panes) each.element.classList.toggle('active', each === pane && this.panes.length > 1);
  }

  scroll(pane, steps) {
    this.direction = this.view.scroll(pane.series, pane.plane, steps);
  }

  pan(dx, dy) {
    const { scale } = this.active.place();
    this.view.panBy(this.active.plane, dx / scale, dy / scale);
  }

  /** Move the crosshair by whole pixels of the active pane. */
  nudge([dx, dy]) {
    const { geometry, series } = this.active;
    const [x, y] = locate(geometry, this.view.at(series));
    this.view.set({ crosshair: true });
    this.view.look(series, apply(geometry.to_mm, [Math.round(x) + dx, Math.round(y) + dy, pictureAt(geometry, this.view.at(series))]));
    this.hover(this.active, this.view.at(series));
    return true;
  }

  toggleOverlay() {
    if (!this.view.info.series.uncertainty) return this.say('This result has no map of uncertainty.');
    return this.view.set({ overlay: !this.view.state.overlay });
  }

  toggleHelp() {
    this.help.hidden = !this.help.hidden;
  }

  cancel() {
    this.help.hidden = true;
    this.first = null;
    this.marks = this.marks.filter((mark) => mark.stored);
    this.say('');
    this.view.set({ tool: 'window', crosshair: false });
  }

  say(words) {
    this.status.textContent = words;
  }

  /** The value under the cursor, in every pane that shows the same place. */
  hover(pane, mm) {
    clearTimeout(this.hovering);
    this.hovered = mm;
    if (!pane) return;
    this.hovering = setTimeout(() => this.#values(pane, mm), HOVER_MS);
  }

  async #values(pane, mm) {
    const shown = this.panes.filter((each) => each.plane === pane.plane && (this.view.info.linked || each === pane));
    for (const each of shown) {
      try {
        const answer = await (await ask(this.api.value(each, mm, this.view.state.frame))).json();
        if (this.hovered !== mm) return;
        each.showValue(valueInWords(answer, each.series));
      } catch (error) {
        if (!(error instanceof PictureError)) throw error;
        each.showValue('');
      }
    }
  }

  /** A mark that is being drawn. */
  draft(pane, kind, points) {
    this.marks = [...this.marks.filter((mark) => !mark.draft), { kind, points, plane: pane.plane, draft: true }];
    this.#drawAll();
  }

  /** A mark is drawn to its end, or given up. */
  async finish(pane, kind, points) {
    this.marks = this.marks.filter((mark) => !mark.draft);
    if (points) await this.#keep(pane, { kind, points: [...points], plane: pane.plane, series: pane.series });
    this.#drawAll();
  }

  async #keep(pane, mark) {
    this.marks = [...this.marks, mark];
    if (mark.kind === 'roi') {
      try {
        const answer = await (await ask(this.api.roi(pane, mark.points, this.view.state.frame))).json();
        mark.label = regionInWords(answer);
        this.say(mark.label);
      } catch (error) {
        if (!(error instanceof PictureError)) throw error;
        this.say(error.message);
      }
    } else if (mark.kind !== 'distance') {
      const index = pictureAt(pane.geometry, mark.points[0]);
      const corners = mark.points.map((mm) => locate(pane.geometry, mm).slice(0, 2));
      this.tell.mark({ kind: mark.kind, series: mark.series, plane: mark.plane, slice: index, points: mark.points, corners });
    }
  }

  /** A corner of the tool at the crosshair: measuring without a mouse. */
  corner() {
    const pane = this.active;
    const { tool } = this.view.state;
    const here = moveTo(pane.geometry, this.view.at(pane.series), pictureAt(pane.geometry, this.view.at(pane.series)));
    if (tool === 'point') this.finish(pane, tool, [here]);
    else if (this.first) {
      this.finish(pane, tool, [this.first, here]);
      this.first = null;
    } else {
      this.first = here;
      this.say('First corner set. Move the crosshair and press Enter again.');
    }
    return true;
  }

  close() {
    this.#report();
    this.stopKeys();
    this.resize.disconnect();
    cancelAnimationFrame(this.drawing);
    clearTimeout(this.resting);
    clearTimeout(this.hovering);
    globalThis.removeEventListener('keydown', this.flush, true);
    globalThis.removeEventListener('pointerdown', this.flush, true);
    this.pictures.close();
  }
}
