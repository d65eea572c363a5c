"""Causal depthwise convolution by the compiled kernel (csrc/causal_conv1d.cpp): float32 or float64 in CPU memory."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.ops.backend import cpu_isa, kernels

__all__ = ["backward", "forward"]

# Below this many elements starting threads costs more than it saves.
_PARALLEL_FROM = 1 << 16


def forward(
    x: Float[Tensor, "batch dim length"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None,
    initial_state: Float[Tensor, "batch dim width-1"] | None,
    silu: bool,
) -> Float[Tensor, "batch dim length"]:
    """The convolution and its activation; contiguous inputs of one dtype."""
    y = torch.empty_like(x)
    kernels().causal_conv1d_forward(*_problem(x, weight, bias, initial_state, silu), y.data_ptr(), _threads(x))
    return y


def backward(
    gy: Float[Tensor, "batch dim length"],
    x: Float[Tensor, "batch dim length"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None,
    initial_state: Float[Tensor, "batch dim width-1"] | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial_state; empty tensors for the absent ones."""
    gy = gy.contiguous()
    inputs = (x, weight, bias, initial_state)
    gradients = tuple(x.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in inputs)
    outputs = (_address(g if tensor is not None else None) for g, tensor in zip(gradients, inputs, strict=True))
    problem = _problem(x, weight, bias, initial_state, silu)
    kernels().causal_conv1d_backward(*problem, gy.data_ptr(), *outputs, _threads(x))
    gx, gw, gb, gs = gradients
    return gx, gw, gb, gs


def _problem(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, silu: bool) -> tuple[Any, ...]:
    sizes = (*x.shape, weight.shape[1])
    return (cpu_isa(), x.dtype == torch.float64, *sizes, *map(_address, (x, weight, bias, state)), silu)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() >= _PARALLEL_FROM else 1
