"""The selective scan in pure torch: any device, no compiler, memory O(length * dim).

The sequence is cut into spans and a span into chunks of 32 tokens. One loop over the 32 places moves all chunks of a
span at once; a loop over the chunks carries the states from one to the next. No quotient of decays is taken, so nothing
over- or underflows that does not in the definition. The backward pass recomputes a span's states from the state before
it (README.md), so that (dim, state, length) numbers never stand in memory together. The work on one span is in
chunked_span.py.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from medseq.ops.selective_scan.chunked_span import Gradients, Span

__all__ = ["backward", "checkpoint_shape", "forward"]

_CHUNK = 32
_SPAN = 512  # tokens of a span; a narrow problem takes longer ones
_LONGEST = 2048
_ELEMENTS = 1 << 19  # states of a span in work at once: a few arrays of them stay in a processor's cache


class _Plan(NamedTuple):
    """How one problem is cut. Batch items and groups are `rows`, each with its own B and C and `dims` channels."""

    batch: int
    groups: int
    dims: int
    states: int
    length: int
    span: int

    @property
    def rows(self) -> int:
        return self.batch * self.groups

    @property
    def checkpoints(self) -> tuple[int, int, int, int]:
        return -(-self.length // self.span), self.rows, self.states, self.dims

    def pieces(self) -> Iterator[tuple[slice, slice]]:
        """Rows and channels of blocks whose spans hold about `_ELEMENTS` states."""
        fitting = max(_ELEMENTS // (min(self.span, self.length) * max(self.states, 1)), 1)
        dims = _even(self.dims, fitting)
        rows = _even(self.rows, max(fitting // dims, 1))
        for row in range(0, self.rows, rows):
            for dim in range(0, self.dims, dims):
                yield slice(row, row + rows), slice(dim, dim + dims)

    def starts(self) -> range:
        return range(0, self.length, self.span)


def _even(total: int, most: int) -> int:
    """Size of the pieces when `total` is cut into the fewest even pieces of at most `most`."""
    count = -(-total // most)
    return -(-total // count)


def _plan(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Plan:
    batch, dim, length = u.shape
    groups = next((x.shape[1] for x in (B, C) if x.dim() == 4), 1)
    span = min(max(_ELEMENTS // max(batch * dim * A.shape[1], 1), _SPAN), _LONGEST) // _CHUNK * _CHUNK
    return _Plan(batch, groups, dim // groups, A.shape[1], length, span)


def checkpoint_shape(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Shape of what `forward` keeps, the states before every span: (span, row, state, channel of the row)."""
    return _plan(u, A, B, C).checkpoints


class _Rows(NamedTuple):
    """Tensors by row; a row is a group of a batch item.

    u, delta, z: (row, channel, length); A: (row, state, channel); D, bias: (row, channel);
    B, C: (row, state, length) or, if constant, (row, state, channel).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None

    def block(self, rows: slice, dims: slice, constant: tuple[bool, bool]) -> "_Rows":
        b, c = (x[rows, :, dims] if fixed else x[rows] for x, fixed in zip((self.B, self.C), constant, strict=True))
        narrow = (None if x is None else x[rows, dims] for x in (self.D, self.z, self.bias))
        return _Rows(self.u[rows, dims], self.delta[rows, dims], self.A[rows, :, dims], b, c, *narrow)


class _Problem:
    """The inputs of one call by row, in the order of the scan."""

    def __init__(
        self,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
        softplus: bool,
        reverse: bool,
    ) -> None:
        u, delta, A, B, C, D, z, bias = inputs
        self.plan = _plan(u, A, B, C)
        self.softplus, self.reverse = softplus, reverse
        self.constant = (B.dim() == 2, C.dim() == 2)
        b, c = (self.matrix(x) if x.dim() == 2 else self.ordered(x.flatten(0, 1)) for x in (B, C))
        self.rows = _Rows(
            *(self.tokens(u), self.tokens(delta), self.matrix(A), b, c),
            *(self.vector(D), None if z is None else self.tokens(z), self.vector(bias)),
        )

    def ordered(self, x: Tensor) -> Tensor:
        return x.flip(-1) if self.reverse else x

    def tokens(self, x: Tensor) -> Tensor:
        """(batch, dim, length) by row."""
        return self.ordered(x.reshape(self.plan.rows, self.plan.dims, self.plan.length))

    def matrix(self, x: Tensor) -> Tensor:
        """(dim, state) as (row, state, channel)."""
        by_group = x.view(self.plan.groups, self.plan.dims, self.plan.states).transpose(1, 2)
        return by_group.repeat(self.plan.batch, 1, 1)

    def vector(self, x: Tensor | None) -> Tensor | None:
        """(dim,) as (row, channel)."""
        return None if x is None else x.view(self.plan.groups, self.plan.dims).repeat(self.plan.batch, 1)

    def state(self, x: Tensor | None) -> Tensor:
        """(batch, dim, state), or zeros, as (row, state, channel)."""
        if x is None:
            return self.rows.u.new_zeros(self.plan.rows, self.plan.states, self.plan.dims)
        # A copy: it is written over.
        by_row = x.reshape(self.plan.rows, self.plan.dims, self.plan.states).transpose(1, 2)
        return by_row.clone(memory_format=torch.contiguous_format)

    def joined_tokens(self, x: Tensor) -> Tensor:
        """`tokens` undone."""
        return self.ordered(x).reshape(self.plan.batch, -1, self.plan.length)

    def joined_state(self, x: Tensor) -> Tensor:
        """`state` undone."""
        return x.transpose(1, 2).reshape(self.plan.batch, -1, self.plan.states)

    def span(self, block: _Rows, start: int) -> Span:
        stop = min(start + self.plan.span, self.plan.length)
        return Span(block, start, stop, min(_CHUNK, stop - start), self.constant, self.softplus)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state and the states before every span, for `backward`. Arguments: `naive.selective_scan`."""
    problem = _Problem((u, delta, A, B, C, D, z, delta_bias), softplus, reverse)
    plan = problem.plan
    y = u.new_empty(plan.rows, plan.dims, plan.length)
    state = problem.state(initial_state)
    checkpoints = u.new_empty(plan.checkpoints)
    for rows, dims in plan.pieces():
        block, carried = problem.rows.block(rows, dims, problem.constant), state[rows, :, dims]
        for index, start in enumerate(plan.starts()):
            checkpoints[index, rows, :, dims] = carried
            span = problem.span(block, start)
            carried = span.scan(carried)
            y[rows, dims, start : span.stop] = span.output()
        state[rows, :, dims] = carried
    return problem.joined_tokens(y), problem.joined_state(state), checkpoints


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
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; None where the input is None."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    problem = _Problem(inputs, softplus, reverse)
    plan = problem.plan
    if checkpoints.shape != plan.checkpoints:  # not kept, or another implementation's
        checkpoints = forward(*inputs, softplus, initial_state, reverse)[2]
    incoming = problem.tokens(gy)
    # B and C collect from all blocks of channels, the parameters from all spans.
    total = _Rows(*(None if x is None else torch.zeros_like(x) for x in problem.rows))  # type: ignore[arg-type]
    state = problem.state(glast)
    for rows, dims in plan.pieces():
        block, part = (x.block(rows, dims, problem.constant) for x in (problem.rows, total))
        carried = state[rows, :, dims]
        for index, start in reversed(list(enumerate(plan.starts()))):
            span = problem.span(block, start)
            span.scan(checkpoints[index, rows, :, dims])
            carried = span.pull(incoming[rows, dims, start : span.stop], carried, Gradients(*part))
        state[rows, :, dims] = carried
    return _gathered(problem, total, None if initial_state is None else problem.joined_state(state))


def _gathered(problem: _Problem, total: _Rows, initial_state: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients in the shapes of the inputs."""
    plan = problem.plan

    def matrix(x: Tensor) -> Tensor:
        summed = x.view(plan.batch, plan.groups, plan.states, plan.dims).sum(0)
        return summed.transpose(1, 2).reshape(-1, plan.states)

    def vector(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.view(plan.batch, -1).sum(0)

    b, c = (
        matrix(x) if fixed else problem.ordered(x).view(plan.batch, plan.groups, plan.states, plan.length)
        for x, fixed in zip((total.B, total.C), problem.constant, strict=True)
    )
    gz = None if total.z is None else problem.joined_tokens(total.z)
    gu, gdelta = problem.joined_tokens(total.u), problem.joined_tokens(total.delta)
    return gu, gdelta, matrix(total.A), b, c, vector(total.D), gz, vector(total.bias), initial_state
