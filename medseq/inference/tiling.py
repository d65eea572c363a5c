"""Planes larger than the model's tile: overlapping tiles, blended so that no seam is left (MONAI's sliding window)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError

__all__ = ["apply_tiled", "exceeds"]


def exceeds(plane_shape: tuple[int, int], tile: tuple[int, int] | None) -> bool:
    """Whether a plane ``(row, col)`` needs tiles."""
    return tile is not None and (plane_shape[0] > tile[0] or plane_shape[1] > tile[1])


def apply_tiled(
    model: Callable[[Tensor], Tensor],
    image: Float[Tensor, "batch channel row col"],
    *,
    tile: tuple[int, int] | None,
    overlap: float,
    blend: str = "gaussian",
    batch: int = 1,
) -> Float[Tensor, "batch out row col"]:
    """Run `model` on whole planes if they fit into one tile, else tile by tile.

    Args:
        model: Called with ``(n, channel, row, col)``, n at most `batch` for tiles.
        image: What the model sees.
        tile: ``(row, col)`` of a tile, None for whole planes.
        overlap: Share of a tile that its neighbour covers too, 0 <= overlap < 1.
        blend: ``gaussian`` weights the middle of a tile most; ``constant`` averages.
        batch: Tiles a call.

    Raises:
        InputError: `overlap` is out of range.
    """
    if not 0 <= overlap < 1:
        raise InputError("overlap is out of range", found=overlap, wanted="0 <= overlap < 1")
    if tile is None or not exceeds((image.shape[-2], image.shape[-1]), tile):
        return model(image)
    # Three seconds to import, and needed for large planes only.
    from monai.inferers.utils import sliding_window_inference

    # A tile never reaches beyond the plane, so that MONAI pads nothing.
    roi = (min(tile[0], image.shape[-2]), min(tile[1], image.shape[-1]))
    weights = None if blend == "constant" else _gaussian(roi).to(image.device)
    return sliding_window_inference(image, roi, batch, model, overlap=overlap, roi_weight_map=weights)


def _gaussian(tile: tuple[int, int]) -> Tensor:
    """Weights ``(row, col)`` of a tile: a Gaussian of an eighth of its side.

    MONAI's own Gaussian is limited below at 0.001. Along the border of a plane every tile's weight is below that, so
    that tiles meet there with equal weights: in a hard seam. Scaled up, the same Gaussian stays clear of the limit.
    """
    rows, cols = (
        torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / max(0.125 * side, 0.5)) ** 2) for side in tile
    )
    return 1e6 * rows[:, None] * cols
