"""Bidirectional WKV in pure torch: runs on any device, vectorised over chunks, O(length * channels) memory.

Sums of exponentials are kept as ``Sums(o, n, d)`` = exp(o) * (n, d) with o their largest exponent, so nothing
overflows. A scan doubles its reach log2(chunk) times inside all chunks at once, then log2(number of chunks) times over
the chunks' totals. The backward pass is the scan of the adjoints (README.md), not autograd's recording of this one.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.ops.wkv.naive import EPSILON, chunk_length

__all__ = ["backward", "forward"]

_EXACT_CHUNK = 64
_EMPTY = -1e30  # exponent of an empty sum: far below any real one, yet finite


class Sums(NamedTuple):
    """exp(o) * n and exp(o) * d, each (batch, chunk, token, channel)."""

    o: Tensor
    n: Tensor
    d: Tensor

    def faded(self, decay: Tensor) -> "Sums":
        return Sums(self.o - decay, self.n, self.d)

    def flipped(self) -> "Sums":
        return Sums(*(x.flip(1, 2) for x in self))


def merged(a: Sums, b: Sums) -> Sums:
    """The sum of two."""
    o = torch.maximum(a.o, b.o)
    in_a, in_b = (a.o - o).exp(), (b.o - o).exp()
    return Sums(o, in_a * a.n + in_b * b.n, in_a * a.d + in_b * b.d)


def _running(x: Sums, decay: Tensor, dim: int) -> Sums:
    """Running sums along `dim`, the token itself included; an element loses `decay` in its exponent per step."""
    size, step = x.o.shape[dim], 1
    while step < size:
        reached = merged(
            Sums(*(y.narrow(dim, step, size - step) for y in x)),
            Sums(*(y.narrow(dim, 0, size - step) for y in x)).faded(decay * step),
        )
        x = Sums(*(torch.cat([y.narrow(dim, 0, step), z], dim) for y, z in zip(x, reached, strict=True)))
        step *= 2
    return x


def _delayed(x: Sums, dim: int) -> Sums:
    """Every sum moved one place on, so that an element no longer holds itself; the first is empty."""
    last = x.o.shape[dim] - 1
    fills = (_EMPTY, 0.0, 0.0)
    heads = (torch.full_like(y.narrow(dim, 0, 1), fill) for y, fill in zip(x, fills, strict=True))
    return Sums(*(torch.cat([head, y.narrow(dim, 0, last)], dim) for head, y in zip(heads, x, strict=True)))


def _past(x: Sums, w: Tensor) -> tuple[Sums, Sums]:
    """For every token the decayed sums over earlier tokens: of its own chunk, and of the chunks before."""
    length = x.o.shape[2]
    local = _running(x, w, 2)
    totals = Sums(*(y[:, :, -1:] for y in local))
    carried = _delayed(_running(totals, w * length, 1), 1)
    position = torch.arange(length, device=w.device, dtype=w.dtype)[:, None]
    before = Sums(carried.o - w * position, *(y.expand_as(x.o) for y in carried[1:]))
    return _delayed(local, 2), before


def _future(x: Sums, w: Tensor) -> tuple[Sums, Sums]:
    """`_past` seen from the other end."""
    inside, after = _past(x.flipped(), w)
    return inside.flipped(), after.flipped()


class _Chunks:
    """The sequence cut into chunks, padded at the end by tokens of no weight."""

    def __init__(self, k: Tensor, v: Tensor, chunk: int) -> None:
        self.length, self.chunk = k.shape[1], chunk
        # The finite floor stands for -inf, whose differences would be NaN.
        self.k, self.v = self.cut(k.clamp(min=_EMPTY), _EMPTY), self.cut(v)
        self.tokens = Sums(self.k, self.v, self.cut(torch.ones_like(v)))

    def cut(self, x: Tensor, fill: float = 0.0) -> Tensor:
        return F.pad(x, (0, 0, 0, -self.length % self.chunk), value=fill).unflatten(1, (-1, self.chunk))

    def position(self, like: Tensor) -> Tensor:
        """Place of a token in its chunk, (token, 1)."""
        return torch.arange(self.chunk, device=like.device, dtype=like.dtype)[:, None]

    def token(self, like: Tensor) -> Tensor:
        """Place of a token in the sequence, (1, chunk, token, 1)."""
        shape = like.shape[1:3]
        return torch.arange(shape.numel(), device=like.device).view(1, *shape, 1)

    def join(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)[:, : self.length]


def forward(
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
    convention: str,
) -> Float[Tensor, "batch length channel"]:
    """The weighted means; all inputs of one dtype, float32 or float64."""
    if convention == "exact":
        chunks = _Chunks(k, v, _EXACT_CHUNK)
        _, _, total = _exact_sums(w, u, chunks)
        return chunks.join(total.n / total.d)
    chunks = _Chunks(k, v, chunk_length(k.shape[1]))
    return chunks.join(_Chunk64(w, u, chunks).y)


def backward(
    gy: Float[Tensor, "batch length channel"],
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
    convention: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v for the gradient `gy` of the result."""
    if convention == "exact":
        chunks = _Chunks(k, v, _EXACT_CHUNK)
        gw, gu, gk, gv = _exact_backward(chunks.cut(gy), w, u, chunks)
    else:
        chunks = _Chunks(k, v, chunk_length(k.shape[1]))
        gw, gu, gk, gv = _Chunk64(w, u, chunks).backward(chunks.cut(gy))
    return gw.sum((0, 1, 2)), gu.sum((0, 1, 2)), chunks.join(gk), chunks.join(gv)


def _exact_sums(w: Tensor, u: Tensor, chunks: _Chunks) -> tuple[Sums, Sums, Sums]:
    past = merged(*_past(chunks.tokens, w))
    future = merged(*_future(chunks.tokens, w))
    return past, future, merged(merged(past, future), chunks.tokens.faded(-u))


def _paired(state: Sums, adjoint: Sums, decay: Tensor) -> Tensor:
    """A state against the adjoint of what it decays into: minus the derivative by w of that one step."""
    return (state.o + adjoint.o - decay).exp() * (adjoint.d * state.n - adjoint.n * state.d)


def _exact_backward(gy: Tensor, w: Tensor, u: Tensor, chunks: _Chunks) -> tuple[Tensor, ...]:
    past, future, total = _exact_sums(w, u, chunks)
    y, q = total.n / total.d, gy / total.d
    queries = Sums(-total.o, q * y, q)
    later, earlier = merged(*_future(queries, w)), merged(*_past(queries, w))
    seen = merged(merged(later, earlier), queries.faded(-u))
    weight = (chunks.k + seen.o).exp()
    gv = weight * seen.d
    gk = weight * (chunks.v * seen.d - seen.n)
    gu = (u + chunks.k - total.o).exp() * q * (chunks.v - y)
    gw = -_paired(past, later, w) - _paired(future, earlier, w)
    return gw, gu, gk, gv


class _Chunk64:
    """One evaluation of the chunk64 formula: its sums, their weights relative to exp(m), and the means `y`.

    A token sees the chunks before its own (`before`), the earlier tokens of its chunk (`inside`), all later ones
    (`after`), itself, and, with the factor 1 - e^w, the tokens s < j <= t of its chunk with growing weight (`grown`).
    """

    def __init__(self, w: Tensor, u: Tensor, chunks: _Chunks) -> None:
        self.w, self.u, self.chunks, k = w, u, chunks, chunks.k
        self.inside, self.before = _past(chunks.tokens, w)
        self.after = merged(*_future(chunks.tokens, w))
        not_first = torch.cat([torch.full_like(k[:, :, :1], _EMPTY), k[:, :, 1:]], 2)
        self.grown = _running(chunks.tokens._replace(o=not_first), -w, 2)
        # 1 - e^w = factor * e^shift, neither of which overflows.
        self.shift = w.clamp(min=0)
        self.factor = torch.where(w > 0, torch.expm1(-w), -torch.expm1(w))
        self.m = self._exponents().amax(0)
        self.weights = {
            "before": (self.before.o - w - self.m).exp(),
            "inside": (self.inside.o - self.m).exp(),
            "after": (self.after.o - w - self.m).exp(),
            "grown": self.factor * (self.grown.o + self.shift - self.m).exp(),
        }
        self.self_weight = (u + k - self.m).exp()
        self.d = sum(p * getattr(self, name).d for name, p in self.weights.items()) + self.self_weight + EPSILON
        n = sum(p * getattr(self, name).n for name, p in self.weights.items()) + self.self_weight * chunks.v
        self.y = n / self.d

    def _exponents(self) -> Tensor:
        """The exponents whose largest is m, stacked on axis 0: before, inside, itself, after, first, grown."""
        first = self.chunks.k[:, :, :1] + self.w * self.chunks.position(self.w)
        grown = self.grown.o + self.shift
        return torch.stack(
            [self.before.o - self.w, self.inside.o, self.u + self.chunks.k, self.after.o - self.w, first, grown]
        )

    def backward(self, gy: Tensor) -> tuple[Tensor, ...]:
        """Gradients of w and u (not yet summed over tokens), k and v."""
        w, k, v, y = self.w, self.chunks.k, self.chunks.v, self.y
        q = gy / self.d
        queries = Sums(-self.m, q * y, q)
        inside, later = _future(queries, w)
        earlier = merged(*_past(queries, w))
        growing = _running(queries.flipped(), -w, 2)
        grown = growing.flipped()
        # A chunk's first token is not in its grown sum; its exponent would not be bounded either.
        not_first = torch.where(self.chunks.position(w) > 0, k, _EMPTY)
        # The adjoints with their weights as seen from token j, its own query last.
        seen = [
            ((k + later.o - w).exp(), later),
            ((k + inside.o).exp(), inside),
            ((k + earlier.o - w).exp(), earlier),
            (self.factor * (not_first + grown.o + self.shift).exp(), grown),
            (self.self_weight, queries),
        ]
        gv = torch.stack([p * x.d for p, x in seen]).sum(0)
        gk = v * gv - torch.stack([p * x.n for p, x in seen]).sum(0)
        gu = self.self_weight * q * (v - y)
        gw = -_paired(self.after, earlier, 2 * w) - _paired(self.inside, inside, w)
        gw = gw - _paired(self.before, merged(later, inside), 2 * w) - _paired(self.inside, later, 2 * w)
        gw = gw + self.factor * _paired(self.grown, _delayed(growing, 2).flipped(), -w - self.shift)
        # The factors e^-w of the far sums and 1 - e^w of the grown one depend on w themselves.
        slope = (self.grown.o + w - self.m).exp()
        for p, x in ((self.weights["before"], self.before), (self.weights["after"], self.after), (slope, self.grown)):
            gw = gw - q * p * (x.n - y * x.d)
        return self._add_gradient_of_m(-EPSILON * q * y, gw, gu, gk, gv)

    def _add_gradient_of_m(self, gm: Tensor, gw: Tensor, gu: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor, ...]:
        """The scale m of EPSILON has a gradient, which belongs to the token with that exponent."""
        winner = self._exponents().argmax(0, keepdim=True)
        places = self._places()
        place = places.gather(0, winner)[0]
        behind = (self.chunks.token(gk) - place).to(gm.dtype)
        slopes = torch.stack([-behind, 1 - behind, 0 * behind, behind, behind, behind + (self.w > 0)])
        gw = gw + gm * slopes.gather(0, winner)[0]
        gu = gu + gm * (winner[0] == 2)
        gk = gk.flatten(1, 2).scatter_add(1, place.flatten(1, 2), gm.flatten(1, 2)).view_as(gk)
        return gw, gu, gk, gv

    def _places(self) -> Tensor:
        """Which token has each of `_exponents`; a place of an empty sum is arbitrary, because it never wins."""
        k, w = self.chunks.k, self.w
        token = self.chunks.token(k)
        start, position = token[:, :, :1], self.chunks.position(w)
        order = token[0, :, :, 0].flatten()[:, None].to(w.dtype)
        # The largest k_j - w (t - j) is the largest k_j + w j, whatever t is.
        rising = (k.flatten(1, 2) + w * order).cummax(1).indices.view_as(k)
        falling = (k.flatten(1, 2) - w * order).flip(1).cummax(1).indices
        falling = (order.shape[0] - 1 - falling.flip(1)).roll(-1, 1).view_as(k)
        inside = start + (k + w * position).cummax(2).indices.roll(1, 2)
        grown = start + 1 + (k[:, :, 1:] - w * position[1:]).cummax(2).indices
        grown = torch.cat([start.expand_as(k[:, :, :1]), grown], 2)
        before = rising[:, :, -1:].roll(1, 1).expand_as(k)
        return torch.stack([before, inside, token.expand_as(k), falling, start.expand_as(k), grown])
