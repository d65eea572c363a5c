"""Random sampling patterns for training and testing reconstruction: every kind that `medseq.ops.masks` makes."""

import torch
from jaxtyping import Bool
from torch import Tensor

from medseq.data.coil_fields import uniform
from medseq.errors import InputError
from medseq.ops.masks import (
    equispaced_mask,
    gaussian_1d_mask,
    gaussian_2d_mask,
    poisson_disc_mask,
    random_mask,
)

__all__ = ["KINDS", "PatternBank", "draw_pattern"]

KINDS = ("poisson", "gaussian2d", "equispaced", "random", "gaussian1d")

Pattern = Bool[Tensor, "1 row_or_1 col"]


def draw_pattern(
    kind: str, shape: tuple[int, int], acceleration: float, center_fraction: float, generator: torch.Generator
) -> Pattern:
    """One pattern; for the kinds see `KINDS` and `medseq.ops.masks`.

    Args:
        kind: One of `KINDS`.
        shape: Rows and columns.
        acceleration: With the calibration region.
        center_fraction: Part of the columns, or of the area, in the calibration region.
        generator: Source of randomness.

    Raises:
        InputError: Unknown kind, or rates that cannot be met.
    """
    cols = shape[1]
    match kind:
        case "poisson":
            return poisson_disc_mask(shape, acceleration, center_fraction, generator).mask
        case "gaussian2d":
            return gaussian_2d_mask(shape, acceleration, center_fraction, generator).mask
        case "equispaced":
            return equispaced_mask(cols, acceleration, center_fraction, generator).mask
        case "random":
            return random_mask(cols, acceleration, center_fraction, generator).mask
        case "gaussian1d":
            return gaussian_1d_mask(cols, acceleration, center_fraction, generator).mask
    raise InputError("unknown sampling pattern", found=kind, wanted=", ".join(KINDS))


class PatternBank:
    """Random patterns of random rates for one shape after another; Poisson discs are drawn once and mirrored.

    Half to two thirds of the patterns are two-dimensional; the others sample lines, along columns or along rows, a
    tenth of them on one side of k-space only (partial Fourier).

    Args:
        discs: Poisson discs kept for each shape; one takes a tenth of a second and more.
        two_dimensional: Share of patterns that undersample both axes.
    """

    def __init__(self, discs: int = 12, two_dimensional: float = 0.65) -> None:
        self.discs, self.two_dimensional = discs, two_dimensional
        self._kept: dict[tuple[int, int, int], Pattern] = {}

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Pattern:
        """A pattern ``(1, row or 1, col)``."""
        if uniform((0, 1), generator) < self.two_dimensional:
            return self._points(shape, generator)
        across = uniform((0, 1), generator) < 0.7
        cols = shape[1] if across else shape[0]
        kind = ("equispaced", "random", "gaussian1d")[int(torch.randint(3, (), generator=generator))]
        rate = uniform((2.5, 8), generator)
        center = max(8, uniform((0.3, 0.55), generator) * cols / rate) / cols
        center = min(center, 0.8 / rate)
        line = draw_pattern(kind, (1, cols), rate, center, generator)
        if uniform((0, 1), generator) < 0.1:
            line = line.clone()
            line[..., : int(uniform((0.1, 0.35), generator) * cols)] = False
            if uniform((0, 1), generator) < 0.5:
                line = mirror(line, (-1,))
        return line if across else line.transpose(-1, -2).expand(1, *shape).contiguous()

    def _points(self, shape: tuple[int, int], generator: torch.Generator) -> Pattern:
        rows, cols = shape
        if uniform((0, 1), generator) < 0.15:
            rate = uniform((4, 9), generator)
            center = min(uniform((120, 400), generator) / (rows * cols), 0.7 / rate)
            return draw_pattern("gaussian2d", shape, rate, center, generator)
        key = (rows, cols, int(torch.randint(self.discs, (), generator=generator)))
        if key not in self._kept:
            # A disc's own generator: which sample asks first must not matter.
            own = torch.Generator().manual_seed((rows * 4096 + cols) * 4096 + key[2])
            center = uniform((120, 450), own) / (rows * cols)
            rate = uniform((3.5, 11), own)
            center = min(center, 0.7 / rate)
            self._kept[key] = poisson_disc_mask(shape, rate, center, own, crop_corner=uniform((0, 1), own) < 0.3).mask
        axes = [axis for axis in (-2, -1) if uniform((0, 1), generator) < 0.5]
        return mirror(self._kept[key], axes) if axes else self._kept[key]


def mirror(pattern: Pattern, axes: tuple[int, ...] | list[int]) -> Pattern:
    """The pattern seen from the other side of k-space; the zero frequency at ``n // 2`` stays where it is."""
    shifts = [1 if pattern.shape[axis] % 2 == 0 else 0 for axis in axes]
    return torch.roll(torch.flip(pattern, tuple(axes)), shifts, tuple(axes))
