"""Preprocessing that brings CT to the range of the other modalities, for networks that are shared between them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medseq.data.transforms import Params, Transform
from medseq.errors import InputError

__all__ = ["HounsfieldCurve"]


class HounsfieldCurve(Transform):
    """CT in Hounsfield units -> one channel, about 0 to 1 in soft tissue, by a curve of straight pieces.

    Noise of 20 HU in soft tissue becomes 5 % of the range, as it is in MR; air and bone are compressed. Beyond the last
    knot the curve goes on straight, so that every value comes back, metal included. As in `HounsfieldChannels` only the
    *change* of the model is applied: what it leaves alone is kept bit for bit.

    Args:
        knots: Values in HU, increasing.
        values: What they become, increasing.
    """

    def __init__(
        self,
        knots: Sequence[float] = (-1024.0, -160.0, 240.0, 3072.0),
        values: Sequence[float] = (-0.4, 0.0, 1.0, 2.4),
    ) -> None:
        sizes = len(knots) == len(values) and len(knots) >= 2
        if not sizes or min(np.diff(knots)) <= 0 or min(np.diff(values)) <= 0:
            raise InputError("knots and values must increase alike", found=(tuple(knots), tuple(values)))
        self.knots, self.values = tuple(map(float, knots)), tuple(map(float, values))

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Nothing to fit: Hounsfield units are absolute."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; one channel."""
        return _curve(image, self.knots, self.values)

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`; HU."""
        seen = _curve(image, self.knots, self.values)
        restored = _curve(output, self.values, self.knots)
        return image + (restored - _curve(seen, self.values, self.knots))


def _curve(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """Straight pieces through ``(knot, value)``, the first and the last one without end."""
    piece = torch.bucketize(x.contiguous(), x.new_tensor(knots[1:-1]))
    at, to = x.new_tensor(knots), x.new_tensor(values)
    slope = (to[1:] - to[:-1]) / (at[1:] - at[:-1])
    return to[piece] + slope[piece] * (x - at[piece])
