"""Registers `medseq::bi_wkv` and its backward with torch's dispatcher.

The dispatcher is the registry of implementations: CPU and CUDA tensors get what `medseq.ops.backend.choose` says,
autograd and `torch.compile` see one opaque operator with exact gradients.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from medseq.ops.backend import load
from medseq.ops.dispatch import register

__all__: list[str] = []

_LIBRARY = torch.library.Library("medseq", "FRAGMENT")
_LIBRARY.define("bi_wkv(Tensor w, Tensor u, Tensor k, Tensor v, str convention) -> Tensor")
_LIBRARY.define(
    "bi_wkv_backward(Tensor gy, Tensor w, Tensor u, Tensor k, Tensor v, str convention)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, else float32: half precision is only for storage."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _token_dtype(module: ModuleType, v: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Of k, v and gy: a kernel that converts what it reads spares the copy."""
    return v.dtype if getattr(module, "READS_HALF", False) and dtype == torch.float32 else dtype


def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str) -> Tensor:
    if v.numel() == 0:
        return torch.empty_like(v, memory_format=torch.contiguous_format)
    dtype = _compute_dtype(w, u, k, v)
    module = load("bi_wkv", v.device.type)
    token = _token_dtype(module, v, dtype)
    # Contiguous, as the fake says: compiled graphs rely on the strides.
    return module.forward(w.to(dtype), u.to(dtype), k.to(token), v.to(token), convention).to(v.dtype).contiguous()


def _backward(gy: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str) -> tuple[Tensor, ...]:
    inputs = (w, u, k, v)
    if v.numel() == 0:
        return tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs)
    dtype = _compute_dtype(*inputs)
    module = load("bi_wkv", v.device.type)
    token = _token_dtype(module, v, dtype)
    gradients = module.backward(gy.to(token), w.to(dtype), u.to(dtype), k.to(token), v.to(token), convention)
    return tuple(g.to(x.dtype).contiguous() for g, x in zip(gradients, inputs, strict=True))


def _fake_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def _fake_backward(gy: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (w, u, k, v))


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.convention = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.medseq.bi_wkv_backward(gy, *ctx.saved_tensors, ctx.convention), None)


register(
    _LIBRARY,
    "bi_wkv",
    "medseq.ops.wkv.naive.bi_wkv",
    forward=(_forward, _fake_forward),
    backward=(_backward, _fake_backward),
    autograd=(_save_inputs, _autograd_backward),
)
