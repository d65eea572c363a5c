"""Where an ISMRMRD acquisition lies: sizes of the grid, of the shown image, and its affine."""

from dataclasses import dataclass

import numpy as np

from medseq.errors import FormatError
from medseq.io.mrd_header import Encoding
from medseq.io.source import SourceWarning

__all__ = ["Grid", "grid_of", "positions_on_grid", "stack_affine", "volume_affine"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """Sizes derived from one encoding.

    Attributes:
        readout: Samples along x as encoded.
        kept: Samples along x once readout oversampling is removed.
        phase: Encoded ``(y, z)``; z is 1 for 2-D acquisitions.
        shown: ``(y, z)`` of the image that the scanner shows, on the encoded pixel size.
        pixel_mm: ``(x, y, z)`` size of an encoded voxel; 0 where the header does not say.
        offset: ``(y, z)`` to add to the counters to get the place on the grid.
    """

    readout: int
    kept: int
    phase: tuple[int, int]
    shown: tuple[int, int]
    pixel_mm: tuple[float, float, float]
    offset: tuple[int, int]


def grid_of(encoding: Encoding, volume: bool, keep_oversampling: bool) -> tuple[Grid, list[SourceWarning]]:
    """Sizes, and a remark where the scanner's image has other pixels than were measured.

    The images keep the encoded voxel size: interpolation to the scanner's matrix adds no information.

    Args:
        encoding: The encoding of the image data.
        volume: 3-D: y and z are phase encoded.
        keep_oversampling: Leave the readout as encoded.
    """
    matrix, fov = encoding.encoded.matrix, encoding.encoded.fov_mm
    pixel = tuple(mm / n for mm, n in zip(fov, matrix, strict=True))
    shown = []
    for axis in range(3):
        wanted = encoding.recon.fov_mm[axis]
        # Without a field of view only the ratio of the matrices tells.
        size = wanted / pixel[axis] if wanted > 0 and pixel[axis] > 0 else encoding.recon.matrix[axis]
        shown.append(min(matrix[axis], max(1, round(size))))
    notices = []
    axes = 3 if volume else 2
    if tuple(shown[:axes]) != encoding.recon.matrix[:axes]:
        text = f"the scanner would show {encoding.recon.matrix[:axes]} pixels (x, y{', z' * volume}); the images keep "
        text += f"the measured pixel size: {tuple(shown[:axes])}"
        notices.append(SourceWarning("recon-shape", text))
    grid = Grid(
        matrix[0],
        matrix[0] if keep_oversampling else shown[0],
        (matrix[1], matrix[2] if volume else 1),
        (shown[1], shown[2] if volume else 1),
        pixel,  # type: ignore[arg-type]
        (_offset(encoding, 1, matrix[1]), _offset(encoding, 2, matrix[2]) if volume else 0),
    )
    return grid, notices


def _offset(encoding: Encoding, step: int, size: int) -> int:
    limit = encoding.limits.get(f"kspace_encoding_step_{step}")
    return 0 if limit is None else size // 2 - limit.center


def _directions(line: np.ndarray) -> np.ndarray | None:
    """``(3, 3)``, columns read, phase and slice direction, RAS unit vectors; None if the file does not say."""
    axes = np.stack([line[name].astype(np.float64) for name in ("read_dir", "phase_dir", "slice_dir")], axis=1)
    gram = axes.T @ axes
    if not np.isfinite(gram).all() or np.abs(gram - np.eye(3)).max() > 1e-2:
        return None
    return _LPS_TO_RAS @ axes


def stack_affine(
    firsts: np.ndarray, shape: tuple[int, int], pixel_mm: tuple[float, float, float], thickness_mm: float
) -> tuple[np.ndarray | None, list[SourceWarning]]:
    """Affine of a stack of 2-D slices: rows along the readout, columns along the phase encoding.

    Args:
        firsts: One readout header a slice, in slice order.
        shape: ``(row, col)`` of the images; pixel ``(row // 2, col // 2)`` lies at the position.
        pixel_mm: Encoded voxel ``(x, y, z)``.
        thickness_mm: Slice distance where there is only one slice.

    Returns:
        ``(col, row, slice, 1)`` -> RAS mm, or None with a remark.
    """
    axes = _directions(firsts[0])
    if axes is None or not (pixel_mm[0] > 0 and pixel_mm[1] > 0):
        return None, [SourceWarning("no-orientation", "the raw data does not say how its slices lie in the patient")]
    places = firsts["position"].astype(np.float64) @ _LPS_TO_RAS.T
    step = axes[:, 2] * (thickness_mm if thickness_mm > 0 else 1.0)
    if len(places) > 1:
        steps = np.diff(places, axis=0)
        step = steps.mean(axis=0)
        length = np.linalg.norm(step)
        along = abs(step @ axes[:, 2])
        if np.abs(steps - step).max() > 0.01 + 0.01 * length or along < 0.5 * length or not length > 0:
            return None, [SourceWarning("uneven-spacing", "the slices are not evenly spaced along their normal")]
    return _affine(axes[:, 1] * pixel_mm[1], axes[:, 0] * pixel_mm[0], step, places[0], (shape[1], shape[0], 0)), []


def volume_affine(
    first: np.ndarray, shape: tuple[int, int, int], pixel_mm: tuple[float, float, float]
) -> tuple[np.ndarray | None, list[SourceWarning]]:
    """Affine of a 3-D acquisition: slices along the readout, rows along y, columns along z."""
    axes = _directions(first)
    if axes is None or min(pixel_mm) <= 0:
        return None, [SourceWarning("no-orientation", "the raw data does not say how its volume lies in the patient")]
    place = _LPS_TO_RAS @ first["position"].astype(np.float64)
    x, y, z = (axes[:, axis] * pixel_mm[axis] for axis in range(3))
    return _affine(z, y, x, place, (shape[2], shape[1], shape[0])), []


def _affine(
    col: np.ndarray, row: np.ndarray, step: np.ndarray, place: np.ndarray, sizes: tuple[int, int, int]
) -> np.ndarray:
    """Affine whose voxel ``sizes // 2`` (col, row, slice) lies at `place`."""
    out = np.eye(4)
    out[:3, :3] = np.stack([col, row, step], axis=1)
    out[:3, 3] = place - out[:3, :3] @ np.array([n // 2 for n in sizes])
    return out


def positions_on_grid(counters: np.ndarray, offset: int, size: int, what: str, where: str) -> np.ndarray:
    """Counters as places on an axis of the grid.

    Raises:
        FormatError: A counter outside.
    """
    places = counters.astype(np.int64) + offset
    if places.size and not (0 <= places.min() and places.max() < size):
        raise FormatError(
            f"a {what} counter lies outside the encoded matrix",
            where=where,
            found=f"{int(places.min())} to {int(places.max())}",
            wanted=f"0 to {size - 1}",
            remedy="the header's encodingLimits or matrixSize are wrong: convert the raw data again",
        )
    return places
