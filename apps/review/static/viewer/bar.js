/** The row of buttons above the pictures, and the list of keys. */

const LAYOUTS = [
  ['pair', 'Side by side', ''],
  ['before', 'Before', ''],
  ['after', 'After', ''],
  ['planes', 'Three planes', ''],
  ['swipe', 'Swipe', 'S'],
  ['difference', 'Difference', 'D'],
];
const TOOLS = [
  ['window', 'Window', 'drag: right widens, up raises the level'],
  ['pan', 'Move', 'drag the picture'],
  ['distance', 'Distance', 'drag a line, in mm'],
  ['roi', 'Region', 'drag a box: mean and standard deviation'],
  ['point', 'Point', 'click: marks a finding'],
  ['box', 'Box', 'drag: marks a finding'],
];
export const KEYS = [
  ['↑ ↓ or wheel', 'slice'],
  ['Page ↑ ↓', 'ten slices'],
  ['1 … 9', 'window'],
  ['[ ]  , .', 'width, level'],
  ['+ − 0', 'zoom, reset'],
  ['Shift + arrows', 'move'],
  ['Alt + arrows', 'crosshair'],
  ['Click', 'crosshair'],
  ['Enter', 'corner of the tool at the crosshair'],
  ['Esc', 'no marks, no crosshair'],
  ['S  D  U', 'swipe, difference, uncertainty'],
  ['A  X  L', 'accept, reject, look again'],
  ['N  P', 'next, previous item'],
  ['W  M  Z', 'reason, comment, undo'],
];

function button(words, key, title, press) {
  const element = document.createElement('button');
  element.type = 'button';
  element.textContent = words;
  if (key) {
    element.append(' ');
    const mark = element.appendChild(document.createElement('kbd'));
    mark.textContent = key;
    element.setAttribute('aria-keyshortcuts', key);
  }
  element.title = title;
  element.addEventListener('click', press);
  return element;
}

function group(name, ...children) {
  const element = document.createElement('div');
  element.className = 'group';
  element.setAttribute('role', 'group');
  element.setAttribute('aria-label', name);
  element.append(...children.filter(Boolean));
  return element;
}

/** A list of choices that fits in the bar. */
function choice(name, entries, change) {
  const element = document.createElement('select');
  element.setAttribute('aria-label', name);
  for (const [value, words] of entries) {
    const option = element.appendChild(document.createElement('option'));
    Object.assign(option, { value, textContent: words });
  }
  element.addEventListener('change', () => {
    change(element.value);
    // The keys go back to the picture.
    element.blur();
  });
  return element;
}

export class Bar {
  constructor(viewer) {
    const { view } = viewer;
    const { info } = view;
    this.viewer = viewer;
    this.element = document.createElement('div');
    this.element.className = 'bar';
    this.element.setAttribute('role', 'toolbar');
    this.element.setAttribute('aria-label', 'Picture');
    this.layouts = new Map();
    for (const [name, words, key] of LAYOUTS) {
      if (!view.can(name)) continue;
      this.layouts.set(name, button(words, key, '', () => view.set({ layout: name })));
    }
    this.overlay = info.series.uncertainty && button('Uncertainty', 'U', 'colours over the result', () => viewer.toggleOverlay());
    this.tools = new Map(TOOLS.map(([name, words, title]) => [name, button(words, '', title, () => view.set({ tool: name }))]));
    this.windows = choice('Window', [['', 'Window…'], ...info.presets.map((p) => [p.key, `${p.key}  ${p.name}`])], (key) =>
      view.preset(key),
    );
    this.planes =
      info.planes.length > 1 &&
      choice('Plane', info.planes.map((name) => [name, view.plane(view.main(), name).name]), (plane) => view.set({ plane, pan: {} }));
    const frames = Array.from({ length: info.frames ?? 1 }, (_, at) => [String(at), `Frame ${at + 1}`]);
    this.frames = frames.length > 1 && choice('Frame', frames, (frame) => view.set({ frame: Number(frame) }));
    this.help = button('Keys', 'H', 'list of keys', () => viewer.toggleHelp());
    this.element.append(
      group('Layout', ...this.layouts.values(), this.overlay),
      group('Window and plane', this.windows, this.planes, this.frames),
      group('Tool', ...this.tools.values()),
      group('Help', button('Reset', '0', 'whole picture, first window', () => view.reset()), this.help),
    );
  }

  /** Show which buttons are on. */
  update(state) {
    for (const [name, element] of this.layouts) element.setAttribute('aria-pressed', String(state.layout === name));
    for (const [name, element] of this.tools) element.setAttribute('aria-pressed', String(state.tool === name));
    if (this.overlay) this.overlay.setAttribute('aria-pressed', String(state.overlay));
    this.windows.value = state.window.key ?? '';
    if (this.planes) {
      this.planes.value = state.plane;
      this.planes.disabled = state.layout === 'planes';
    }
    if (this.frames) this.frames.value = String(state.frame);
  }
}

/** The list of keys as an element. */
export function keyList() {
  const element = document.createElement('dl');
  element.className = 'keys';
  element.hidden = true;
  for (const [keys, words] of KEYS) {
    element.appendChild(document.createElement('dt')).textContent = keys;
    element.appendChild(document.createElement('dd')).textContent = words;
  }
  return element;
}
