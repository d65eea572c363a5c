"""Preprocessing of super-resolution: what was measured stays as it was measured."""

import numpy as np
import torch
from torch import Tensor

from medseq.data.transforms import Params, Transform
from medseq.errors import InputError, ShapeError
from medseq.ops.resolution import truncate_kspace, zero_fill

__all__ = ["KeepLowBand"]


class KeepLowBand(Transform):
    """Takes a super-resolution model's change without its low frequencies; first in a chain, undone last.

    The scanner measured the low frequencies: only what lies beyond them is the model's to say. The change is
    ``d - zero_fill(truncate_kspace(d))`` with ``d = output - image``, so that the result's truncated k-space is the
    acquired image. A magnitude has no values below 0: where the acquired plane has none, the result is limited there,
    which is the only way in which its low frequencies may still differ.

    Args:
        factor: Ratio of the acquired pixel size to that of the grid which the model works on.
    """

    def __init__(self, factor: int = 2) -> None:
        if factor < 2:
            raise InputError("scale factor is out of range", found=factor, wanted="2 or more")
        self.factor = int(factor)

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Nothing to fit."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; nothing changes."""
        return image

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`.

        Raises:
            ShapeError: A side is not a multiple of the factor.
        """
        rows, cols = image.shape[-2:]
        if rows % self.factor or cols % self.factor:
            raise ShapeError("image is not on an enlarged grid", found=(rows, cols), wanted=f"n x {self.factor}")
        coarse = (rows // self.factor, cols // self.factor)
        change = output - image
        result = image + change - zero_fill(truncate_kspace(change, coarse), (rows, cols))
        acquired = truncate_kspace(image, coarse)
        # Rounding of the two interpolations, far below a grey level.
        slack = 1e-4 * acquired.abs().amax(dim=(1, 2, 3), keepdim=True)
        is_magnitude = acquired.amin(dim=(1, 2, 3), keepdim=True) >= -slack
        return torch.where(is_magnitude, result.clamp(min=0.0), result)
