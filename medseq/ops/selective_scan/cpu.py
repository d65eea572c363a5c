"""The selective scan by the compiled kernel (csrc/selective_scan.cpp): float32 or float64 tensors in CPU memory.

All inputs have one dtype. Rows of tokens are read in place whatever their strides over batch and channels, so the
halves of a projection need no copies.
"""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from medseq.ops.backend import cpu_isa, kernels

__all__ = ["backward", "checkpoint_shape", "forward"]

# Below this many exponentials starting threads costs more than it saves.
_PARALLEL_FROM = 1 << 15
# Tokens between two states that `forward` keeps: kTile in csrc/selective_scan_tile.hpp.
_TILE = 64
KEEPS_ON_DEMAND = True  # `forward` takes `keep`
# Going back, tasks share the channels of a group; each has its own sums for B and C, which take N / 12 of u at most.
_MOST_PARTS = 16
_PART_CHANNELS = 24
_Rows = TypeVar("_Rows", Tensor, None)


class _Problem(NamedTuple):
    """Inputs as the kernel takes them; shapes as in `forward`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    softplus: bool
    initial_state: Tensor | None
    reverse: bool

    def prepared(self) -> "_Problem":
        """With tokens side by side in u, delta and z, and everything else contiguous."""
        ready: dict[str, Any] = {name: _straight(getattr(self, name)) for name in ("u", "delta", "z")}
        for name in ("A", "B", "C", "D", "delta_bias", "initial_state"):
            x = getattr(self, name)
            ready[name] = None if x is None else x.contiguous()
        return self._replace(**ready)

    @property
    def groups(self) -> int:
        return next((x.shape[1] for x in (self.B, self.C) if x.dim() == 4), 1)

    @property
    def parts(self) -> int:
        wide = max(self.A.shape[1], 16)
        channels = self.u.shape[1] // self.groups
        return max(1, min(_MOST_PARTS, channels * 16 // (_PART_CHANNELS * wide)))

    def numbers(self) -> tuple[list[int], list[int], list[int]]:
        sizes = [*self.u.shape, self.A.shape[1], self.groups, self.parts]
        flags = [self.B.dim() == 2, self.C.dim() == 2, self.softplus, self.reverse]
        arrays = (self.A, self.B, self.C, self.D, self.delta_bias, self.initial_state)
        return sizes, [int(x) for x in flags], [*_rows(self.u, self.delta, self.z), *_addresses(*arrays)]

    def threads(self) -> int:
        work = self.u.numel() * max(self.A.shape[1], 1)
        return torch.get_num_threads() if work >= _PARALLEL_FROM else 1


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Shape of what `forward` keeps for `backward`: (batch, tile, channel, state)."""
    return u.shape[0], -(-u.shape[2] // _TILE), u.shape[1], A.shape[1]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    initial_state: Tensor | None,
    reverse: bool = False,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the scan.

    Args:
        u: Input, (batch, channel, length).
        delta: Step sizes, (batch, channel, length).
        A: Rates, (channel, state).
        B: Per token, (batch, group, state, length), or constant, (channel, state).
        C: As B.
        D: Direct connection, (channel,).
        z: Gate, (batch, channel, length): the result is multiplied by silu(z).
        delta_bias: Added to `delta`, (channel,).
        softplus: Whether `delta` goes through softplus, after the bias.
        initial_state: State before the first token, (batch, channel, state).
        reverse: Scan from the last token to the first.
        keep: Return the states that `backward` starts from; otherwise nothing in their place.

    Returns:
        y (batch, channel, length), the last state (batch, channel, state) and, for `backward`, the states before every
        64th token, (batch, ceil(length / 64), channel, state).
    """
    problem = _Problem(u, delta, A, B, C, D, z, delta_bias, softplus, initial_state, reverse).prepared()
    batch, channels, length = u.shape
    y = u.new_empty(u.shape)
    last_state = u.new_empty(batch, channels, A.shape[1])
    checkpoints = u.new_empty(checkpoint_shape(u, A, B, C) if keep else 0)
    outputs = [*_rows(y), *_addresses(last_state, checkpoints)]
    kernels().selective_scan_forward(cpu_isa(), _is_double(u), *problem.numbers(), outputs, problem.threads())
    return y, last_state, checkpoints


def backward(
    gy: Tensor,
    glast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    initial_state: Tensor | None,
    checkpoints: Tensor,
    reverse: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None where the input is None.

    Args:
        gy: Gradient of y, (batch, channel, length).
        glast: Gradient of the last state, (batch, channel, state).
        u: This and the following as in `forward`.
        delta: As in `forward`.
        A: As in `forward`.
        B: As in `forward`.
        C: As in `forward`.
        D: As in `forward`.
        z: As in `forward`.
        delta_bias: As in `forward`.
        softplus: As in `forward`.
        initial_state: As in `forward`.
        checkpoints: What `forward` returned; if empty, it runs again.
        reverse: As in `forward`.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias, softplus, initial_state, reverse)
    problem = _Problem(*inputs).prepared()
    if checkpoints.numel() == 0:
        checkpoints = forward(*inputs)[2]
    batch, gy, glast = u.shape[0], _straight(gy), None if glast is None else glast.contiguous()
    gu, gdelta = u.new_empty(u.shape), u.new_empty(u.shape)
    gz = None if z is None else u.new_empty(u.shape)
    # One row for everything that works on its own; adding the rows in order makes sums independent of threads.
    gA, gD, gbias = (None if x is None else u.new_empty(batch, *x.shape) for x in (A, D, delta_bias))
    gB, gC = (_shared(x, batch, problem.parts) for x in (B, C))
    ginitial = None if initial_state is None else u.new_empty(initial_state.shape)
    incoming = [*_rows(gy), *_addresses(glast, checkpoints)]
    outputs = [*_rows(gu, gdelta, gz), *_addresses(gA, gB, gC, gD, gbias, ginitial)]
    kernels().selective_scan_backward(
        cpu_isa(), _is_double(u), *problem.numbers(), incoming, outputs, problem.threads()
    )
    gA, gD, gbias = (None if x is None else x.sum(0) for x in (gA, gD, gbias))
    gB, gC = (x.sum(0) if x.dim() == 3 else x.sum(2) for x in (gB, gC))
    return gu, gdelta, gA, gB, gC, gD, gz, gbias, ginitial


def _shared(x: Tensor, batch: int, parts: int) -> Tensor:
    """Memory for the gradient of B or C: per item if constant, else (batch, group, part, state, length)."""
    return x.new_empty(batch, *x.shape) if x.dim() == 2 else x.new_empty(*x.shape[:2], parts, *x.shape[2:])


def _straight(x: _Rows) -> _Rows:
    """The tensor with its tokens side by side."""
    return x if x is None or x.stride(2) == 1 or x.shape[2] < 2 else x.contiguous()


def _rows(*arrays: Tensor | None) -> list[int]:
    """Address and strides over batch and channels of each."""
    return [n for x in arrays for n in ((0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1)))]


def _addresses(*arrays: Tensor | None) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in arrays]


def _is_double(u: Tensor) -> bool:
    return u.dtype == torch.float64
