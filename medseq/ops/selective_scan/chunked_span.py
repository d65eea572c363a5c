"""One span of the chunked selective scan, forward and backward. Used by chunked.py, which explains the plan.

Arrays over the tokens of a span are (place, chunk, row, ...): place k of all chunks lies together, so that a step of
the recurrence is one operation on contiguous memory.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Gradients", "Span"]

_LOG2E = math.log2(math.e)


class Inputs(Protocol):
    """A block of rows and channels; shapes in chunked.py."""

    @property
    def u(self) -> Tensor: ...
    @property
    def delta(self) -> Tensor: ...
    @property
    def A(self) -> Tensor: ...
    @property
    def B(self) -> Tensor: ...
    @property
    def C(self) -> Tensor: ...
    @property
    def D(self) -> Tensor | None: ...
    @property
    def z(self) -> Tensor | None: ...
    @property
    def bias(self) -> Tensor | None: ...


class Gradients(NamedTuple):
    """Views that `Span.pull` adds a block's gradients to; shapes of the inputs."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None


class Span:
    """Tokens [start, stop) of a block: `scan` computes their states, `output` reads them, `pull` goes back."""

    def __init__(
        self, block: Inputs, start: int, stop: int, chunk: int, constant: tuple[bool, bool], softplus: bool
    ) -> None:
        self.start, self.stop, self.chunk = start, stop, chunk
        self.constant_b, self.constant_c = constant
        self.softplus, self.A, self.D = softplus, block.A, block.D
        raw = block.delta[..., start:stop]
        self.raw = raw if block.bias is None else raw + block.bias[..., None]
        # Tokens that only fill the last chunk have dt = 0: they leave the state as it is.
        self.dt = self.cut(F.softplus(self.raw) if softplus else self.raw)
        self.u = self.cut(block.u[..., start:stop])
        self.z = None if block.z is None else self.cut(block.z[..., start:stop])
        self.entering = self.dt * self.u
        self.B = block.B if self.constant_b else self.cut(block.B[..., start:stop])
        self.C = block.C if self.constant_c else self.cut(block.C[..., start:stop])

    def cut(self, x: Tensor) -> Tensor:
        """(row, channel, token) as (place, chunk, row, channel), zeros after the end."""
        rows, channels = x.shape[:2]
        # In two steps: torch transposes a plain matrix in blocks, other orders element by element.
        x = F.pad(x, (0, -x.shape[-1] % self.chunk)).reshape(rows * channels, -1).t().contiguous()
        return x.view(-1, self.chunk, rows, channels).transpose(0, 1).contiguous()

    def joined(self, x: Tensor) -> Tensor:
        """`cut` undone."""
        rows, channels = x.shape[2:]
        x = x.transpose(0, 1).reshape(-1, rows * channels)
        return x.t().contiguous().view(rows, channels, -1)[..., : self.stop - self.start]

    def scan(self, state: Tensor) -> Tensor:
        """Computes all states; takes the one before the span, (row, state, channel), and returns the one after it."""
        rate = self.A * _LOG2E
        self.decay = (self.dt.unsqueeze(-2) * rate).exp2_()
        self.whole = (self.dt.sum(0).unsqueeze(-2) * rate).exp2_()
        self.h = self.spread(self.entering, self.B, self.constant_b)
        decays, places = self.decay.unbind(), self.h.unbind()
        end = places[0].clone()
        for decay, place in zip(decays[1:], places[1:], strict=True):
            end.mul_(decay).add_(place)
        self.before, state = _carried(end, self.whole, state)
        h = self.before
        for decay, place in zip(decays, places, strict=True):
            h = place.addcmul_(decay, h)
        return state

    def spread(self, x: Tensor, weight: Tensor, constant: bool) -> Tensor:
        """One number per channel times B or C: (place, chunk, row, state, channel)."""
        return x.unsqueeze(-2) * (weight if constant else weight.unsqueeze(-1))

    def read(self, x: Tensor, weight: Tensor, constant: bool) -> Tensor:
        """The sum over states of `x` times B or C: (place, chunk, row, channel)."""
        if weight.shape[-1 if not constant else -2] == 1:  # matmul is slow for a product of two numbers
            return (x * (weight if constant else weight.unsqueeze(-1))).squeeze(-2)
        return (x * weight).sum(-2) if constant else torch.matmul(weight.unsqueeze(-2), x).squeeze(-2)

    def ungated(self) -> Tensor:
        y = self.read(self.h, self.C, self.constant_c)
        return y if self.D is None else y.add_(self.D * self.u)

    def output(self) -> Tensor:
        """(row, channel, token)."""
        y = self.ungated()
        return self.joined(y if self.z is None else y.mul_(F.silu(self.z)))

    def pull(self, gy: Tensor, adjoint: Tensor, out: Gradients) -> Tensor:
        """Adds this span's gradients to `out`; `scan` must have run.

        Args:
            gy: Gradient of the output, (row, channel, token).
            adjoint: Gradient of the state after the span, (row, state, channel).
            out: Where the gradients are added.

        Returns:
            Gradient of the state before the span.
        """
        tokens = slice(self.start, self.stop)
        g = self.cut(gy)
        if self.z is not None and out.z is not None:
            gate = self.z.sigmoid()
            out.z[..., tokens] = self.joined(g * self.ungated() * gate * (1 + self.z * (1 - gate)))
            g = g * self.z * gate
        self.collect(out.C, self.h, g, self.constant_c)
        adjoints = self.spread(g, self.C, self.constant_c)
        adjoint = self.adjoints_filled(adjoints, adjoint)
        self.collect(out.B, adjoints, self.entering, self.constant_b)
        g_entering = self.read(adjoints, self.B, self.constant_b)

        # decay_k h_{k-1}, taken as the product: h_k minus what entered would cancel under strong decay.
        kept = self.decay
        kept[1:].mul_(self.h[:-1])
        kept[0].mul_(self.before)
        kept.mul_(adjoints)
        g_dt = (kept * self.A).sum(-2).addcmul_(g_entering, self.u)
        out.A.add_(kept.mul_(self.dt.unsqueeze(-2)).sum((0, 1)))

        g_u = g_entering.mul_(self.dt)
        if self.D is not None and out.D is not None:
            out.D.add_((g * self.u).sum((0, 1)))
            g_u.addcmul_(g, self.D)
        out.u[..., tokens] = self.joined(g_u)
        g_raw = self.joined(g_dt)
        g_raw = g_raw * self.raw.sigmoid() if self.softplus else g_raw
        out.delta[..., tokens] = g_raw
        if out.bias is not None:
            out.bias.add_(g_raw.sum(-1))
        return adjoint

    def adjoints_filled(self, adjoints: Tensor, adjoint: Tensor) -> Tensor:
        """Lets the adjoints of the states flow back through the decays, in place; returns the one before the span."""
        decays, places = self.decay.unbind()[::-1], adjoints.unbind()[::-1]
        first = places[0].clone()
        for decay, place in zip(decays[:-1], places[1:], strict=True):
            first.mul_(decay).add_(place)
        after, adjoint = _carried(first.mul_(decays[-1]).flip(0), self.whole.flip(0), adjoint)
        later = places[0].add_(after.flip(0))
        for decay, place in zip(decays[:-1], places[1:], strict=True):
            later = place.addcmul_(decay, later)
        return adjoint

    def collect(self, out: Tensor, x: Tensor, per_channel: Tensor, constant: bool) -> None:
        """Adds the gradient of B or C: `x` times one number per channel, summed over tokens or channels."""
        if constant:
            out.add_((x * per_channel.unsqueeze(-2)).sum((0, 1)))
        else:
            summed = torch.matmul(x, per_channel.unsqueeze(-1)).squeeze(-1)
            out[..., self.start : self.stop].add_(self.joined(summed))


def _carried(ends: Tensor, whole: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk, and after the last one.

    Args:
        ends: What every chunk adds, (chunk, row, state, channel).
        whole: Decay over every chunk.
        state: State before the first chunk, (row, state, channel).
    """
    states = [state]
    for end, decay in zip(ends.unbind(), whole.unbind(), strict=True):
        states.append(torch.addcmul(end, decay, states[-1]))
    return torch.stack(states[:-1]), states[-1]
