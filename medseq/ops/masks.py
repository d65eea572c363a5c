"""Cartesian undersampling patterns: which points of k-space are measured.

One-dimensional patterns sample whole columns (phase encoding along the last axis), two-dimensional ones single points.
Every pattern keeps a calibration region in the centre and reports the acceleration it really has. The generator gives
uniform float64 draws only, so a seed means the same pattern on every platform. Points stand with the zero frequency at
index ``n // 2``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseq.errors import InputError

__all__ = [
    "SamplingMask",
    "acs_columns",
    "acs_disc",
    "equispaced_mask",
    "gaussian_1d_mask",
    "gaussian_2d_mask",
    "magic_mask",
    "poisson_disc_mask",
    "random_mask",
]


@dataclass(frozen=True)
class SamplingMask:
    """A pattern and its calibration region.

    Attributes:
        mask: ``(1, row or 1, col)``, True where measured.
        acs: Same shape, True in the calibration region; a subset of `mask`.
    """

    mask: Bool[Tensor, "1 row_or_1 col"]
    acs: Bool[Tensor, "1 row_or_1 col"]

    @property
    def acceleration(self) -> float:
        """Points over measured points: what the pattern has, not what was asked for."""
        return self.mask.numel() / int(self.mask.sum())


def acs_columns(cols: int, count: int) -> Bool[Tensor, " col"]:
    """The `count` columns around the centre, starting at ``(cols - count + 1) // 2`` as in fastMRI."""
    line = torch.zeros(cols, dtype=torch.bool)
    start = (cols - count + 1) // 2
    line[start : start + count] = True
    return line


def acs_disc(shape: tuple[int, int], fraction: float) -> Bool[Tensor, "row col"]:
    """A disc around the centre that covers about `fraction` of the matrix; its radius is whole pixels, as direct's."""
    rows, cols = shape
    radius = int(math.sqrt(rows * cols * fraction / math.pi))
    y, x = torch.arange(rows) - rows // 2, torch.arange(cols) - cols // 2
    return y[:, None] ** 2 + x**2 < radius**2


def random_mask(cols: int, acceleration: float, center_fraction: float, generator: torch.Generator) -> SamplingMask:
    """Columns drawn independently, so that the expected acceleration is the one asked for (fastMRI's knee masks).

    Args:
        cols: Number of columns.
        acceleration: Expected acceleration, calibration columns included.
        center_fraction: Part of the columns in the calibration region.
        generator: Source of randomness.

    Raises:
        InputError: The calibration region alone has more columns than the acceleration allows, or nonsense numbers.

    Reference:
        Zbontar et al., fastMRI, arXiv:1811.08839, section 5.3.
    """
    center = _center_columns(cols, acceleration, center_fraction)
    if acceleration == 1:
        return _one_dimensional(torch.ones_like(center), center)
    return _one_dimensional(_random_line(center, acceleration, _uniform(generator, cols)), center)


def _random_line(center: Tensor, acceleration: float, draws: Tensor) -> Tensor:
    """Columns whose draw is below the probability that reaches the acceleration."""
    cols, count = center.numel(), int(center.sum())
    return draws < (cols / acceleration - count) / (cols - count)


def equispaced_mask(
    cols: int,
    acceleration: float,
    center_fraction: float,
    generator: torch.Generator | None = None,
    *,
    offset: int | None = None,
) -> SamplingMask:
    """Evenly spaced columns at fastMRI's adjusted spacing, which makes up for the calibration columns.

    Args:
        cols: Number of columns.
        acceleration: Acceleration with the calibration columns.
        center_fraction: Part of the columns in the calibration region.
        generator: Draws the first column where `offset` is None.
        offset: First column.

    Raises:
        InputError: See `random_mask`; or neither generator nor offset is given.

    Reference:
        Muckley et al., Results of the 2020 fastMRI challenge, arXiv:2012.06318, section II-B.
    """
    center = _center_columns(cols, acceleration, center_fraction)
    if acceleration == 1:
        return _one_dimensional(torch.ones_like(center), center)
    count = int(center.sum())
    spacing = acceleration * (count - cols) / (count * acceleration - cols)
    start = _offset(round(spacing), generator, offset)
    line = torch.zeros(cols, dtype=torch.bool)
    position = torch.arange(start, cols - 1, spacing, dtype=torch.float64)
    line[position.round().long()] = True
    return _one_dimensional(line, center)


def magic_mask(
    cols: int,
    acceleration: float,
    center_fraction: float,
    generator: torch.Generator | None = None,
    *,
    offset: int | None = None,
) -> SamplingMask:
    """Evenly spaced columns, the two halves of k-space shifted so that conjugate symmetry fills what is missing.

    A column and its mirror image carry the same information for a real image; the halves are therefore sampled at
    interleaved positions. The spacing is the integer next to the one that reaches the acceleration.

    Args:
        cols: Number of columns.
        acceleration: Acceleration with the calibration columns; met as well as an integer spacing allows.
        center_fraction: Part of the columns in the calibration region.
        generator: Draws the offset where it is None.
        offset: Position of the comb.

    Raises:
        InputError: See `equispaced_mask`.

    Reference:
        Defazio, Offset sampling improves deep learning based accelerated MRI reconstructions by exploiting symmetry,
        arXiv:1912.01101.
    """
    center = _center_columns(cols, acceleration, center_fraction)
    if acceleration == 1:
        return _one_dimensional(torch.ones_like(center), center)
    spacing = max(1, round(cols / (cols / acceleration - int(center.sum()))))
    start = _offset(spacing, generator, offset)
    # Distances from the zero frequency, of the positive and of the negative half.
    first, second = (start + 1, start + 2) if start % 2 == 0 else (start + 2, start - 1)
    half = (cols + 1) // 2
    corner = torch.zeros(cols, dtype=torch.bool)
    corner[:half][first::spacing] = True
    negative = torch.zeros(cols - half, dtype=torch.bool)
    negative[second::spacing] = True
    corner[half:] = negative.flip(0)
    return _one_dimensional(torch.fft.fftshift(corner), center)


def gaussian_1d_mask(
    cols: int,
    acceleration: float,
    center_fraction: float,
    generator: torch.Generator,
    *,
    sigma: float | None = None,
) -> SamplingMask:
    """Columns drawn without replacement from a normal density around the centre; their number is exact.

    Args:
        cols: Number of columns.
        acceleration: Acceleration with the calibration columns, met to the next whole column.
        center_fraction: Part of the columns in the calibration region.
        generator: Source of randomness.
        sigma: Standard deviation in columns; None for ``6 sqrt(cols // 2)`` as direct has it. (atommic speaks of a
            full width at half maximum f as a fraction of half the matrix: ``f * cols / 2 / sqrt(8 ln 2)``.)

    Raises:
        InputError: See `random_mask`.
    """
    center = _center_columns(cols, acceleration, center_fraction)
    width = sigma if sigma is not None else 6 * math.sqrt(cols // 2)
    density = -0.5 * ((torch.arange(cols, dtype=torch.float64) - cols // 2) / width) ** 2
    line = _draw_exactly(density, center, round(cols / acceleration), generator)
    return _one_dimensional(line, center)


def gaussian_2d_mask(
    shape: tuple[int, int],
    acceleration: float,
    center_fraction: float,
    generator: torch.Generator,
    *,
    sigma: tuple[float, float] | None = None,
) -> SamplingMask:
    """Points drawn without replacement from a normal density around the centre; their number is exact.

    Args:
        shape: Rows and columns.
        acceleration: Acceleration with the calibration disc.
        center_fraction: Part of the area in the calibration disc.
        generator: Source of randomness.
        sigma: Standard deviations in rows and columns; None for ``6 sqrt(n // 2)`` of each.

    Raises:
        InputError: See `random_mask`.
    """
    rows, cols = shape
    center = acs_disc(shape, center_fraction)
    _check_rates(rows * cols, int(center.sum()), acceleration)
    up, across = sigma if sigma is not None else (6 * math.sqrt(rows // 2), 6 * math.sqrt(cols // 2))
    y = (torch.arange(rows, dtype=torch.float64) - rows // 2) / up
    x = (torch.arange(cols, dtype=torch.float64) - cols // 2) / across
    density = -0.5 * (y[:, None] ** 2 + x**2)
    points = _draw_exactly(density.flatten(), center.flatten(), round(rows * cols / acceleration), generator)
    return SamplingMask(points.view(1, rows, cols), center[None])


def poisson_disc_mask(
    shape: tuple[int, int],
    acceleration: float,
    center_fraction: float,
    generator: torch.Generator,
    *,
    crop_corner: bool = False,
) -> SamplingMask:
    """Variable-density Poisson disc: no two points closer than a distance that grows towards the edge.

    The minimum distance is ``1 + slope * r`` pixels with r from 0 in the centre to 1 at the middle of an edge. The
    slope is found by bisection over one fixed order of trial points; the few points too many are then dropped at
    random, which keeps every distance and makes the acceleration exact.

    Args:
        shape: Rows and columns.
        acceleration: Acceleration with the calibration disc.
        center_fraction: Part of the area in the calibration disc.
        generator: Source of randomness.
        crop_corner: Sample nothing outside the inscribed ellipse.

    Raises:
        InputError: See `random_mask`; or the ellipse alone has fewer points than are asked for.

    Reference:
        Bridson, Fast Poisson disk sampling in arbitrary dimensions, SIGGRAPH 2007, for the criterion; points are
        tried in random order here, on the grid.
    """
    rows, cols = shape
    center = acs_disc(shape, center_fraction)
    _check_rates(rows * cols, int(center.sum()), acceleration)
    radius = _radius(shape)
    allowed = radius <= 1 if crop_corner else torch.ones_like(radius, dtype=torch.bool)
    wanted = round(rows * cols / acceleration)
    if int((allowed | center).sum()) < wanted:
        raise InputError("too few points inside the ellipse", found=int(allowed.sum()), wanted=wanted)
    order = torch.argsort(_uniform(generator, rows * cols))
    trial = order[(allowed & ~center).flatten()[order]]
    low, high = 0.0, float(max(shape))
    best = allowed | center
    # Each halving costs one pass; ten leave at most a per mille of the slope open.
    for _ in range(10):
        slope = 0.5 * (low + high) if low else min(0.5 * high, 4 * acceleration)
        points = _throw(trial, center, 1 + slope * radius)
        count = int(points.sum())
        if count >= wanted:
            low, best = slope, points
        else:
            high = slope
        if wanted <= count <= 1.02 * wanted:
            break
    extra = trial[best.flatten()[trial]]
    best.view(-1)[extra[len(extra) - (int(best.sum()) - wanted) :]] = False
    return SamplingMask(best[None], center[None])


def _throw(trial: Tensor, center: Tensor, distance: Tensor) -> Bool[Tensor, "row col"]:
    """Accept trial points in their order, each blocking a disc of its own distance; the centre is sampled anyway."""
    rows, cols = center.shape
    reach = distance.flatten().tolist()
    blocked = [bytearray(cols) for _ in range(rows)]
    ones = bytes([1]) * cols
    accepted = []
    for index in trial.tolist():
        row, col = divmod(index, cols)
        if blocked[row][col]:
            continue
        accepted.append(index)
        r = reach[index]
        half = math.ceil(r) - 1
        for y in range(max(0, row - half), min(rows, row + half + 1)):
            # Points strictly closer than r are blocked: the width of the disc on this row.
            span = r * r - (y - row) ** 2
            width = math.ceil(math.sqrt(span)) - 1
            left, right = max(0, col - width), min(cols, col + width + 1)
            blocked[y][left:right] = ones[: right - left]
    points = center.clone()
    points.view(-1)[torch.tensor(accepted, dtype=torch.long)] = True
    return points


def _draw_exactly(log_density: Tensor, center: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """The centre and as many more points as make `wanted`, without replacement (the Gumbel top-k draw)."""
    uniform = _uniform(generator, log_density.numel()).clamp_min(torch.finfo(torch.float64).tiny)
    key = log_density - torch.log(-torch.log(uniform))
    key[center] = -torch.inf
    line = center.clone()
    line[torch.topk(key, max(0, wanted - int(center.sum()))).indices] = True
    return line


def _radius(shape: tuple[int, int]) -> Float[Tensor, "row col"]:
    """Distance from the centre ``n // 2``, 1 at the middle of an edge."""
    rows, cols = shape
    y = (torch.arange(rows, dtype=torch.float64) - rows // 2) / (rows / 2)
    x = (torch.arange(cols, dtype=torch.float64) - cols // 2) / (cols / 2)
    return torch.sqrt(y[:, None] ** 2 + x**2)


def _uniform(generator: torch.Generator, count: int) -> Float[Tensor, " count"]:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _offset(high: int, generator: torch.Generator | None, offset: int | None) -> int:
    if offset is not None:
        return offset
    if generator is None:
        raise InputError("the first column is not determined", remedy="give a generator or an offset")
    return min(int(_uniform(generator, 1) * high), high - 1)


def _one_dimensional(line: Tensor, center: Tensor) -> SamplingMask:
    return SamplingMask((line | center)[None, None], center[None, None])


def _center_columns(cols: int, acceleration: float, center_fraction: float) -> Tensor:
    if not 0 <= center_fraction <= 1:
        raise InputError("center_fraction is out of range", found=center_fraction, wanted="0 to 1")
    count = round(cols * center_fraction)
    _check_rates(cols, count, acceleration)
    return acs_columns(cols, count)


def _check_rates(size: int, center: int, acceleration: float) -> None:
    if not acceleration >= 1:
        raise InputError("acceleration must be at least 1", found=acceleration)
    if center * acceleration >= size and acceleration > 1:
        raise InputError(
            "the calibration region alone has more points than the acceleration allows",
            found=f"{center} of {size} points in the centre, acceleration {acceleration}",
            wanted=f"an acceleration below {size / center:.3g}",
            remedy="lower the acceleration or center_fraction",
        )
