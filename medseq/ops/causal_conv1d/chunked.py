"""Causal depthwise convolution by torch's own grouped convolution: any device, used where there is no kernel."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["backward", "forward"]


def forward(
    x: Float[Tensor, "batch dim length"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None,
    initial_state: Float[Tensor, "batch dim width-1"] | None,
    silu: bool,
) -> Float[Tensor, "batch dim length"]:
    """The convolution and its activation; all inputs of one dtype."""
    y = F.conv1d(_padded(x, weight, initial_state), weight[:, None], bias, groups=x.shape[1])
    return F.silu(y) if silu else y


def backward(
    gy: Float[Tensor, "batch dim length"],
    x: Float[Tensor, "batch dim length"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None,
    initial_state: Float[Tensor, "batch dim width-1"] | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial_state; those of absent inputs are computed too.

    The gradient of the padded input is the convolution of the incoming one with the reversed filter; that of the
    filter one sum of products for each of its elements.
    """
    padded, width = _padded(x, weight, initial_state), weight.shape[1]
    if silu:
        y = F.conv1d(padded, weight[:, None], bias, groups=x.shape[1])
        gate = torch.sigmoid(y)
        gy = gy * gate * (1 + y * (1 - gate))
    spread = F.pad(gy, (width - 1, width - 1))
    g_padded = F.conv1d(spread, weight.flip(1)[:, None], groups=x.shape[1])
    length = x.shape[2]
    g_weight = torch.stack([(gy * padded[:, :, k : k + length]).sum(dim=(0, 2)) for k in range(width)], dim=1)
    return g_padded[:, :, width - 1 :], g_weight, gy.sum(dim=(0, 2)), g_padded[:, :, : width - 1]


def _padded(x: Tensor, weight: Tensor, state: Tensor | None) -> Tensor:
    return F.pad(x, (weight.shape[1] - 1, 0)) if state is None else torch.cat([state, x], dim=2)
