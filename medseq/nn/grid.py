"""Tokens of a slide on its grid of patches, and back."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medseq.errors import InputError, ShapeError

__all__ = ["SlideGrid", "patch_distance"]

# A grid with more cells than this comes from a wrong patch size, not from a slide: 2048 x 2048 patches.
_MAX_CELLS = 2**22


class SlideGrid(NamedTuple):
    """Where each token of a batch lies on a common grid of `rows` x `cols` cells.

    cells: Row-major number of each token's cell, ``(batch, length)``; no two tokens of an item share one.
    """

    cells: Int[Tensor, "batch length"]
    rows: int
    cols: int

    @classmethod
    def square(cls, x: Float[Tensor, "batch length dim"]) -> "SlideGrid":
        """Tokens without a place: row by row on the smallest square that holds them."""
        batch, length, _ = x.shape
        cols = math.isqrt(max(length - 1, 0)) + 1
        cells = torch.arange(length, device=x.device).expand(batch, length)
        return cls(cells, -(-length // cols), cols)

    @classmethod
    def of(cls, x: Float[Tensor, "batch length dim"], coords: Tensor, patch_size: float | None = None) -> "SlideGrid":
        """Tokens at ``cell = round((coords - min(coords)) / patch_size)``.

        Args:
            x: Tokens.
            coords: Level-0 pixels (x, y) of the tokens, ``(batch, length, 2)`` or, for a batch of 1, ``(length, 2)``.
            patch_size: Distance of neighbouring patches; None for `patch_distance` of each item.

        Raises:
            ShapeError: Coordinates do not fit the tokens.
            InputError: Two patches in one cell, no way to tell the patch size, or a grid that is far too large.
        """
        coords = coords[None] if coords.dim() == 2 else coords
        if coords.shape != (*x.shape[:2], 2):
            raise ShapeError(
                "coords do not fit the tokens",
                found=f"coords {tuple(coords.shape)}, tokens {tuple(x.shape)}",
                wanted=(*x.shape[:2], 2),
            )
        if patch_size is not None and not patch_size > 0:
            raise InputError("patch size", found=patch_size, wanted="> 0")
        places = []
        for item in coords.to(x.device, torch.float64):
            size = patch_size if patch_size is not None else patch_distance(item)
            places.append(_places(item, size))
        cols, rows = (torch.stack(places).amax((0, 1)) + 1).tolist()
        if rows * cols > _MAX_CELLS:
            raise InputError(
                "the slide's grid is far too large",
                found=f"{rows} x {cols} cells for {x.shape[1]} patches",
                remedy="check patch_size_level0 and the unit of the coordinates (level-0 pixels)",
            )
        cells = torch.stack([place[:, 1] * cols + place[:, 0] for place in places])
        _check_alone(cells, coords)
        return cls(cells, rows, cols)

    @property
    def is_full(self) -> bool:
        """Whether there are no holes."""
        return self.cells.shape[1] == self.rows * self.cols

    @property
    def mask(self) -> Bool[Tensor, "batch row col"]:
        """True where there is a token."""
        empty = torch.zeros(len(self.cells), self.rows * self.cols, dtype=torch.bool, device=self.cells.device)
        return empty.scatter(1, self.cells, True).view(-1, self.rows, self.cols)

    def scatter(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch dim row col"]:
        """Tokens to their cells; 0 in holes."""
        index = self.cells[:, None].expand(-1, x.shape[2], -1)
        empty = x.new_zeros(len(x), x.shape[2], self.rows * self.cols)
        return empty.scatter(2, index, x.mT).view(len(x), -1, self.rows, self.cols)

    def gather(self, image: Float[Tensor, "batch dim row col"]) -> Float[Tensor, "batch length dim"]:
        """Tokens from their cells."""
        return image.flatten(2).gather(2, self.cells[:, None].expand(-1, image.shape[1], -1)).mT


def patch_distance(coords: Float[Tensor, "length 2"]) -> float:
    """Distance of neighbouring patches, in the units of `coords`: with it no two of them share a cell.

    The commonest distance of neighbours in one row or column, which is robust where pieces of tissue have grids of
    their own: those offsets are between rows, not within them. Where few patches are left that is often a multiple, and
    puts two into one cell; then the smallest distance, and then the largest that divides all offsets.

    Raises:
        InputError: No two patches lie in one row or column.
    """
    gaps = []
    for along, across in ((0, 1), (1, 0)):
        by_line = coords[coords[:, along].argsort(stable=True)]
        by_line = by_line[by_line[:, across].argsort(stable=True)]
        step = by_line[1:] - by_line[:-1]
        gaps.append(step[(step[:, across] == 0) & (step[:, along] > 0), along])
    found = torch.cat(gaps)
    if len(found):
        divisor = math.gcd(*(int(step) for axis in (0, 1) for step in coords[:, axis].unique().diff().round().tolist()))
        sizes = [float(found.mode().values), float(found.min()), float(max(divisor, 1))]
        return next((size for size in sizes if _all_alone(coords, size)), sizes[0])
    if len(coords) == 1:
        return 1.0
    raise InputError("no two patches lie in one row or column", remedy="pass patch_size_level0")


def _all_alone(coords: Float[Tensor, "length 2"], size: float) -> bool:
    """Whether every patch has a cell of its own."""
    return len(_places(coords, size).unique(dim=0)) == len(coords)


def _places(coords: Float[Tensor, "length 2"], size: float) -> Int[Tensor, "length 2"]:
    """Column and row of each patch."""
    # Halves go up: round() to even would put neighbours of a half-patch offset into one cell.
    return torch.floor((coords - coords.amin(0)) / size + 0.5).long()


def _check_alone(cells: Tensor, coords: Tensor) -> None:
    """Refuse two tokens in one cell, naming the first such pair."""
    for item, own in enumerate(cells):
        ordered, order = own.sort(stable=True)
        twice = (ordered[1:] == ordered[:-1]).nonzero()
        if len(twice):
            first, second = order[twice[0, 0]].item(), order[twice[0, 0] + 1].item()
            places = ", ".join(str(tuple(coords[item, index].tolist())) for index in (first, second))
            raise InputError(
                "two patches lie in one cell of the slide's grid",
                where=f"item {item}",
                found=f"patches {first} and {second} at {places}",
                wanted="one patch a cell",
                remedy="check patch_size_level0, or drop one of them",
            )
