"""Bidirectional WKV by the compiled kernel (csrc/wkv.cpp): float32 or float64 tensors in CPU memory."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.ops.backend import cpu_isa, kernels

__all__ = ["backward", "forward"]

# Below this many elements starting threads costs more than it saves.
_PARALLEL_FROM = 1 << 15


def forward(
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
    convention: str,
) -> Float[Tensor, "batch length channel"]:
    """The weighted means; all inputs of one dtype."""
    w, u, k, v = (x.contiguous() for x in (w, u, k, v))
    y = torch.empty_like(k)
    kernels().wkv_forward(*_problem(convention, w, u, k, v), y.data_ptr(), _threads(k))
    return y


def backward(
    gy: Float[Tensor, "batch length channel"],
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
    convention: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v for the gradient `gy` of the result."""
    gy, w, u, k, v = (x.contiguous() for x in (gy, w, u, k, v))
    gw, gu, gk, gv = (torch.empty_like(x) for x in (w, u, k, v))
    addresses = (x.data_ptr() for x in (gy, gw, gu, gk, gv))
    kernels().wkv_backward(*_problem(convention, w, u, k, v), *addresses, _threads(k))
    return gw, gu, gk, gv


def _problem(convention: str, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    addresses = (x.data_ptr() for x in (w, u, k, v))
    return (cpu_isa(), k.dtype == torch.float64, convention == "chunk64", *k.shape, *addresses)


def _threads(k: Tensor) -> int:
    return torch.get_num_threads() if k.numel() >= _PARALLEL_FROM else 1
