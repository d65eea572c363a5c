/** From the answer of the info route to what the view is built on. */

const NAMES = { stack: 'Stack', axial: 'Axial', coronal: 'Coronal', sagittal: 'Sagittal' };
const ROLES = ['before', 'after', 'difference', 'uncertainty'];

function planeOf(name, given, native) {
  return {
    ...given,
    name: name === 'stack' && native ? `Stack (${NAMES[native].toLowerCase()})` : NAMES[name],
    spacing: [given.row_mm, given.col_mm],
    positions: given.positions_mm,
  };
}

function planesOf(given) {
  const native = ['axial', 'coronal', 'sagittal'].find((name) => given[name]?.native);
  return Object.fromEntries(Object.entries(given).map(([name, plane]) => [name, planeOf(name, plane, native)]));
}

/** What the viewer calls things. */
export function understood(answer) {
  const shared = planesOf(answer.planes);
  const apart = answer.linked ? {} : answer.layers;
  const series = Object.fromEntries(
    ROLES.filter((role) => answer.roles.includes(role)).map((role) => [
      role,
      { name: answer.header.series ?? '', planes: apart[role] ? planesOf(apart[role]) : shared },
    ]),
  );
  const width = answer.window.high - answer.window.low;
  return {
    series,
    // A single slice has no planes across it.
    planes: answer.shape[0] > 1 ? ['stack', 'axial', 'coronal', 'sagittal'] : ['stack'],
    three: answer.shape[0] > 1 ? ['axial', 'coronal', 'sagittal'] : [],
    native_plane: 'stack',
    linked: answer.linked,
    refused: answer.link_refused,
    missing: answer.missing,
    frames: answer.frames,
    units: answer.units,
    pseudonym: answer.header.pseudonym ?? '',
    laterality: answer.header.laterality ?? '',
    window: { lo: answer.window.low, hi: answer.window.high },
    window_step: width / 1000,
    difference_half: Math.max(Math.abs(answer.difference.low), answer.difference.high),
    uncertainty: answer.uncertainty,
    presets: answer.presets.map(({ key, name, low, high }) => ({ key, name, lo: low, hi: high })),
    reduced: answer.reduced ?? 1,
  };
}

/** The value of a pixel in words. */
export function valueInWords(answer, series) {
  const value = answer[series];
  if (value === null || value === undefined) return '';
  const units = answer.units === '1' ? '' : ` ${answer.units}`;
  return `${shortNumber(value)}${units}`;
}

/** Statistics of a region in words. */
export function regionInWords(answer) {
  const units = answer.units === '1' ? '' : ` ${answer.units}`;
  const [mean, sd] = [shortNumber(answer.mean), shortNumber(answer.sd)];
  return `mean ${mean}${units}, sd ${sd}, n ${answer.n}, ${answer.area_mm2.toFixed(0)} mm²`;
}

function shortNumber(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 1 ? 1 : 3).replace('-', '−');
}

/** What the reader must know before looking: what is missing, what is not linked, what is shown coarser than it is. */
export function notes(info) {
  const found = Object.entries(info.missing).map(([role, why]) => `${role === 'before' ? 'No picture before' : `No ${role}`}: ${why}`);
  if (info.refused) found.push(`Not linked: ${info.refused}.`);
  if (info.reduced > 1) found.push(`Planes across the slices are shown ${info.reduced} times coarser; values are exact.`);
  return found;
}
