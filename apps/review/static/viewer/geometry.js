/**
 * Where a picture lies: display pixels, patient millimetres and pixels of the screen.
 *
 * A plane of a series is described by `count` pictures of `rows` x `cols` pixels of `spacing` [mm down, mm right] and by
 * `to_mm`, a 4 x 4 matrix (row by row) that takes (column, row, picture, 1) of the centre of a pixel to millimetres.
 */

/** The product of a 4 x 4 matrix and the point (x, y, z, 1). */
export function apply(matrix, [x, y, z]) {
  return [0, 1, 2].map((row) => matrix[row][0] * x + matrix[row][1] * y + matrix[row][2] * z + matrix[row][3]);
}

/** The inverse of an affine 4 x 4 matrix. */
export function inverse(matrix) {
  const [[a, b, c], [d, e, f], [g, h, i]] = matrix;
  const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const turned = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / determinant));
  const shift = [matrix[0][3], matrix[1][3], matrix[2][3]];
  const rows = turned.map((row) => [...row, -(row[0] * shift[0] + row[1] * shift[1] + row[2] * shift[2])]);
  return [...rows, [0, 0, 0, 1]];
}

/** The distance of two points in millimetres. */
export function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}

/** `value`, moved into low..high. */
export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Millimetres of the middle of the middle picture. */
export function middle(plane) {
  return apply(plane.to_mm, [(plane.cols - 1) / 2, (plane.rows - 1) / 2, Math.floor(plane.count / 2)]);
}

/** Column, row and picture, not rounded, at a point in millimetres. */
export function locate(plane, mm) {
  plane.from_mm ??= inverse(plane.to_mm);
  return apply(plane.from_mm, mm);
}

/** Number of the picture that is nearest to a point, inside the series. */
export function pictureAt(plane, mm) {
  return clamp(Math.round(locate(plane, mm)[2]), 0, plane.count - 1);
}

/** The point on picture `index` below the one at `mm`: columns and rows stay. */
export function moveTo(plane, mm, index) {
  const [x, y] = locate(plane, mm);
  return apply(plane.to_mm, [x, y, index]);
}

/** Whether a point lies between the first and the last picture, half a step around them included. */
export function reaches(plane, mm) {
  const index = locate(plane, mm)[2];
  return index > -0.5 - 1e-6 && index < plane.count - 0.5 + 1e-6;
}

/**
 * How a plane lies on the screen: the picture as large as fits, times `zoom`, its middle moved by `pan` millimetres.
 *
 * @returns {{scale: number, left: number, top: number, width: number, height: number}} scale in screen pixels per mm.
 */
export function placed(plane, width, height, zoom, pan) {
  const [down, right] = plane.spacing;
  const wide = plane.cols * right;
  const tall = plane.rows * down;
  const scale = Math.min(width / wide, height / tall) * zoom;
  return {
    scale,
    left: width / 2 - (wide / 2 - pan[0]) * scale,
    top: height / 2 - (tall / 2 - pan[1]) * scale,
    width: wide * scale,
    height: tall * scale,
  };
}

/** Screen position of display column and row (pixel centres). */
export function toScreen(plane, place, [column, row]) {
  return [
    place.left + ((column + 0.5) * place.width) / plane.cols,
    place.top + ((row + 0.5) * place.height) / plane.rows,
  ];
}

/** Display column and row, not rounded, at a screen position. */
export function toPicture(plane, place, [x, y]) {
  return [((x - place.left) * plane.cols) / place.width - 0.5, ((y - place.top) * plane.rows) / place.height - 0.5];
}
