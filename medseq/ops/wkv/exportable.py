"""Bidirectional WKV in a few plain torch operations, for graphs that leave torch (torch.export, ONNX).

The decay of a channel is a constant, so its sums are products with constant matrices. The tokens are cut into chunks
of about sqrt(length): within a chunk every pair of tokens is one entry of a (chunk, chunk) matrix, the bonus of a token
for itself on its diagonal; what passes between chunks is one number a chunk and direction, and a (chunks, chunks)
matrix fades it. Work and constants grow with length^1.5 and with the length; the graph does not grow at all. One
maximum of k for a channel is subtracted first, instead of the running maximum of the kernels: weights more than e^-80
below the largest of their channel are lost, which no normalised network comes near.
"""

import math

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
    length = k.shape[1]
    chunk = math.isqrt(max(length - 1, 0)) + 1
    chunks = -(-length // chunk)
    weight = (k - k.amax(dim=1, keepdim=True)).exp()
    # Numerator and denominator at once, (2, batch, channel, chunk, place); tokens of weight 0 fill the last chunk.
    own = torch.stack([weight * v, weight]).transpose(2, 3)
    x = F.pad(own, (0, chunks * chunk - length)).unflatten(3, (chunks, chunk))
    rate = -w[:, None, None]

    place = torch.arange(chunk, device=w.device, dtype=w.dtype)
    apart = (place[:, None] - place).abs()
    # A neighbour has weight 1: what a token itself adds to the next is not faded.
    near = torch.where(apart > 0, (rate * (apart - 1)).exp(), u[:, None, None].exp())
    # Sums of a chunk faded to its last token, and to its first.
    ends = torch.stack([chunk - 1 - place, place], dim=1)
    leaving = torch.matmul(x, (rate * ends).exp())

    number = torch.arange(chunks, device=w.device, dtype=w.dtype)
    gap = number[:, None] - number - 1
    later = torch.where(gap >= 0, (rate * chunk * gap.clamp(min=0)).exp(), torch.zeros_like(rate))
    entering = torch.cat(
        [torch.matmul(later, leaving[..., :1]), torch.matmul(later.transpose(1, 2), leaving[..., 1:])], dim=-1
    )
    sums = torch.matmul(x, near) + torch.matmul(entering, (rate * ends.flip(1).T).exp())
    total = sums.flatten(3)[..., :length].transpose(2, 3)
    return total[0] / total[1].clamp(min=_TINY)
