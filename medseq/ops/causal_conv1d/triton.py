"""Causal depthwise convolution with optional silu by Triton kernels, for CUDA tensors.

A program computes a tile of `DIMS` channels by `CHUNK` tokens. Backward computes silu's input again instead of keeping
it. Gradients of weight and bias are summed per tile and added up by torch: no atomics, the same bits every time.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseq.ops.triton_math import silu as silu_of
from medseq.ops.triton_math import silu_slope

__all__ = ["CHUNK", "DIMS", "WARPS", "backward", "forward"]

DIMS = 1
CHUNK = 256
WARPS = 2


@triton.jit
def _place(dim, length, DIMS: tl.constexpr, CHUNK: tl.constexpr):
    """Number of this program's tile, its first channel, its first row (batch item and channel), and its first token.

    Offsets from there are 32-bit: 64-bit tiles would take twice the registers.
    """
    blocks = tl.cdiv(dim, DIMS)
    program = tl.program_id(0)
    tile = (program // blocks).to(tl.int64)
    chunks = tl.cdiv(length, CHUNK)
    channel = program % blocks * DIMS
    return tile, channel, tile // chunks * dim + channel, (tile % chunks * CHUNK).to(tl.int32)


@triton.jit
def _x_at(x, start, lane, rows, token, length, WIDTH: tl.constexpr, TYPE: tl.constexpr):
    """X at any token: before the first lies the initial state, or zeros. `x` and `start` point at the first row."""
    there = (lane < rows) & (token >= 0) & (token < length)
    value = tl.load(x + lane * length + token, mask=there, other=0.0).to(TYPE)
    if start is not None:
        before = (lane < rows) & (token < 0) & (token > -WIDTH)
        value += tl.load(start + lane * (WIDTH - 1) + WIDTH - 1 + token, mask=before, other=0.0).to(TYPE)
    return value


@triton.jit
def _weighted(x, weight, bias, start, lane, rows, token, length, WIDTH: tl.constexpr, TYPE: tl.constexpr):
    """The convolution before silu, at any tile of tokens."""
    total = tl.zeros(token.shape, TYPE) + tl.zeros(lane.shape, TYPE)
    if bias is not None:
        total += tl.load(bias + lane, mask=lane < rows, other=0.0)
    for tap in tl.static_range(WIDTH):
        w = tl.load(weight + lane * WIDTH + tap, mask=lane < rows, other=0.0)
        total += w * _x_at(x, start, lane, rows, token - (WIDTH - 1 - tap), length, WIDTH, TYPE)
    return total


@triton.jit
def _inner_gradient(
    gy, x, weight, bias, start, lane, rows, token, length,
    WIDTH: tl.constexpr, SILU: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution before silu, 0 outside the sequence."""
    there = (lane < rows) & (token >= 0) & (token < length)
    g = tl.load(gy + lane * length + token, mask=there, other=0.0).to(TYPE)
    if SILU:
        g *= silu_slope(_weighted(x, weight, bias, start, lane, rows, token, length, WIDTH, TYPE))
    return tl.where(there, g, 0.0)


@triton.jit
def _input_gradient(
    gy, x, weight, bias, start, lane, rows, token, length,
    WIDTH: tl.constexpr, SILU: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of x at any tile of tokens, those of the initial state included."""
    total = tl.zeros(token.shape, TYPE) + tl.zeros(lane.shape, TYPE)
    for tap in tl.static_range(WIDTH):
        later = token + (WIDTH - 1 - tap)
        g = _inner_gradient(gy, x, weight, bias, start, lane, rows, later, length, WIDTH, SILU, TYPE)
        total += g * tl.load(weight + lane * WIDTH + tap, mask=lane < rows, other=0.0)
    return total


@triton.jit
def forward_kernel(
    x, weight, bias, start, y, dim, length,
    WIDTH: tl.constexpr, SILU: tl.constexpr, DIMS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y_t = silu(bias + sum_j weight_j x_{t - WIDTH + 1 + j})."""
    TYPE: tl.constexpr = weight.dtype.element_ty
    _, channel, row, begin = _place(dim, length, DIMS, CHUNK)
    lane, rows = tl.arange(0, DIMS)[:, None], dim - channel
    x, weight = x + row * length, weight + channel * WIDTH
    if bias is not None:
        bias += channel
    if start is not None:
        start += row * (WIDTH - 1)
    token = begin + tl.arange(0, CHUNK)[None, :]
    out = _weighted(x, weight, bias, start, lane, rows, token, length, WIDTH, TYPE)
    if SILU:
        out = silu_of(out)
    tl.store(y + row * length + (lane * length + token), out, mask=(lane < rows) & (token < length))


@triton.jit
def backward_kernel(
    gy, x, weight, bias, start, gx, gweight, gbias, gstart, dim, length,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, SILU: tl.constexpr, DIMS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """All gradients of one tile; `gweight` and `gbias` are its share."""
    TYPE: tl.constexpr = weight.dtype.element_ty
    tile, channel, row, begin = _place(dim, length, DIMS, CHUNK)
    lane, rows = tl.arange(0, DIMS)[:, None], dim - channel
    x, gy, weight = x + row * length, gy + row * length, weight + channel * WIDTH
    if bias is not None:
        bias += channel
    if start is not None:
        start += row * (WIDTH - 1)
    token = begin + tl.arange(0, CHUNK)[None, :]
    out = _input_gradient(gy, x, weight, bias, start, lane, rows, token, length, WIDTH, SILU, TYPE)
    tl.store(gx + row * length + (lane * length + token), out, mask=(lane < rows) & (token < length))
    g = _inner_gradient(gy, x, weight, bias, start, lane, rows, token, length, WIDTH, SILU, TYPE)
    for tap in tl.static_range(WIDTH):
        value = _x_at(x, start, lane, rows, token - (WIDTH - 1 - tap), length, WIDTH, TYPE)
        at = (tile * dim + channel) * WIDTH + (lane * WIDTH + tap)
        tl.store(gweight + at, tl.sum(g * value, 1)[:, None], mask=lane < rows)
    if bias is not None:
        tl.store(gbias + tile * dim + channel + lane, tl.sum(g, 1)[:, None], mask=lane < rows)
    if start is not None:
        if begin == 0:
            early = tl.arange(0, TAPS)[None, :] - (WIDTH - 1)
            g_early = _input_gradient(gy, x, weight, bias, start, lane, rows, early, length, WIDTH, SILU, TYPE)
            at_early = row * (WIDTH - 1) + (lane * (WIDTH - 1) + WIDTH - 1 + early)
            tl.store(gstart + at_early, g_early, mask=(lane < rows) & (early < 0))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool) -> Tensor:
    """The convolution, (batch, dim, length), in the dtype of x; weight (dim, width) and bias (dim,) in float32."""
    batch, dim, length = x.shape
    y = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            forward_kernel[(_tiles(x) * triton.cdiv(dim, DIMS),)](
                *(x, weight, bias, initial_state, y, dim, length),
                WIDTH=weight.shape[1],
                SILU=silu,
                DIMS=DIMS,
                CHUNK=CHUNK,
                num_warps=WARPS,
            )
    return y


def backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and initial_state; None where the input is None."""
    batch, dim, length = x.shape
    width = weight.shape[1]
    gx = torch.empty_like(x)
    gstart = None if initial_state is None else torch.zeros_like(initial_state)
    gweight = weight.new_zeros(_tiles(x), dim, width)
    gbias = None if bias is None else weight.new_zeros(_tiles(x), dim)
    if x.numel():
        with torch.cuda.device_of(x):
            backward_kernel[(_tiles(x) * triton.cdiv(dim, DIMS),)](
                *(gy, x, weight, bias, initial_state, gx, gweight, gbias, gstart, dim, length),
                WIDTH=width,
                TAPS=triton.next_power_of_2(width),
                SILU=silu,
                DIMS=DIMS,
                CHUNK=CHUNK,
                num_warps=WARPS,
            )
    return gx, gweight.sum(0), None if gbias is None else gbias.sum(0), gstart


def _tiles(x: Tensor) -> int:
    return x.shape[0] * triton.cdiv(x.shape[2], CHUNK)
