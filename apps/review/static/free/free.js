/** Free planes and a 3-D view by niivue: the only view that computes on the graphics card of the reader. */

import { ask, PictureError } from '../viewer/pictures.js';

async function show(root, data) {
  const info = await (await ask(data.urls.info)).json();
  const canvas = document.createElement('canvas');
  const words = document.createElement('p');
  words.textContent = `After. Planes are computed here from the whole volume; drag with the right button for the window. L ${Math.round(
    (info.window.low + info.window.high) / 2,
  )} W ${Math.round(info.window.high - info.window.low)}`;
  const frame = document.createElement('div');
  frame.className = 'stage';
  frame.append(canvas);
  root.replaceChildren(words, frame);
  const { Niivue, SLICE_TYPE } = await import('../vendor/niivue/index.js');
  const viewer = new Niivue({
    isRadiologicalConvention: true,
    isOrientationTextVisible: true,
    backColor: [0, 0, 0, 1],
    show3Dcrosshair: true,
    isColorbar: false,
    sagittalNoseLeft: true,
    crosshairWidth: 0.5,
    crosshairColor: [0.34, 0.71, 0.91, 0.8],
    fontColor: [1, 0.88, 0.54, 1],
    logLevel: 'error',
    loadingText: 'Loading',
  });
  await viewer.attachToCanvas(canvas);
  viewer.setSliceType(SLICE_TYPE.MULTIPLANAR);
  viewer.setMultiplanarPadPixels(4);
  const volume = { url: new URL(data.urls.nifti, globalThis.location.href).href, name: 'after.nii' };
  await viewer.loadVolumes([{ ...volume, cal_min: info.window.low, cal_max: info.window.high }]);
  frame.dataset.ready = 'true';
  return viewer;
}

/** Put the view into the page's component and keep it while the page runs again. */
export async function mount({ parentElement, data }) {
  const root = parentElement.querySelector('.viewer');
  if (root.held === data.item) return;
  root.held = data.item;
  root.textContent = 'Loading…';
  try {
    root.niivue = await show(root, data);
  } catch (error) {
    const known = error instanceof PictureError;
    root.textContent = known ? error.message : 'This browser cannot show free planes (WebGL 2 is missing). The other views work.';
  }
}

/** Let go of the graphics card. */
export function unmount({ parentElement }) {
  const root = parentElement.querySelector('.viewer');
  root?.niivue?.gl?.getExtension('WEBGL_lose_context')?.loseContext();
  if (root) root.held = null;
}
