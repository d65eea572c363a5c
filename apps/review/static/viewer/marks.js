/** Crosshair, measurements and annotations, drawn over a pane in screen pixels. */

import { distance, locate, reaches } from './geometry.js';

const SVG = 'http://www.w3.org/2000/svg';

function shape(name, attributes, text = '') {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text) element.textContent = text;
  return element;
}

/** Redraw everything that lies over the picture of a pane. */
export function drawMarks(pane) {
  const { view, marks } = pane.viewer;
  const parts = [];
  if (view.state.layout === 'swipe') parts.push(...divider(pane));
  if (view.state.crosshair || view.state.layout === 'planes') parts.push(...crosshair(pane));
  for (const mark of marks) if (belongs(mark, pane)) parts.push(...drawn(mark, pane));
  pane.marks.replaceChildren(...parts);
}

/** A mark belongs to a picture: same plane, and its first corner on this picture. */
function belongs(mark, pane) {
  if (mark.plane !== pane.plane || pane.series === 'difference') return false;
  const geometry = pane.geometry;
  if (!reaches(geometry, mark.points[0])) return false;
  const shown = pane.viewer.view.index(pane.series, pane.plane);
  return Math.round(locate(geometry, mark.points[0])[2]) === shown;
}

function crosshair(pane) {
  const [x, y] = pane.project(pane.viewer.view.at(pane.series));
  const gap = 9;
  const line = (x1, y1, x2, y2) => shape('line', { class: 'cross', x1, y1, x2, y2 });
  return [
    line(0, y, x - gap, y),
    line(x + gap, y, pane.width, y),
    line(x, 0, x, y - gap),
    line(x, y + gap, x, pane.height),
  ];
}

function divider(pane) {
  const x = pane.viewer.view.state.swipe * pane.width;
  return [
    shape('line', { class: 'divider', x1: x, y1: 0, x2: x, y2: pane.height }),
    shape('circle', { class: 'grip', cx: x, cy: pane.height / 2, r: 9 }),
  ];
}

function drawn(mark, pane) {
  const corners = mark.points.map((mm) => pane.project(mm));
  const kind = `mark ${mark.kind}${mark.stored ? ' stored' : ''}`;
  const [[x1, y1], [x2, y2]] = [corners[0], corners[1] ?? corners[0]];
  const label = (x, y, words) => shape('text', { class: 'label', x: x + 8, y: y - 8 }, words);
  if (mark.kind === 'distance') {
    const words = `${distance(mark.points[0], mark.points[1]).toFixed(1)} mm`;
    return [shape('line', { class: kind, x1, y1, x2, y2 }), label(x2, y2, words)];
  }
  if (mark.kind === 'point') {
    return [shape('circle', { class: kind, cx: x1, cy: y1, r: 6 }), label(x1, y1, mark.label ?? '')];
  }
  const box = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) };
  return [shape('rect', { class: kind, ...box }), label(box.x + box.width, box.y, mark.label ?? '')];
}
