"""What a simulated PET scan is of: uptake of a tracer like FDG in brains and drawn bodies, in SUV. No patient's data.

Grey matter takes up about four times as much as white matter, fluid almost nothing; regions vary, lesions are hot or
cold. The maps of tissue are probabilities of the MNI152 template, or are classified from the T1 intensity of one head.

Reference:
    Mazziotta et al., Quantitation in positron emission computed tomography: 5. Physical-anatomical effects, J. Comput.
    Assist. Tomogr. 5(5), 1981 (grey to white about 4:1); NEMA NU 2 (hot spheres of 10 to 37 mm in a warm body).
"""

import math
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.data.coil_fields import smooth_field, uniform
from medseq.data.example import colin27, colin27_brain, inia19, mni152
from medseq.errors import InputError

__all__ = ["Head", "Uptake", "brain_uptake", "drawn_uptake", "tissue_maps"]

Head = Literal["mni152", "colin27", "inia19"]


class Uptake(NamedTuple):
    """The object of one slice.

    Attributes:
        suv: Uptake in SUVbw, ``(row, col)``.
        body: 1 where there is tissue, which attenuates like water.
        t1: T1-weighted MR of the same slice, its 99th percentile near 1; zeros where there is none.
    """

    suv: Float[Tensor, "row col"]
    body: Float[Tensor, "row col"]
    t1: Float[Tensor, "row col"]


class _Tissue(NamedTuple):
    """Volumes ``(4, slice, row, col)``: grey matter, white matter, head and T1; their slices are those of the brain."""

    maps: Float[Tensor, "four slice row col"]
    voxel_mm: float


@cache
def tissue_maps(head: Head) -> _Tissue:
    """Grey matter, white matter, head outline and T1 of one head.

    ``mni152``: the probability maps of the template (an average of 152 people), with a rim of 10 mm for the scalp that
    it lacks. ``colin27``: another person, classified here by T1 intensity within the brain mask of mricron.
    ``inia19``: a macaque's brain, classified likewise.

    Raises:
        InputError: Another name.
    """
    from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt

    if head == "mni152":
        gm, wm, t1 = (np.asarray(mni152(kind).array, dtype=np.float32) / 255.0 for kind in ("gm", "wm", "t1"))
        outline = distance_transform_edt(t1 <= 0.1) < 10
        voxel_mm = 1.0
    elif head == "colin27":
        brain, whole = (np.asarray(volume().array, dtype=np.float32) for volume in (colin27_brain, colin27))
        gm, wm = _classified(brain, fluid=60.0, white=100.0)
        t1, voxel_mm = whole / np.percentile(whole[whole > 0], 99), 1.0
        outline = np.stack([binary_fill_holes(plane) for plane in binary_closing(whole > 25, iterations=2)])
    elif head == "inia19":
        t1 = np.asarray(inia19().array, dtype=np.float32)
        gm, wm = _classified(t1, fluid=62.0, white=100.0)
        t1, voxel_mm = t1 / np.percentile(t1[t1 > 0], 99), 0.5
        outline = distance_transform_edt(t1 <= 0.1) < 6
    else:
        raise InputError("unknown head", found=head, wanted="mni152, colin27 or inia19")
    maps = np.stack([gm, wm, outline.astype(np.float32), t1.clip(0, 1.6)])
    area = (gm + wm).sum(axis=(1, 2))
    first, last = np.flatnonzero(area > 0.25 * area.max())[[0, -1]]
    return _Tissue(torch.from_numpy(maps[:, first : last + 1]).half(), voxel_mm)


def _classified(t1: np.ndarray, fluid: float, white: float) -> tuple[np.ndarray, np.ndarray]:
    """Memberships of grey and white matter by intensity: soft steps at two thresholds."""
    wm = 1 / (1 + np.exp(-(t1 - white) / 4.0))
    return (1 / (1 + np.exp(-(t1 - fluid) / 5.0))) * (1 - wm), wm


def brain_uptake(
    head: Head, side: int, pixel_mm: float, generator: torch.Generator, *, at: float | None = None, plain: bool = False
) -> Uptake:
    """An axial slice of a head with the uptake of FDG; partly filled pixels take the mean of what is in them.

    Args:
        head: Whose anatomy.
        side: Rows and columns.
        pixel_mm: Pixel size.
        generator: Draws uptake, regions, lesions, position, tilt of the slice in its plane, size.
        at: Position of the slice, 0 (lowest with a quarter of the largest slice's brain) to 1; None draws one.
        plain: Nothing is drawn but regional variation and lesions: the head as it is, in its own size.
    """
    maps, voxel_mm = tissue_maps(head)
    share = uniform((0.0, 1.0), generator) if at is None else at
    index = round(share * (maps.shape[1] - 1))
    size = 1.0 if plain else uniform((0.88, 1.12), generator)
    angle = 0.0 if plain else uniform((-0.25, 0.25), generator)
    flip = not plain and uniform((0, 1), generator) < 0.5
    plane = _resample(maps[:, index].float(), side, pixel_mm / (voxel_mm * size), angle, flip)
    gm, wm, outline, t1 = plane
    grey = uniform((5.0, 11.0), generator)
    ratio = uniform((2.8, 4.5), generator)
    region = torch.exp(0.12 * smooth_field((side, side), 5, generator)[0])
    brain = (gm + wm).clamp(max=1.0)
    soft = (outline - brain).clamp(min=0.0) * uniform((0.3, 1.5), generator)
    suv = (grey * gm + grey / ratio * wm) * region + soft
    suv = _lesions(suv, brain > 0.5, pixel_mm, (0.5 * grey, 2.0 * grey), generator)
    return Uptake(suv, outline.clamp(0, 1), t1)


def drawn_uptake(side: int, pixel_mm: float, generator: torch.Generator) -> Uptake:
    """A drawn body: an ellipse of warm tissue, organs of any uptake in it, and hot or cold spheres."""
    body = _ellipse(side, 0.0, 0.0, uniform((0.5, 0.92), generator), uniform((0.4, 0.85), generator), 0.0)
    suv = uniform((0.5, 2.5), generator) * body
    for _ in range(int(torch.randint(7, (), generator=generator))):
        cx, cy, rx, ry, turn = (
            uniform(limits, generator) for limits in ((-0.5, 0.5),) * 2 + ((0.04, 0.3),) * 2 + ((0, 3),)
        )
        level = uniform((0.05, 1.0), generator) ** 2 * 8.0
        organ = _ellipse(side, cx, cy, rx, ry, turn) * body
        suv = suv * (1 - organ) + level * organ
    suv = suv * torch.exp(0.1 * smooth_field((side, side), 6, generator)[0])
    suv = _lesions(suv, body > 0.5, pixel_mm, (2.0, 15.0), generator)
    return Uptake(suv, body, torch.zeros_like(suv))


def _lesions(
    suv: Tensor, inside: Tensor, pixel_mm: float, hot: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Zero to three discs of 4 to 30 mm: two in three take up a value of `hot`, the others lose uptake.

    Their middles lie `inside`; one at the edge bulges out.
    """
    places = torch.nonzero(inside)
    if not len(places):
        return suv
    side = suv.shape[-1]
    for _ in range(int(torch.randint(4, (), generator=generator))):
        row, col = places[int(torch.randint(len(places), (), generator=generator))].tolist()
        radius = 0.5 * math.exp(uniform((math.log(4.0), math.log(30.0)), generator)) / pixel_mm / (side / 2)
        cx, cy = (2 * col + 1) / side - 1, (2 * row + 1) / side - 1
        turn = uniform((0, math.pi), generator)
        disc = _ellipse(side, cx, cy, radius, radius * uniform((0.6, 1.0), generator), turn)
        value = uniform(hot, generator) if uniform((0, 1), generator) < 0.67 else uniform((0, 0.7), generator) * suv
        suv = suv * (1 - disc) + value * disc
    return suv


def _ellipse(side: int, cx: float, cy: float, rx: float, ry: float, turn: float) -> Tensor:
    """1 inside, 0 outside, a pixel wide in between; coordinates -1..1."""
    axis = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x - cx, y - cy
    along, across = (math.cos(turn) * x + math.sin(turn) * y) / rx, (math.cos(turn) * y - math.sin(turn) * x) / ry
    distance = torch.sqrt(along**2 + across**2 + 1e-12)
    return ((1 - distance) * min(rx, ry) * side / 2 + 0.5).clamp(0, 1)


def _resample(plane: Tensor, side: int, step: float, angle: float, flip: bool) -> Tensor:
    """Planes ``(channel, row, col)`` on `side` pixels of `step` voxels around their middle, drawn twice as fine."""
    rows, cols = plane.shape[-2:]
    axis = (torch.arange(2 * side) - side + 0.5) * (step / 2)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x = -x if flip else x
    cos, sin = math.cos(angle), math.sin(angle)
    grid = torch.stack([(cos * x - sin * y) * (2 / cols), (sin * x + cos * y) * (2 / rows)], dim=-1)
    return F.avg_pool2d(F.grid_sample(plane[None], grid[None], align_corners=False), 2)[0]
