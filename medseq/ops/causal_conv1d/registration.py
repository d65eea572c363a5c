"""Registers `medseq::causal_conv1d` and its backward with torch's dispatcher; see `medseq.ops.wkv.registration`."""

from typing import Any

import torch
from torch import Tensor

from medseq.ops.backend import load
from medseq.ops.dispatch import register

__all__: list[str] = []

_LIBRARY = torch.library.Library("medseq", "FRAGMENT")
_INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, bool silu"
_LIBRARY.define(f"causal_conv1d({_INPUTS}) -> Tensor")
# The last two results are empty where the input is None: an operator cannot return None.
_LIBRARY.define(f"causal_conv1d_backward(Tensor gy, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)")

Optional = Tensor | None


def _forward(x: Tensor, weight: Tensor, bias: Optional, initial_state: Optional, silu: bool) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    inputs = _computable(x, weight, bias, initial_state)
    return load("causal_conv1d", x.device.type).forward(*inputs, silu).to(x.dtype).contiguous()


def _backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Optional, initial_state: Optional, silu: bool
) -> tuple[Tensor, ...]:
    like = _fake_backward(gy, x, weight, bias, initial_state, silu)
    if x.numel() == 0:
        return tuple(g.zero_() for g in like)
    inputs = _computable(x, weight, bias, initial_state)
    gradients = load("causal_conv1d", x.device.type).backward(gy.to(inputs[0].dtype), *inputs, silu)
    present = (True, True, bias is not None, initial_state is not None)
    return tuple(
        g.to(fake.dtype).contiguous() if there else fake
        for g, fake, there in zip(gradients, like, present, strict=True)
    )


def _computable(*tensors: Optional) -> list[Any]:
    """All in float64 if any is, else in float32: half precision is only for storage."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    dtype = torch.float64 if double else torch.float32
    return [None if x is None else x.to(dtype).contiguous() for x in tensors]


def _fake_forward(x: Tensor, weight: Tensor, bias: Optional, initial_state: Optional, silu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Optional, initial_state: Optional, silu: bool
) -> tuple[Tensor, ...]:
    like = (x, weight, bias, initial_state)
    return tuple(
        x.new_empty(0) if y is None else torch.empty_like(y, memory_format=torch.contiguous_format) for y in like
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors  # once: activation checkpointing unpacks them a single time
    gradients = torch.ops.medseq.causal_conv1d_backward(gy, *inputs, ctx.silu)
    pairs = zip(gradients, inputs, strict=True)
    return (*(None if x is None else g for g, x in pairs), None)


register(
    _LIBRARY,
    "causal_conv1d",
    "medseq.ops.causal_conv1d.naive.causal_conv1d",
    forward=(_forward, _fake_forward),
    backward=(_backward, _fake_backward),
    autograd=(_save_inputs, _autograd_backward),
)
