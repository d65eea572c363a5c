/**
 * The mouse, pen or finger on a pane. Left: the chosen tool, or a click for the crosshair; middle or Shift: pan;
 * right: zoom; wheel: slices, with Ctrl zoom.
 */

import { apply, locate, toPicture } from './geometry.js';

const CLICK = 4;
const GRIP = 14;
const MEASURES = { distance: 2, roi: 2, point: 1, box: 2 };

/** Whether a tool puts marks. */
export const isMeasure = (tool) => tool in MEASURES;

/** Listen on a pane. */
export function listen(pane) {
  const { element } = pane;
  element.addEventListener('pointerdown', (event) => start(pane, event));
  element.addEventListener('pointermove', (event) => hover(pane, event));
  element.addEventListener('pointerleave', () => pane.viewer.hover(null));
  element.addEventListener('contextmenu', (event) => event.preventDefault());
  element.addEventListener('wheel', (event) => wheel(pane, event), { passive: false });
}

function positionOf(pane, event) {
  const box = pane.element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

/** Millimetres under a screen position, on the picture that is shown. */
export function millimetres(pane, position) {
  const [column, row] = toPicture(pane.geometry, pane.place(), position);
  const index = Math.round(locate(pane.geometry, pane.viewer.view.at(pane.series))[2]);
  return apply(pane.geometry.to_mm, [column, row, index]);
}

function wheel(pane, event) {
  event.preventDefault();
  const { view } = pane.viewer;
  if (event.ctrlKey) view.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  else pane.viewer.scroll(pane, event.deltaY > 0 ? 1 : -1);
}

function hover(pane, event) {
  if (!event.buttons) pane.viewer.hover(pane, millimetres(pane, positionOf(pane, event)));
}

/** Which drag a press begins. */
function dragOf(pane, event, [x]) {
  const { view } = pane.viewer;
  const { state } = view;
  if (event.button === 1 || event.shiftKey) return panning(pane);
  if (event.button === 2) return zooming(pane);
  if (state.layout === 'swipe' && Math.abs(x - state.swipe * pane.width) < GRIP) return swiping(pane);
  if (isMeasure(state.tool)) return marking(pane, event);
  if (state.tool === 'pan') return panning(pane);
  return windowing(pane);
}

function start(pane, event) {
  if (!pane.width) return;
  const from = positionOf(pane, event);
  const drag = dragOf(pane, event, from);
  pane.viewer.activate(pane);
  pane.element.setPointerCapture(event.pointerId);
  let moved = false;
  const move = (next) => {
    const to = positionOf(pane, next);
    moved ||= Math.hypot(to[0] - from[0], to[1] - from[1]) > CLICK;
    if (moved) drag.move(to[0] - from[0], to[1] - from[1], to);
  };
  const stop = (next) => {
    pane.element.removeEventListener('pointermove', move);
    pane.element.removeEventListener('pointerup', stop);
    pane.element.removeEventListener('pointercancel', stop);
    if (next.type === 'pointercancel') return;
    if (drag.end) drag.end(positionOf(pane, next), moved);
    else if (!moved && event.button === 0) {
      pane.viewer.view.set({ crosshair: true });
      pane.viewer.view.look(pane.series, millimetres(pane, from));
    }
  };
  pane.element.addEventListener('pointermove', move);
  pane.element.addEventListener('pointerup', stop);
  pane.element.addEventListener('pointercancel', stop);
}

function windowing(pane) {
  const { view } = pane.viewer;
  const [level, width] = [view.level(), view.width()];
  // The first window sets the pace: a drag over 250 pixels widens it by itself.
  const pace = Math.max(view.initial.window.hi - view.initial.window.lo, width / 4) / 250;
  return { move: (dx, dy) => view.setWindow(level - dy * pace, width + dx * pace) };
}

function panning(pane) {
  const { view } = pane.viewer;
  const { scale } = pane.place();
  let [x, y] = [0, 0];
  return {
    move: (dx, dy) => {
      view.panBy(pane.plane, (dx - x) / scale, (dy - y) / scale);
      [x, y] = [dx, dy];
    },
  };
}

function zooming(pane) {
  const { view } = pane.viewer;
  let before = 0;
  return {
    move: (dx, dy) => {
      view.zoomBy(Math.exp((before - dy) / 150));
      before = dy;
    },
    end: () => {},
  };
}

function swiping(pane) {
  const { view } = pane.viewer;
  return { move: (dx, dy, [x]) => view.set({ swipe: Math.min(Math.max(x / pane.width, 0), 1) }), end: () => {} };
}

function marking(pane, event) {
  const { viewer } = pane;
  const { tool } = viewer.view.state;
  const first = millimetres(pane, positionOf(pane, event));
  const points = MEASURES[tool] === 1 ? [first] : [first, first];
  viewer.draft(pane, tool, points);
  return {
    move: (dx, dy, to) => {
      points[points.length - 1] = millimetres(pane, to);
      viewer.draft(pane, tool, points);
    },
    end: (to, moved) => viewer.finish(pane, tool, moved || MEASURES[tool] === 1 ? points : null),
  };
}
