"""Bidirectional WKV in a few plain torch operations, for graphs that leave torch (torch.export, ONNX).

Sums over earlier tokens are made in log2(length) steps, each adding what lies 2^i tokens back, faded by e^{-w 2^i};
both directions, numerator and denominator at once. One maximum of k for a channel is subtracted first, instead of the
running maximum of the kernels: weights more than e^-80 below the largest of their channel are lost, which no
normalised network comes near.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["forward"]

_TINY = 1e-37


def forward(
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
) -> Float[Tensor, "batch length channel"]:
    """The weighted means of the ``exact`` convention; all inputs of one dtype, float32 or float64."""
    weight = (k - k.amax(dim=1, keepdim=True)).exp()
    own = torch.stack([weight * v, weight])
    sums = torch.stack([own, own.flip(2)])
    step, length = 1, k.shape[1]
    while step < length:
        sums = sums + (-w * step).exp() * F.pad(sums[..., :-step, :], (0, 0, step, 0))
        step *= 2
    # A neighbour has weight 1: what a token itself adds to the next is not faded.
    sums = F.pad(sums[..., :-1, :], (0, 0, 1, 0))
    total = sums[0] + sums[1].flip(2) + u.exp() * own
    return total[0] / total[1].clamp(min=_TINY)
