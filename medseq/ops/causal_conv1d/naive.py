"""Causal depthwise convolution from its definition: the oracle. Any floating dtype, differentiable by autograd."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["backward", "causal_conv1d", "forward"]


def causal_conv1d(
    x: Float[Tensor, "batch dim length"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"],
    initial_state: Float[Tensor, "batch dim width-1"],
    silu: bool,
) -> Float[Tensor, "batch dim length"]:
    """``y_t = act(bias + sum_k weight_k padded_{t + k})`` with the state in front of `x`, one sum over k a token."""
    padded, width = torch.cat([initial_state, x], dim=2), weight.shape[1]
    tokens = [(weight * padded[:, :, t : t + width]).sum(dim=2) + bias for t in range(x.shape[2])]
    y = torch.stack(tokens, dim=2)
    return y / (1 + torch.exp(-y)) if silu else y


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool) -> Tensor:
    """The operator's forward; all inputs of one dtype."""
    return causal_conv1d(x, weight, *_filled(x, weight, bias, initial_state), silu)


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial_state by autograd; those of absent inputs are computed too."""
    with torch.enable_grad():
        inputs = (x, weight, *_filled(x, weight, bias, initial_state))
        pull = torch.func.vjp(partial(causal_conv1d, silu=silu), *inputs)[1]
        gx, gw, gb, gs = (gradient.detach() for gradient in pull(gy))
    return gx, gw, gb, gs


def _filled(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bias and state, zeros where they are None."""
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    return bias, F.pad(x[:, :, :0], (weight.shape[1] - 1, 0)) if state is None else state
