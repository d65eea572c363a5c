"""Selective scan on CUDA tensors: launches the kernels of triton_forward.py and triton_backward.py.

A program owns `dims` channels of one group and walks the sequence in chunks of `CHUNK` tokens. Inside a chunk it takes
one state n after the other: a parallel scan over the tokens, of which only the last value is carried on. So registers
hold a few tiles (dims, CHUNK) whatever the number of states, tokens are read where they lie, and B and C are read once
for all channels of the program. Half-precision inputs are read as they are and summed in float32.

No float atomics: sums over channels (gB, gC) and over the batch (gA, gD, ...) go through buffers that torch adds up, so
the same input gives the same bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from medseq.ops.selective_scan.triton_backward import backward_kernel
from medseq.ops.selective_scan.triton_forward import forward_kernel

__all__ = ["BACKWARD", "CHUNK", "FORWARD", "Problem", "READS_HALF", "Tile", "backward", "checkpoint_shape", "forward"]

CHUNK = 32
"""Tokens between two saved states: checkpoints take state / 32 of the size of u."""


READS_HALF = True
"""u, delta, B, C, z and gy may be bfloat16 or float16 beside float32 for the rest; sums are float32."""


class Tile(NamedTuple):
    """Channels of a program, its warps and the registers a thread may take.

    Without that limit the assembler spills a few registers where it sees a chance of more warps per processor.
    """

    dims: int
    warps: int
    registers: int


FORWARD = (Tile(4, 2, 80), Tile(16, 8, 80))
BACKWARD = (Tile(4, 4, 96), Tile(8, 4, 128))
"""The shipped tiles. The second reads B and C once for more channels; the first fills a GPU with a short batch."""

_WIDE_FROM = 1024  # programs of the wide tile: enough for several on each of a large GPU's processors


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Of the states that `forward` keeps for `backward`: the one before every chunk."""
    return u.shape[0], u.shape[1], (u.shape[2] + CHUNK - 1) // CHUNK, A.shape[1]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    Dskip: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    initial_state: Tensor | None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, dim, length), last state (batch, dim, state) and the state before every chunk.

    Args:
        u: (batch, dim, length), contiguous like all others.
        delta: As u.
        A: (dim, state).
        Bm: (batch, groups, state, length), or (dim, state) if constant.
        Cm: As Bm.
        Dskip: (dim,).
        z: As u.
        delta_bias: (dim,).
        softplus: Whether delta is passed through softplus after adding the bias.
        initial_state: (batch, dim, state).
        reverse: Scan from the last token to the first.
    """
    batch, dim, _ = u.shape
    state = A.shape[1]
    last = A.new_empty(batch, dim, state)
    checkpoints = A.new_empty(checkpoint_shape(u, A, Bm, Cm))
    u, delta, A, Bm, Cm = (x.contiguous() for x in (u, delta, A, Bm, Cm))
    y = torch.empty_like(u)
    problem = Problem(u, A, Bm, Cm, FORWARD)
    with torch.cuda.device_of(u):
        forward_kernel[(problem.programs,)](
            *(u, delta, A, Bm, Cm, _dense(Dskip), _dense(z), _dense(delta_bias), _dense(initial_state)),
            *(y, last, checkpoints),
            *problem.sizes,
            SOFTPLUS=softplus,
            REVERSE=reverse,
            **problem.constants,
        )
    return y, last, checkpoints


def backward(
    gy: Tensor,
    glast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    Dskip: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    initial_state: Tensor | None,
    checkpoints: Tensor,
    reverse: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, Bm, Cm, Dskip, z, delta_bias and initial_state; None where the input is None."""
    batch, dim, _ = u.shape
    state = A.shape[1]
    if checkpoints.shape != checkpoint_shape(u, A, Bm, Cm):  # not kept, or by another implementation
        checkpoints = forward(u, delta, A, Bm, Cm, Dskip, z, delta_bias, softplus, initial_state, reverse)[2]
    u, delta, A, Bm, Cm, gy = (x.contiguous() for x in (u, delta, A, Bm, Cm, gy))
    problem = Problem(u, A, Bm, Cm, BACKWARD)
    gu, gdelta = torch.empty_like(u), torch.empty_like(delta)
    gz = None if z is None else torch.empty_like(u)
    # Partial sums, one per program: added up below in a fixed order.
    gA, gstart = A.new_empty(batch, dim, state), A.new_empty(batch, dim, state)
    gB, gC = problem.partial(Bm, A), problem.partial(Cm, A)
    gD = None if Dskip is None else A.new_empty(batch, dim)
    gbias = None if delta_bias is None else A.new_empty(batch, dim)
    with torch.cuda.device_of(u):
        backward_kernel[(problem.programs,)](
            *(gy, _dense(glast), u, delta, A, Bm, Cm, _dense(Dskip), _dense(z), _dense(delta_bias), checkpoints),
            *(gu, gdelta, gA, gB, gC, gD, gz, gbias, gstart),
            *problem.sizes,
            SOFTPLUS=softplus,
            REVERSE=reverse,
            **problem.constants,
        )
    sums = [None if g is None else g.sum(0) for g in (gA, gB, gC, gD, gbias)]
    return gu, gdelta, *sums[:4], gz, sums[4], None if initial_state is None else gstart


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


class Problem:
    """Sizes and compile-time constants of one launch."""

    def __init__(self, u: Tensor, A: Tensor, Bm: Tensor, Cm: Tensor, tiles: tuple[Tile, ...]) -> None:
        self.batch, self.dim, self.length = u.shape
        self.state = A.shape[1]
        self.groups = next((x.shape[1] for x in (Bm, Cm) if x.dim() == 4), 1)
        per_group = self.dim // self.groups
        narrow, wide = tiles
        enough = self.batch * self.groups * triton.cdiv(per_group, wide.dims) >= _WIDE_FROM
        self.tile = wide if enough else narrow
        self.blocks = triton.cdiv(per_group, self.tile.dims)
        self.programs = self.batch * self.groups * self.blocks
        self.sizes = (
            self.dim,
            self.length,
            self.groups,
            self.blocks,
            self.state,
            self.dim,
            self.dim,
            self.groups,
            1,
            1,
        )
        self.constants = {
            "STATES": triton.next_power_of_2(self.state),
            "DIMS": self.tile.dims,
            "CHUNK": CHUNK,
            "CONSTANT_B": Bm.dim() == 2,
            "CONSTANT_C": Cm.dim() == 2,
            "COLUMNS": False,
            "ADD": False,
            "num_warps": self.tile.warps,
            "maxnreg": self.tile.registers,
        }

    def partial(self, x: Tensor, like: Tensor) -> Tensor:
        """A buffer for the gradient of B or C whose first axis is to be added up."""
        if x.dim() == 2:
            return like.new_empty(self.batch, *x.shape)
        return like.new_empty(self.blocks, *x.shape)
