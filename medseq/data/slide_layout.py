"""Several slides of a patient on one grid."""

from collections.abc import Sequence

import numpy as np

from medseq.io.features import Bag

__all__ = ["side_by_side"]


def side_by_side(bags: Sequence[Bag]) -> np.ndarray | None:
    """Coordinates of several slides on one grid, ``(n, 2)`` int64, or None if one has none.

    A single slide keeps its own. The next ones are moved so that they begin in the row in which the first begins, one
    empty column right of the slide before; distances inside a slide stay, in units of its patches. So cells of the
    common grid, ``round((coords - min) / patch_size_level0)`` of the first slide, are those of the slides.
    """
    found = [bag.coords for bag in bags if bag.coords is not None]
    if len(found) < len(bags):
        return None
    if len(found) == 1:
        return found[0]
    step = bags[0].patch_size_level0 or _step(found[0])
    left, top = found[0].min(axis=0)
    placed = []
    for bag, coords in zip(bags, found, strict=True):
        own = coords - coords.min(axis=0)
        size = bag.patch_size_level0 or step
        if size != step:
            # Scanned at another resolution: a patch is as large as a patch of the first slide.
            own = np.rint(own * (step / size)).astype(np.int64)
        placed.append(own + (left, top))
        left += (int(own[:, 0].max()) // step + 2) * step
    return np.concatenate(placed)


def _step(coords: np.ndarray) -> int:
    """The smallest distance of two columns or rows of patches; 1 if there is none."""
    steps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    return int(min((step.min() for step in steps if len(step)), default=1))
