"""Attention through landmarks: linear in the length.

Reference:
    Xiong et al., Nyströmformer: A Nyström-based algorithm for approximating self-attention, arXiv:2102.03902.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NystromAttention", "iterative_pinv"]


def iterative_pinv(a: Float[Tensor, "*batch m m"], iterations: int = 6) -> Float[Tensor, "*batch m m"]:
    """Moore-Penrose inverse by a third-order iteration of matrix products (Eq. 11 of the reference)."""
    norm = a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1)
    z = a.mT / norm[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


class _Factors(NamedTuple):
    """``softmax(q k^T) ~ left @ middle @ right``."""

    left: Float[Tensor, "heads n m"]
    middle: Float[Tensor, "heads m m"]
    right: Float[Tensor, "heads m n"]


class NystromAttention(nn.Module):
    """Multi-head self-attention, approximated by `landmarks` means of runs of tokens, with a convolved value added.

    Exact softmax attention where the sequence is no longer than `landmarks`.

    Args:
        dim: Width of the tokens.
        heads: Attention heads.
        landmarks: Runs that the sequence is cut into.
        kernel_size: Taps of the depthwise convolution over the values, odd; 0 for none.
        dropout: Behind the output projection.
    """

    def __init__(
        self, dim: int, heads: int = 8, landmarks: int = 256, kernel_size: int = 33, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.scale = heads, landmarks, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.conv = (
            nn.Conv2d(heads, heads, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=heads, bias=False)
            if kernel_size
            else None
        )

    def forward(self, x: Float[Tensor, "1 n dim"]) -> tuple[Float[Tensor, "1 n dim"], Float[Tensor, " n"]]:
        """Mixed tokens of one bag, and how much the first token attends to each, averaged over heads.

        Args:
            x: Tokens of one bag; the first is the one whose attention is returned.
        """
        q, k, v = self.qkv(x[0]).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        factors = self._factors(q * self.scale, k)
        y = factors.left @ (factors.middle @ (factors.right @ v))
        if self.conv is not None:
            y = y + self.conv(v[None])[0]
        first = (factors.left[:, :1] @ factors.middle @ factors.right)[:, 0].mean(0)
        return self.out(y.transpose(0, 1).flatten(1))[None], first

    def _factors(self, q: Float[Tensor, "heads n d"], k: Float[Tensor, "heads n d"]) -> _Factors:
        if q.shape[1] <= self.landmarks:
            full = (q @ k.mT).softmax(-1)
            eye = torch.eye(q.shape[1], dtype=q.dtype, device=q.device).expand(len(q), -1, -1)
            return _Factors(full, eye, eye)
        q_mean, k_mean = (F.adaptive_avg_pool1d(x.mT, self.landmarks).mT for x in (q, k))
        middle = iterative_pinv((q_mean @ k_mean.mT).softmax(-1))
        return _Factors((q @ k_mean.mT).softmax(-1), middle, (q_mean @ k.mT).softmax(-1))
