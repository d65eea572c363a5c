"""How the planes of a volume are laid on a screen: which axis runs where, which letters stand at the edges. numpy only.

Radiological convention: in axial and coronal planes the patient's right is on the left of the screen; in sagittal
planes anterior is on the left. Planes run along the axes of the volume, so a tilted series is shown as it was
acquired; the letters tell how it lies.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseq.errors import InputError
from medseq.io.volume import VolumeHeader

__all__ = ["PLANES", "Geometry", "Plane", "PlaneLayout", "letters", "require_plane"]

Plane = Literal["stack", "axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("stack", "axial", "coronal", "sagittal")
# RAS direction that grows to the right and downwards on the screen, and that of growing slice numbers.
_SCREEN: dict[str, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_LETTERS = (("R", "L"), ("A", "P"), ("H", "F"))
# A direction is named by a second letter when it leans more than this towards it (sine of 20 degrees).
_LEAN = 0.342


@dataclass(frozen=True)
class PlaneLayout:
    """One way through a volume ``[slice, row, col]``.

    Attributes:
        plane: Its name.
        axes: Axes of the volume that run through the slices, down the screen and to the right.
        flips: Whether each of these runs against the index of the volume.
        shape: Slices, rows and columns, in voxels.
        row_mm: Height of a voxel on the screen in mm.
        col_mm: Width.
        letters: At the ``left``, ``right``, ``top`` and ``bottom`` edge.
        step_mm: Distance between slices.
    """

    plane: Plane
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    row_mm: float
    col_mm: float
    letters: dict[str, str]
    step_mm: float

    def image(self, volume: np.ndarray, index: int) -> np.ndarray:
        """Slice `index` of ``[slice, row, col]`` as it stands on the screen."""
        along = self.shape[0] - 1 - index if self.flips[0] else index
        return self.turned(np.take(volume, along, axis=self.axes[0]))

    def turned(self, plane: np.ndarray) -> np.ndarray:
        """A plane whose axes are those of the volume without the slice axis, as it stands on the screen."""
        if self.axes[1] > self.axes[2]:
            plane = plane.swapaxes(0, 1)
        return plane[:: -1 if self.flips[1] else 1, :: -1 if self.flips[2] else 1]

    def voxel(self, index: float, row: float, col: float) -> tuple[float, float, float]:
        """Index ``[slice, row, col]`` of the volume for a place on the screen, in voxels from the top left."""
        out = [0.0, 0.0, 0.0]
        for axis, flip, size, value in zip(self.axes, self.flips, self.shape, (index, row, col), strict=True):
            out[axis] = size - 1 - value if flip else value
        return out[0], out[1], out[2]

    def place(self, voxel: tuple[float, float, float]) -> tuple[float, float, float]:
        """Slice, row and column on the screen of an index of the volume."""
        found = [
            size - 1 - voxel[axis] if flip else voxel[axis]
            for axis, flip, size in zip(self.axes, self.flips, self.shape, strict=True)
        ]
        return found[0], found[1], found[2]


class Geometry:
    """Millimetres and layouts of a volume.

    Args:
        header: Of the volume.
    """

    def __init__(self, header: VolumeHeader) -> None:
        self.shape = header.shape[:3]
        self._affine, self._slices = header.affine, header.slice_affines
        self.is_even = header.affine is not None
        self.directions, self.spacing = _directions(header)
        self.layouts = _layouts(self.directions, self.spacing, self.shape)

    def mm(self, voxel: tuple[float, float, float]) -> np.ndarray:
        """RAS millimetres of an index ``[slice, row, col]``; between uneven slices, on the line that joins them."""
        s, row, col = voxel
        if self._affine is not None:
            return (self._affine @ (col, row, s, 1.0))[:3]
        low = int(np.clip(np.floor(s), 0, self.shape[0] - 1))
        high, share = min(low + 1, self.shape[0] - 1), float(s - low)
        ends = [(self._slices[k] @ (col, row, 0.0, 1.0))[:3] for k in (low, high)]
        return ends[0] * (1 - share) + ends[1] * share

    def screen_affine(self, plane: Plane) -> np.ndarray:
        """4x4: ``(column, row, slice, 1)`` on the screen, from 0 at centres of voxels, to RAS mm.

        Of uneven slices the mean distance is used; `mm` is exact.
        """
        layout = self.layouts[plane]
        count = max(layout.shape[0] - 1, 1)
        corner = self.mm(layout.voxel(0, 0, 0))
        out = np.eye(4)
        out[:3, 0] = self.mm(layout.voxel(0, 0, 1)) - corner
        out[:3, 1] = self.mm(layout.voxel(0, 1, 0)) - corner
        out[:3, 2] = (self.mm(layout.voxel(count, 0, 0)) - corner) / count
        out[:3, 3] = corner
        return out

    def distance_mm(self, a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
        """Millimetres between two indices."""
        return float(np.linalg.norm(self.mm(a) - self.mm(b)))

    def position_mm(self, plane: Plane, index: int) -> float:
        """Where a slice lies along its own normal, in mm of the patient (superior, anterior and right are positive)."""
        layout = self.layouts[plane]
        middle = layout.voxel(index, (layout.shape[1] - 1) / 2, (layout.shape[2] - 1) / 2)
        normal = self.directions[layout.axes[0]]
        axis = int(np.argmax(np.abs(normal)))
        return float(self.mm(middle) @ (normal * np.sign(normal[axis])))


def letters(direction: np.ndarray) -> str:
    """What a direction in RAS points to: ``L``, or ``LA`` where it leans more than 20 degrees towards A.

    Reference:
        DICOM PS3.3 C.7.6.1.1.1 (Patient Orientation), with H and F for the third axis.
    """
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(
        _LETTERS[axis][int(direction[axis] < 0)]
        for n, axis in enumerate(order)
        if n == 0 or abs(direction[axis]) > _LEAN
    )


def _directions(header: VolumeHeader) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Unit directions in RAS along slice, row and column, and the spacing along them."""
    in_plane = header.slice_affines[0]
    steps = [header.slice_affines[0, :3, 2], in_plane[:3, 1], in_plane[:3, 0]]
    if header.affine is not None:
        steps[0] = header.affine[:3, 2]
    elif header.shape[0] > 1:
        steps[0] = header.slice_affines[-1, :3, 3] - header.slice_affines[0, :3, 3]
    spacing = header.spacing_mm
    unit = np.stack([step / (np.linalg.norm(step) or 1.0) for step in steps])
    return unit, (spacing[0], float(np.linalg.norm(steps[1])), float(np.linalg.norm(steps[2])))


def _layouts(
    directions: np.ndarray, spacing: tuple[float, float, float], shape: tuple[int, ...]
) -> dict[Plane, PlaneLayout]:
    order = _ras_order(directions)
    axis_of = {ras: axis for axis, ras in enumerate(order)}
    layouts: dict[Plane, PlaneLayout] = {}
    for name in PLANES[1:]:
        right, down, through = _SCREEN[name]
        layouts[name] = _layout(name, axis_of[through], axis_of[down], axis_of[right], directions, spacing, shape)
    # The stack is the way it was acquired: the plane whose slices are the volume's.
    own = next(layout for layout in layouts.values() if layout.axes[0] == 0)
    # Slices are numbered as they are stored, so that a slice number means the same everywhere.
    flips = (False, *own.flips[1:])
    stack = PlaneLayout("stack", own.axes, flips, own.shape, own.row_mm, own.col_mm, own.letters, own.step_mm)
    return {"stack": stack, **layouts}


def _ras_order(directions: np.ndarray) -> tuple[int, int, int]:
    """Which RAS axis each axis of the volume follows: the assignment with the largest sum of cosines."""
    best = max(
        ((a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3),
        key=lambda order: sum(abs(directions[axis, ras]) for axis, ras in enumerate(order)),
    )
    return best


def _layout(
    plane: Plane,
    through: int,
    down: int,
    right: int,
    directions: np.ndarray,
    spacing: tuple[float, float, float],
    shape: tuple[int, ...],
) -> PlaneLayout:
    ras_right, ras_down, ras_through = _SCREEN[plane]
    # To the right of the screen lies left or posterior, down lies posterior or the feet: all negative in RAS.
    flip_right = bool(directions[right, ras_right] > 0)
    flip_down = bool(directions[down, ras_down] > 0)
    # Slices run from the feet up, from the back forward, from the right to the left.
    flip_through = bool((directions[through, ras_through] < 0) != (plane == "sagittal"))
    to_right = directions[right] * (-1 if flip_right else 1)
    to_bottom = directions[down] * (-1 if flip_down else 1)
    edges = {
        "left": letters(-to_right),
        "right": letters(to_right),
        "top": letters(-to_bottom),
        "bottom": letters(to_bottom),
    }
    return PlaneLayout(
        plane,
        (through, down, right),
        (flip_through, flip_down, flip_right),
        (shape[through], shape[down], shape[right]),
        spacing[down],
        spacing[right],
        edges,
        spacing[through],
    )


def require_plane(name: str) -> Plane:
    """A plane by its name.

    Raises:
        InputError: Another word.
    """
    for plane in PLANES:
        if plane == name:
            return plane
    raise InputError("no such plane", found=name[:20], wanted=", ".join(PLANES))
