"""From DICOM positions to affines: order, regularity, tilt, gaps.

DICOM speaks LPS; medseq speaks RAS. `LPS_TO_RAS` is applied here, once, and nowhere else.

Slices count as evenly spaced, and a tilt as constant, when every slice lies within `grid_tolerance` of its place on
the regular grid: 5 % of a voxel, or 0.1 mm where that is less than a fifth of one, because many scanners round
positions to a tenth of a millimetre. Exact positions are kept in `VolumeHeader.slice_affines` either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseq.io.dicom_types import Frame

__all__ = ["LPS_TO_RAS", "SAME_POSITION_MM", "Layout", "frame_affine", "grid_tolerance", "layout", "slice_normal"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_POSITION_MM = 1e-3
_MULTIPLE_TOLERANCE = 0.1


@dataclass(frozen=True)
class Layout:
    """How sorted slices lie in space.

    Attributes:
        order: Indices that sort the frames along the slice normal.
        affine: 4x4 RAS affine, sheared under gantry tilt; None if the slices are uneven.
        slice_affines: ``(n, 4, 4)``, exact.
        duplicates: Pairs of places (from 0, sorted) that share a position.
        gaps: ``(place, missing)``: so many slices are missing after this place.
        step_mm: Regular distance between slices.
        tilt_degrees: Angle between the slice normal and the line through the slice origins; 0 if they agree.
        step_known: False for a lone slice of unknown thickness, whose step of 1 mm is made up.
    """

    order: tuple[int, ...]
    affine: np.ndarray | None
    slice_affines: np.ndarray
    duplicates: tuple[tuple[int, int], ...]
    gaps: tuple[tuple[int, int], ...]
    step_mm: float
    tilt_degrees: float
    step_known: bool = True

    @property
    def regular(self) -> bool:
        """One affine describes all slices."""
        return self.affine is not None


def grid_tolerance(voxel_mm: float) -> float:
    """How far from the regular grid, in mm, a slice may lie along an axis with voxels of this size."""
    return min(max(0.05 * voxel_mm, 0.1), 0.2 * voxel_mm)


def slice_normal(orientation: Sequence[float]) -> np.ndarray:
    """Unit slice normal in LPS: column direction x row direction."""
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def frame_affine(frame: Frame) -> np.ndarray:
    """Affine of one frame: ``(col, row, slice, 1)`` -> RAS mm; column 2 is the unit slice normal.

    Reference:
        DICOM PS3.3 C.7.6.2.1.1, with LPS negated to RAS.
    """
    affine = np.eye(4)
    affine[:3, 0] = np.array(frame.orientation[:3]) * frame.spacing[1]
    affine[:3, 1] = np.array(frame.orientation[3:]) * frame.spacing[0]
    affine[:3, 2] = slice_normal(frame.orientation)
    affine[:3, 3] = frame.position
    return LPS_TO_RAS @ affine


def layout(frames: Sequence[Frame]) -> Layout:
    """Sort frames along their common slice normal and describe how they lie.

    Args:
        frames: At least one; the same orientation and spacing.
    """
    normal = slice_normal(frames[0].orientation)
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    positions, along = positions[order], along[order]
    slice_affines = np.stack([frame_affine(frames[i]) for i in order])
    steps = np.diff(along)
    duplicates = tuple((int(i), int(i) + 1) for i in np.flatnonzero(steps < SAME_POSITION_MM))
    found = Layout(
        order=tuple(int(i) for i in order),
        affine=None,
        slice_affines=slice_affines,
        duplicates=duplicates,
        gaps=(),
        step_mm=float(np.median(steps)) if len(steps) else 1.0,
        tilt_degrees=0.0,
    )
    if len(frames) == 1:
        step, known = _lone_step(frames[0])
        return replace(found, affine=_affine(slice_affines[0], normal * step), step_mm=step, step_known=known)
    if duplicates:
        return found
    mean_step = (positions[-1] - positions[0]) / (len(positions) - 1)
    forward = float(mean_step @ normal)
    if _on_grid(positions, mean_step, normal, frames[0].spacing):
        sideways = float(np.linalg.norm(mean_step - forward * normal))
        # What stays within the tolerance over the whole stack is the rounding of positions, not a tilt.
        sheared = sideways * (len(positions) - 1) > grid_tolerance(min(frames[0].spacing))
        tilt = float(np.degrees(np.arctan2(sideways, forward))) if sheared else 0.0
        return replace(found, affine=_affine(slice_affines[0], mean_step), step_mm=forward, tilt_degrees=tilt)
    gaps = _gaps(steps, [frames[i].thickness for i in order])
    return replace(found, gaps=gaps, step_mm=float(steps.min())) if gaps else found


def _lone_step(frame: Frame) -> tuple[float, bool]:
    """Slice step of a single slice: its thickness, else the distance that it states, else 1 mm."""
    for value in (frame.thickness, frame.step):
        if value is not None and np.isfinite(value) and value != 0:
            return abs(value), True
    return 1.0, False


def _affine(first: np.ndarray, step_lps: np.ndarray) -> np.ndarray:
    affine = first.copy()
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ step_lps
    return affine


def _on_grid(positions: np.ndarray, step: np.ndarray, normal: np.ndarray, spacing: tuple[float, float]) -> bool:
    """Is every slice within `grid_tolerance` of its place on the regular grid, forwards and sideways?"""
    off = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    forward = off @ normal
    sideways = np.linalg.norm(off - forward[:, None] * normal, axis=1)
    return bool(
        np.abs(forward).max() <= grid_tolerance(step @ normal) and sideways.max() <= grid_tolerance(min(spacing))
    )


def _gaps(steps: np.ndarray, thickness: list[float | None]) -> tuple[tuple[int, int], ...]:
    """Places after which slices are missing: isolated steps of a whole multiple of the regular one.

    A protocol may change its spacing on purpose (thin slices through the skull base, thick ones above): then the
    thickness changes with it, or the wide steps stand together at one end. That is uneven, not incomplete.
    """
    regular = float(steps.min())
    multiples = np.rint(steps / regular)
    if np.abs(steps / regular - multiples).max() > _MULTIPLE_TOLERANCE:
        return ()
    wide = np.flatnonzero(multiples > 1)
    known = {round(value, 3) for value in thickness if value is not None}
    run = len(wide) > 1 and wide[-1] - wide[0] == len(wide) - 1 and (wide[0] == 0 or wide[-1] == len(steps) - 1)
    if len(known) > 1 or run or 2 * len(wide) > len(steps):
        return ()
    return tuple((int(i), int(multiples[i]) - 1) for i in wide)
