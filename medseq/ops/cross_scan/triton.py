"""Four scans over an image and their sum by Triton kernels, for CUDA tensors. No copy of the image is ever made.

Forward, an image of at most `TOKENS` padded tokens lies in registers while one program scans it in all four directions
(triton_image.py): x is read once and y written once. A larger image, and backward, run the selective scan's kernels
once per direction; they walk the image where it lies, down its columns where the direction says so, and add to the
result of the directions before. So nothing is kept for backward but the inputs: it finds the states again.

No float atomics: the same input gives the same bits.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from medseq.ops.cross_scan.naive import ORDERS
from medseq.ops.cross_scan.triton_image import image_kernel
from medseq.ops.selective_scan.triton import BACKWARD, CHUNK, FORWARD, Problem
from medseq.ops.selective_scan.triton_backward import backward_kernel
from medseq.ops.selective_scan.triton_forward import forward_kernel

__all__ = ["READS_HALF", "TOKENS", "backward", "forward"]

TOKENS = 4096
"""Rows times columns, each padded to a power of two, that a program can hold in registers: 64 x 64."""

READS_HALF = True
"""x, delta, B, C and gy may be bfloat16 or float16 beside float32 for the rest; sums are float32."""

_PER_THREAD = 4  # tokens
_FEWEST = 1024  # tokens of a program: smaller images share one, and with it the loads of B and C
_REGISTERS = 128


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    directions: str = "cross",
) -> tuple[Tensor, Tensor]:
    """The merged output (batch, channel, row, col) in the dtype of x and, for `backward`, nothing.

    Args:
        x: (batch, channel, row, col), contiguous like all others.
        delta: (batch, 4, channel, row, col), in the order of the image.
        A: (4 channel, state).
        B: (batch, 4, state, row, col), in the order of the image.
        C: As B.
        D: (4 channel,).
        delta_bias: (4 channel,).
        softplus: Whether delta is passed through softplus after adding the bias.
        directions: A key of `ORDERS`.
    """
    rows, cols = (triton.next_power_of_2(size) for size in x.shape[2:])
    inputs = (x, delta, A, B, C, D, delta_bias)
    with torch.cuda.device_of(x):
        if rows * cols <= TOKENS:
            y = torch.empty_like(x)
            _scan_image(inputs, y, softplus, directions, (rows, cols))
        else:
            y = torch.empty_like(x, dtype=A.dtype)  # in which the directions are added up
            for k in range(4):
                _walk(inputs, k, y, softplus, directions, add=k > 0)
    return y.to(x.dtype), A.new_empty(0)


def backward(
    gy: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    checkpoints: Tensor,
    directions: str = "cross",
) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C, D and delta_bias; None where the input is None."""
    inputs = (x, delta, A, B, C, D, delta_bias)
    gx, gdelta = torch.empty_like(x, dtype=A.dtype), torch.empty_like(delta)
    gA, gB, gC = (A.new_empty(like.shape) for like in (A, B, C))
    gD, gbias = (None if like is None else A.new_empty(like.shape) for like in (D, delta_bias))
    with torch.cuda.device_of(x):
        for k in range(4):
            # The output of one direction alone is not needed.
            states = _walk(inputs, k, torch.empty_like(x), softplus, directions, add=False)
            sums = _walk_back(gy, inputs, k, states, (gx, gdelta), softplus, directions)
            part = slice(k * x.shape[1], (k + 1) * x.shape[1])
            gA[part], gB[:, k], gC[:, k] = sums[0], sums[1].view_as(gB[:, k]), sums[2].view_as(gC[:, k])
            for whole, value in ((gD, sums[3]), (gbias, sums[4])):
                if whole is not None:
                    whole[part] = value
    return gx, gdelta, gA, gB, gC, gD, gbias


def _scan_image(inputs: tuple[Any, ...], y: Tensor, softplus: bool, directions: str, padded: tuple[int, int]) -> None:
    """All four directions in one launch."""
    batch, channels, height, width = y.shape
    tokens = padded[0] * padded[1]
    dims = min(max(1, _FEWEST // tokens), 16)
    blocks = triton.cdiv(channels, dims)
    down, back = (sum(order[i] << k for k, order in enumerate(ORDERS[directions])) for i in range(2))
    unit = next(unit for unit in (8, 4, 2, 1) if width % unit == 0)
    image_kernel[(batch * blocks,)](
        *(*inputs, y, channels, height, width // unit, blocks, inputs[2].shape[1]),
        DIMS=dims,
        ROWS=padded[0],
        COLS=padded[1],
        UNIT=unit,
        SOFTPLUS=softplus,
        DOWN=down,
        BACK=back,
        SEGMENT=min(128, tokens),
        num_warps=max(1, dims * tokens // (32 * (8 if tokens > 2048 else _PER_THREAD))),
        maxnreg=_REGISTERS,
    )


def _direction(inputs: tuple[Any, ...], k: int) -> tuple[Any, ...]:
    """The tensors of direction k as the selective scan calls them; delta, B and C keep the strides of all four."""
    x, delta, A, B, C, D, bias = inputs
    part = slice(k * x.shape[1], (k + 1) * x.shape[1])
    vectors = (None if v is None else v[part] for v in (D, bias))
    return x, delta[:, k], A[part], B[:, k], C[:, k], *vectors


def _problem(inputs: tuple[Any, ...], k: int, tiles: Any, directions: str, add: bool) -> tuple[Problem, dict[str, Any]]:
    x, _, A, B, C = inputs[:5]
    channels, (height, width) = x.shape[1], x.shape[2:]
    like_B = B[:, :1].flatten(3)  # for its shape
    problem = Problem(x.flatten(2), A[:channels], like_B, like_B, tiles)
    problem.sizes = (*problem.sizes[:5], channels, 4 * channels, 4, height, width)
    down, back = ORDERS[directions][k]
    return problem, problem.constants | {"COLUMNS": down, "REVERSE": back, "ADD": add}


def _walk(inputs: tuple[Any, ...], k: int, y: Tensor, softplus: bool, directions: str, add: bool) -> Tensor:
    """Scans direction k into y, and returns the state before every chunk."""
    problem, constants = _problem(inputs, k, FORWARD, directions, add)
    x, delta, A, B, C, D, bias = _direction(inputs, k)
    batch, dim, state = problem.batch, problem.dim, problem.state
    last = A.new_empty(batch, dim, state)
    states = A.new_empty(batch, dim, triton.cdiv(problem.length, CHUNK), state)
    forward_kernel[(problem.programs,)](
        *(x, delta, A, B, C, D, None, bias, None, y, last, states), *problem.sizes, SOFTPLUS=softplus, **constants
    )
    return states


def _walk_back(
    gy: Tensor,
    inputs: tuple[Any, ...],
    k: int,
    states: Tensor,
    gradients: tuple[Tensor, Tensor],
    softplus: bool,
    directions: str,
) -> list[Any]:
    """Writes the gradients of x (added up from direction to direction) and delta; returns those of the others."""
    problem, constants = _problem(inputs, k, BACKWARD, directions, add=k > 0)
    x, delta, A, B, C, D, bias = _direction(inputs, k)
    gx, gdelta = gradients
    batch, dim, state = problem.batch, problem.dim, problem.state
    gA, gstart = A.new_empty(batch, dim, state), A.new_empty(batch, dim, state)
    gB, gC = (A.new_empty(problem.blocks, batch, state, problem.length) for _ in range(2))
    gD, gbias = (None if vector is None else A.new_empty(batch, dim) for vector in (D, bias))
    backward_kernel[(problem.programs,)](
        *(gy, None, x, delta, A, B, C, D, None, bias, states),
        *(gx, gdelta[:, k], gA, gB, gC, gD, None, gbias, gstart),
        *problem.sizes,
        SOFTPLUS=softplus,
        **constants,
    )
    return [None if part is None else part.sum(0) for part in (gA, gB, gC, gD, gbias)]
