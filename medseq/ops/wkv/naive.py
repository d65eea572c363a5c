"""Bidirectional WKV from its definition: the oracle of every faster implementation.

The weights of all pairs of tokens stand in one table: O(length^2) time and memory, any floating dtype, differentiable
by autograd. Written to be checked by eye against README.md, not for production.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["EPSILON", "NUM_CHUNKS", "backward", "bi_wkv", "chunk64_weights", "chunk_length", "exact_weights", "forward"]

NUM_CHUNKS = 64
"""Number of pieces into which the original kernel cuts the sequence."""

EPSILON = 1e-6
"""Added by the original kernel to the denominator, in units of exp(largest exponent of the token)."""


def chunk_length(length: int) -> int:
    """Tokens per chunk of the original kernel: length / 64, rounded up."""
    return max(1, -(-length // NUM_CHUNKS))


def bi_wkv(
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
    convention: str = "exact",
) -> Float[Tensor, "batch length channel"]:
    """Weighted mean of the values, each token looking both ways.

    Args:
        w: Decay per token of distance, already divided by the length; negative lets weights grow with distance.
        u: Bonus of a token for itself, already divided by the length.
        k: Log weights.
        v: Values.
        convention: ``exact`` (the paper's formula) or ``chunk64`` (what the original CUDA kernel computes).

    Returns:
        The mean for every token, in the dtype of the inputs.

    Reference:
        Duan et al., Vision-RWKV, arXiv:2403.02308 (the formula); Yang et al., Restore-RWKV, arXiv:2407.11087.
    """
    weights, epsilon = (exact_weights(w, u, k), 0.0) if convention == "exact" else (chunk64_weights(w, u, k), EPSILON)
    return torch.einsum("btjc,bjc->btc", weights, v) / (weights.sum(dim=2) + epsilon)


def backward(
    gy: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v by autograd of `bi_wkv`, for use below the dispatcher's autograd."""
    with torch.enable_grad():
        pull = torch.func.vjp(partial(bi_wkv, convention=convention), w, u, k, v)[1]
        gw, gu, gk, gv = (gradient.detach() for gradient in pull(gy))
    return gw, gu, gk, gv


forward = bi_wkv


def exact_weights(
    w: Float[Tensor, " channel"], u: Float[Tensor, " channel"], k: Float[Tensor, "batch length channel"]
) -> Float[Tensor, "batch length length channel"]:
    """Weight of token j (axis 2) in the mean of token t (axis 1), scaled so that the largest of a token is 1.

    j != t: exp(k_j - w (|t - j| - 1));  j = t: exp(u + k_t).
    """
    steps = _steps(k)
    other = k.unsqueeze(1) - w * (steps.abs() - 1)
    exponent = torch.where(steps == 0, u + k.unsqueeze(1), other)
    return (exponent - exponent.amax(dim=2, keepdim=True).detach()).exp()


def chunk64_weights(
    w: Float[Tensor, " channel"], u: Float[Tensor, " channel"], k: Float[Tensor, "batch length channel"]
) -> Float[Tensor, "batch length length channel"]:
    """The weights of the original kernel, which cuts the sequence into chunks; s is the start of token t's chunk.

    j < s: exp(k_j - w (t-j));  s <= j < t: exp(k_j - w (t-j-1));  j = t: exp(u + k_t);  j > t: exp(k_j - w (j-t));
    and s < j <= t gets (1 - e^w) exp(k_j + w (t-j)) on top. The scale is exp(m), with m the largest exponent that
    the kernel meets; unlike the exact convention's it does not cancel, because EPSILON is added afterwards.
    """
    length = k.shape[1]
    chunk = chunk_length(length)
    token = torch.arange(length, device=k.device)
    steps = _steps(k)
    start = (token // chunk * chunk)[None, :, None, None]
    j = token[None, None, :, None]
    log_weight = k.unsqueeze(1)
    never = torch.tensor(-torch.inf, dtype=k.dtype, device=k.device)

    exponent = log_weight - w * steps.abs()
    exponent = torch.where((j >= start) & (steps > 0), exponent + w, exponent)
    exponent = torch.where(steps == 0, u + log_weight, exponent)
    in_grown: Bool[Tensor, "1 length length 1"] = (j > start) & (steps >= 0)
    grown = torch.where(in_grown, log_weight + w * steps, never)
    opened = torch.where(j >= start, log_weight + w * steps, never)
    largest = torch.stack([exponent, grown + w, opened]).amax(dim=(0, 3), keepdim=True)[0]
    return (exponent - largest).exp() - torch.expm1(w) * (grown - largest).exp()


def _steps(k: Float[Tensor, "batch length channel"]) -> Float[Tensor, "1 length length 1"]:
    """Signed distance t - j."""
    token = torch.arange(k.shape[1], device=k.device, dtype=k.dtype)
    return (token[:, None] - token[None, :])[None, :, :, None]
