"""Microns per pixel: what a file says, what the user says, and what cannot be a microscope's.

The magnification of the objective is no substitute: a 20x objective gives 0.5 um/px with one camera and 0.37 with
another. It is only used to suggest what to check.
"""

import math
from collections.abc import Sequence
from typing import Literal

from medseq.errors import InputError

__all__ = ["MPP_RANGE", "Mpp", "file_mpp", "missing_mpp", "require_mpp", "user_mpp"]

Mpp = tuple[float, float]

# From oil immersion to a macro photograph; TIFF writers put 72 dpi (353 um/px) where nothing is known.
MPP_RANGE = (0.05, 20.0)
# A tile is square in pixels of level 0: with more than this between x and y it would be a rectangle on the glass.
_ANISOTROPY = 1.05


def user_mpp(mpp: float | Sequence[float]) -> Mpp:
    """``(x, y)`` of what a caller gave, one number or two.

    Raises:
        InputError: Not a resolution that a microscope has.
    """
    x, y = (float(mpp), float(mpp)) if isinstance(mpp, int | float) else (float(value) for value in mpp)
    if not (_plausible(x) and _plausible(y)):
        raise InputError(
            "no resolution of a microscope",
            where="mpp",
            found=f"{x:g}, {y:g} um/px",
            wanted=f"{MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} um/px",
        )
    return x, y


def file_mpp(x: object, y: object) -> Mpp | None:
    """``(x, y)`` of what a file says, or None if that is nothing, no number, or no resolution of a microscope."""
    try:
        pair = float(str(x)), float(str(y))
    except ValueError:
        return None
    return pair if _plausible(pair[0]) and _plausible(pair[1]) else None


def missing_mpp(objective_power: float | None) -> str:
    """What to do about a slide without a resolution, in words."""
    if objective_power:
        return (
            f"pass --mpp with microns per pixel of the largest level; its objective was {objective_power:g}x: "
            f"{10 / objective_power:g} is usual for that, but ask who scanned it"
        )
    return "pass --mpp with microns per pixel of the largest level (about 0.25 for 40x, 0.5 for 20x)"


def require_mpp(
    mpp: Mpp | None, source: Literal["file", "user"] | None, objective_power: float | None, where: str
) -> Mpp:
    """The resolution of a slide that is to be measured or tiled.

    Raises:
        InputError: It is unknown, or differs between x and y.
    """
    if mpp is None:
        raise InputError("the file does not say how large a pixel is", where=where, remedy=missing_mpp(objective_power))
    if max(mpp) / min(mpp) > _ANISOTROPY:
        raise InputError(
            "pixels are not square",
            where=where,
            found=f"{mpp[0]:g} x {mpp[1]:g} um according to the {source}",
            wanted=f"a ratio up to {_ANISOTROPY:g}",
            remedy="pass --mpp if that is wrong, else resample the slide",
        )
    return mpp


def _plausible(value: float) -> bool:
    return math.isfinite(value) and MPP_RANGE[0] <= value <= MPP_RANGE[1]
