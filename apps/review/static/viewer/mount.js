/** Puts a viewer into the page's component and keeps it while the page runs again. */

import { understood } from './info.js';
import { ask, PictureError } from './pictures.js';
import { Viewer } from './viewer.js';

/** @param component what Streamlit gives a component: parentElement, data, setStateValue, setTriggerValue. */
export async function mount(component) {
  const { parentElement, data } = component;
  const root = parentElement.querySelector('.viewer');
  const held = root.viewer;
  if (held && held.item === data.item) {
    held.component = component;
    held.viewer?.update(data);
    return;
  }
  held?.viewer?.close();
  const holder = { item: data.item, component, viewer: null };
  root.viewer = holder;
  root.textContent = 'Loading…';
  try {
    const info = understood(await (await ask(data.urls.info)).json());
    if (root.viewer !== holder) return;
    holder.viewer = new Viewer(root, info, data, {
      view: (shown) => holder.component.setStateValue('view', shown),
      mark: (mark) => holder.component.setTriggerValue('mark', mark),
    });
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    root.textContent = error.message;
  }
}

/** Stop listening when the component goes. */
export function unmount(component) {
  const root = component.parentElement.querySelector('.viewer');
  root?.viewer?.viewer?.close();
  if (root) root.viewer = null;
}
