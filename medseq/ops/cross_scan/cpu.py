"""The cross scan by the fused kernel (csrc/cross_scan.cpp): float32 or float64 tensors in CPU memory.

All inputs have one dtype, are contiguous and in the order of the image; so are all results. No copy of x, delta or y is
made; B and C are brought into tiles of each direction's order once for all channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from medseq.ops.backend import cpu_isa, kernels
from medseq.ops.cross_scan.naive import ORDERS

__all__ = ["backward", "checkpoint_shape", "forward", "output"]

# Below this many exponentials starting threads costs more than it saves.
_PARALLEL_FROM = 1 << 15
# Tokens between two states that `forward` keeps, and tokens of a strip of columns: csrc/cross_scan_image.hpp.
_TILE, _STRIP = 64, 1024
# Going back, tasks share the channels; each has its own sums for B and C.
_MOST_PARTS = 16
_PART_CHANNELS = 24


def checkpoint_shape(x: Tensor, A: Tensor) -> tuple[int, ...]:
    """(batch, direction, tile, state, channel): the states before every tile of at most 64 tokens."""
    batch, channels, rows, cols = x.shape
    # A strip of columns begins with a new tile; 64 // rows columns of 16 or more make up a strip of low images.
    wide = min(16 * max(_STRIP // 16 // max(rows, 1), 1), cols)
    down = -(-cols // max(wide, 1)) * -(-wide * rows // _TILE)
    return batch, 4, max(down, -(-rows * cols // _TILE)), A.shape[1], channels


class _Problem(NamedTuple):
    """Inputs as the kernel takes them; shapes as in `forward`."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    softplus: bool
    directions: str

    @property
    def parts(self) -> int:
        wide = max(self.A.shape[1], 16)
        return max(1, min(_MOST_PARTS, self.x.shape[1] * 16 // (_PART_CHANNELS * wide)))

    def numbers(self, packed: Tensor) -> tuple[list[int], list[int], list[int]]:
        sizes = [*self.x.shape, self.A.shape[1], self.parts]
        flags = [int(self.softplus), *(int(flag) for order in ORDERS[self.directions] for flag in order)]
        return sizes, flags, _addresses(*self[:7], packed)

    def packed(self, copies: int) -> Tensor:
        """Working memory for B and C of every direction, cut into tiles."""
        batch, directions, tiles, states, _ = checkpoint_shape(self.x, self.A)
        return self.B.new_empty(2 * copies, batch, directions, tiles, states, _TILE)

    def threads(self) -> int:
        work = 4 * self.x.numel() * max(self.A.shape[1], 1)
        return torch.get_num_threads() if work >= _PARALLEL_FROM else 1


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
    """The merged output (batch, channel, row, col) and, for `backward`, states as in `checkpoint_shape`.

    Arguments: `medseq.ops.cross_selective_scan`.
    """
    problem = _Problem(x, delta, A, B, C, D, delta_bias, softplus, directions)
    checkpoints = x.new_empty(checkpoint_shape(x, A))
    return _forward(problem, checkpoints), checkpoints


def output(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    directions: str = "cross",
) -> Tensor:
    """The merged output alone: `forward` where no gradient is wanted."""
    return _forward(_Problem(x, delta, A, B, C, D, delta_bias, softplus, directions), None)


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
    """Gradients of x, delta, A, B, C, D and delta_bias; None where the input is None.

    Args:
        gy: Gradient of the merged output, (batch, channel, row, col).
        x: This and the following as in `forward`.
        delta: As in `forward`.
        A: As in `forward`.
        B: As in `forward`.
        C: As in `forward`.
        D: As in `forward`.
        delta_bias: As in `forward`.
        softplus: As in `forward`.
        checkpoints: What `forward` returned; if empty, it runs again.
        directions: As in `forward`.
    """
    problem = _Problem(x, delta, A, B, C, D, delta_bias, softplus, directions)
    if checkpoints.shape != checkpoint_shape(x, A):
        checkpoints = forward(*problem)[1]
    gx, gdelta, gB, gC = (t.new_empty(t.shape) for t in (x, delta, B, C))
    # One row for every batch item; adding the rows in order makes sums independent of threads.
    gA, gD, gbias = (None if t is None else t.new_empty(x.shape[0], *t.shape) for t in (A, D, delta_bias))
    shares, packed = problem.packed(problem.parts), problem.packed(1)
    incoming = _addresses(gy, checkpoints)
    outputs = _addresses(gx, gdelta, gA, gB, gC, gD, gbias, shares)
    kernels().cross_scan_backward(
        cpu_isa(), x.dtype == torch.float64, *problem.numbers(packed), incoming, outputs, problem.threads()
    )
    gA, gD, gbias = (None if t is None else t.sum(0) for t in (gA, gD, gbias))
    return gx, gdelta, gA, gB, gC, gD, gbias


def _forward(problem: _Problem, checkpoints: Tensor | None) -> Tensor:
    x, packed = problem.x, problem.packed(1)
    y = x.new_empty(x.shape)
    kernels().cross_scan_forward(
        *(cpu_isa(), x.dtype == torch.float64, *problem.numbers(packed)),
        *(_addresses(y, checkpoints), problem.threads()),
    )
    return y


def _addresses(*arrays: Tensor | None) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in arrays]
