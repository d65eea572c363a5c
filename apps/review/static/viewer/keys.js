/**
 * Keys of the viewer, wherever the last click was. Letters that the page's own buttons answer (A, X, L, N, P, Z) are left
 * alone; so is everything that is typed into a field.
 */

import { isMeasure } from './pointer.js';

const FIELDS = new Set(['INPUT', 'TEXTAREA', 'SELECT']);
// Boxes of choices and menus need the arrows and letters themselves.
const ROLES = new Set(['combobox', 'listbox', 'option', 'menu', 'menuitem', 'slider', 'textbox', 'radio', 'tab']);

/** Put the cursor into a field of the page. */
export function focusField(name) {
  document.querySelector(`.st-key-${name} :is(textarea, input)`)?.focus();
}

/** Whether a key press is meant for a field. */
export function isTyping(event) {
  const target = event.composedPath()[0];
  if (!(target instanceof Element)) return false;
  return FIELDS.has(target.tagName) || target.isContentEditable || ROLES.has(target.getAttribute('role'));
}

const ACTIONS = {
  d: (viewer) => viewer.view.toggle('difference'),
  s: (viewer) => viewer.view.toggle('swipe'),
  u: (viewer) => viewer.toggleOverlay(),
  m: () => focusField('comment'),
  w: () => focusField('reason'),
  h: (viewer) => viewer.toggleHelp(),
  '?': (viewer) => viewer.toggleHelp(),
  ArrowDown: (viewer) => viewer.scroll(viewer.active, 1),
  ArrowUp: (viewer) => viewer.scroll(viewer.active, -1),
  ArrowRight: (viewer) => viewer.scroll(viewer.active, 1),
  ArrowLeft: (viewer) => viewer.scroll(viewer.active, -1),
  PageDown: (viewer) => viewer.scroll(viewer.active, 10),
  PageUp: (viewer) => viewer.scroll(viewer.active, -10),
  Home: (viewer) => viewer.scroll(viewer.active, -Infinity),
  End: (viewer) => viewer.scroll(viewer.active, Infinity),
  '+': (viewer) => viewer.view.zoomBy(1.25),
  '=': (viewer) => viewer.view.zoomBy(1.25),
  '-': (viewer) => viewer.view.zoomBy(0.8),
  0: (viewer) => viewer.view.reset(),
  ']': (viewer) => viewer.view.setWindow(viewer.view.level(), viewer.view.width() * 1.1),
  '[': (viewer) => viewer.view.setWindow(viewer.view.level(), viewer.view.width() / 1.1),
  '.': (viewer) => viewer.view.setWindow(viewer.view.level() + viewer.view.width() * 0.05, viewer.view.width()),
  ',': (viewer) => viewer.view.setWindow(viewer.view.level() - viewer.view.width() * 0.05, viewer.view.width()),
  Escape: (viewer) => viewer.cancel(),
};

// With Shift the arrows move the picture, with Alt the crosshair by one pixel.
const DIRECTIONS = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] };

function answer(viewer, event) {
  const step = DIRECTIONS[event.key];
  if (step && event.shiftKey) return viewer.pan(step[0] * -10, step[1] * -10);
  if (step && event.altKey) return viewer.nudge(step);
  if (event.altKey) return false;
  if (event.key === 'Enter') return isMeasure(viewer.view.state.tool) && viewer.corner();
  if (/^[1-9]$/.test(event.key)) return viewer.view.preset(event.key);
  const action = ACTIONS[event.key] ?? ACTIONS[event.key.toLowerCase()];
  return action ? (action(viewer), true) : false;
}

/** Listen; @returns a function that stops listening. */
export function listenKeys(viewer) {
  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.defaultPrevented || isTyping(event)) return;
    // Enter and Space on a button press the button.
    if (event.key === 'Enter' && event.composedPath()[0]?.tagName === 'BUTTON') return;
    if (answer(viewer, event)) {
      event.preventDefault();
      event.stopPropagation();
    }
  };
  globalThis.addEventListener('keydown', pressed, true);
  return () => globalThis.removeEventListener('keydown', pressed, true);
}
