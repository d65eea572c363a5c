"""Bidirectional WKV by Triton kernels, for CUDA tensors: launches those of triton_kernels.py.

The sequence is cut into chunks, a program each, so a long image keeps the whole GPU busy. Forward: what every chunk
adds to the others' sums; a short walk over the chunks turns that into the sums before and after each; every chunk then
scans its tokens in both directions. Backward does the same once more for the adjoint terms of README.md, so it keeps
four numbers per token (result and adjoint term), as csrc does. No atomics: the same input gives the same bits.

The chunk64 convention, kept for weights trained with the original kernel, runs as chunked.py.
"""

import torch
import triton
from torch import Tensor

from medseq.ops.wkv import chunked
from medseq.ops.wkv.triton_kernels import carry_kernel, gradient_kernel, mean_kernel, query_kernel, total_kernel

__all__ = ["CHUNK", "COLS", "READS_HALF", "WARPS", "backward", "forward"]

CHUNK = 32
"""Tokens of a tile."""

COLS = 16
"""Channels of a tile: two sectors of 32 bytes in float32."""

WARPS = 4

READS_HALF = True
"""k, v and gy may be bfloat16 or float16 beside float32 w and u; sums are float32."""


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str) -> Tensor:
    """The weighted means, (batch, length, channel); w and u float32 (or float64), k and v of any floating dtype."""
    if convention != "exact":
        return chunked.forward(w, u, k, v, convention)
    w, u, k, v = (x.contiguous() for x in (w, u, k, v))
    y = torch.empty_like(v)
    if v.numel():
        with torch.cuda.device_of(v):
            carries = _carries(w, k, v)
            mean_kernel[_grid(k)](k, v, w, u, carries, y, *k.shape[1:], CHUNK=CHUNK, COLS=COLS, num_warps=WARPS)
    return y


def backward(
    gy: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, convention: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v for the gradient `gy` of the result."""
    if convention != "exact":
        return chunked.backward(gy, w, u, k, v, convention)
    gy, w, u, k, v = (x.contiguous() for x in (gy, w, u, k, v))
    if not v.numel():
        return torch.zeros_like(w), torch.zeros_like(u), torch.zeros_like(k), torch.zeros_like(v)
    tile = {"CHUNK": CHUNK, "COLS": COLS, "num_warps": WARPS}
    with torch.cuda.device_of(v):
        carries = _carries(w, k, v)
        query_carries = torch.empty_like(carries)
        queries = [w.new_empty(k.shape) for _ in range(3)]
        query_kernel[_grid(k)](gy, k, v, w, u, carries, query_carries, *queries, *k.shape[1:], **tile)
        _carry(query_carries, w)
        gk, gv = torch.empty_like(k), torch.empty_like(v)
        gw, gu = (w.new_empty(*carries.shape[:2], w.shape[0]) for _ in range(2))
        gradient_kernel[_grid(k)](*(k, v, w, u, carries, query_carries, *queries, gk, gv, gw, gu, *k.shape[1:]), **tile)
    return gw.sum((0, 1)), gu.sum((0, 1)), gk, gv


def _grid(k: Tensor) -> tuple[int]:
    batch, length, channels = k.shape
    return (batch * triton.cdiv(length, CHUNK) * triton.cdiv(channels, COLS),)


def _carries(w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The sums before and after every chunk, (batch, chunk, 2, 3, channel)."""
    batch, length, channels = k.shape
    carries = w.new_empty(batch, triton.cdiv(length, CHUNK), 2, 3, channels)
    total_kernel[_grid(k)](k, v, w, carries, length, channels, CHUNK=CHUNK, COLS=COLS, num_warps=WARPS)
    _carry(carries, w)
    return carries


def _carry(carries: Tensor, w: Tensor) -> None:
    batch, chunks, _, _, channels = carries.shape
    programs = batch * 2 * triton.cdiv(channels, COLS)
    carry_kernel[(programs,)](carries, w, chunks, channels, CHUNK=CHUNK, COLS=COLS, num_warps=1)
