"""The kernels of bidirectional WKV in Triton. Used by triton.py only, which explains the plan.

A decayed sum is kept as exp(o) * (n, d) with o its largest exponent (chunked.py's Sums), so nothing overflows. A tile
is (CHUNK tokens, COLS channels); `carries` holds for every chunk the sum before it and the sum after it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

__all__ = ["carry_kernel", "gradient_kernel", "mean_kernel", "query_kernel", "total_kernel"]

EMPTY = tl.constexpr(-1e30)  # exponent of an empty sum: far below any real one, yet finite


@triton.jit
def _add(o1, n1, d1, s1, o2, n2, d2, s2):
    """Two neighbouring stretches of tokens: the farther one loses what the nearer one's tokens decay, s2."""
    gap = o1 - s2 - o2
    e = tl.exp(-tl.abs(gap))
    keep, take = tl.where(gap > 0, 1.0, e), tl.where(gap > 0, e, 1.0)
    return tl.maximum(o1 - s2, o2), keep * n1 + take * n2, keep * d1 + take * d2, s1 + s2


@triton.jit
def _place(length, channels, CHUNK: tl.constexpr, COLS: tl.constexpr):
    """This program's row of chunks, its chunk, its channels, the offset of its first token and the tile's offsets."""
    blocks = tl.cdiv(channels, COLS)
    program = tl.program_id(0)
    chunk_row = program // blocks
    chunks = tl.cdiv(length, CHUNK)
    chunk = chunk_row % chunks
    channel = (program % blocks) * COLS + tl.arange(0, COLS)[None, :]
    token = tl.arange(0, CHUNK)[:, None]
    begin = ((chunk_row // chunks).to(tl.int64) * length + chunk * CHUNK) * channels
    return chunk_row.to(tl.int64), chunk, channel, begin, token * channels + channel


@triton.jit
def _token_there(chunk, length, channel, channels, shift: tl.constexpr, CHUNK: tl.constexpr):
    token = chunk * CHUNK + tl.arange(0, CHUNK)[:, None] + shift
    return (token >= 0) & (token < length) & (channel < channels)


@triton.jit
def _key(k, at, there, TYPE: tl.constexpr):
    """K as an exponent; the finite floor stands for -inf, whose differences would be NaN."""
    x = tl.load(k + at, mask=there, other=EMPTY).to(TYPE)
    return tl.where(x < EMPTY, EMPTY, x)


@triton.jit
def _total(o, n, d):
    """The sum over all tokens of a tile."""
    top = tl.max(o, 0)[None, :]
    e = tl.exp(o - top)
    return top, tl.sum(e * n, 0)[None, :], tl.sum(e * d, 0)[None, :]


@triton.jit
def _save_total(carries, chunk_row, channel, channels, o, n, d, w, CHUNK: tl.constexpr):
    """What a chunk adds to the sum after it (decay to its end) and to the sum before it (to its begin)."""
    there = channel < channels
    step = tl.arange(0, CHUNK)[:, None]
    for side in tl.static_range(2):
        age = step if side == 1 else CHUNK - 1 - step
        to, tn, td = _total(o - w * age, n, d)
        base = carries + ((chunk_row * 2 + side) * 3) * channels + channel
        tl.store(base, to, mask=there)
        tl.store(base + channels, tn, mask=there)
        tl.store(base + 2 * channels, td, mask=there)


@triton.jit
def _carried(carries, chunk_row, side: tl.constexpr, channel, channels):
    there = channel < channels
    base = carries + ((chunk_row * 2 + side) * 3) * channels + channel
    o = tl.load(base, mask=there, other=EMPTY)
    n = tl.load(base + channels, mask=there, other=0.0)
    return o, n, tl.load(base + 2 * channels, mask=there, other=0.0)


@triton.jit
def _running(o, n, d, w, carries, chunk_row, channel, channels, FUTURE: tl.constexpr, CHUNK: tl.constexpr):
    """Sums at every token over all tokens before (FUTURE: after) it; the inputs are its neighbours' terms."""
    step = tl.arange(0, CHUNK)[:, None]
    first = step == (CHUNK - 1 if FUTURE else 0)
    co, cn, cd = _carried(carries, chunk_row, FUTURE, channel, channels)
    o, n, d = tl.where(first, co, o), tl.where(first, cn, n), tl.where(first, cd, d)
    decay = w + tl.zeros_like(o)
    o, n, d, _ = tl.associative_scan((o, n, d, decay), 0, _add, reverse=FUTURE)
    return o, n, d


@triton.jit
def _keys_sum(k, v, at, chunk, length, channel, channels, w, carries, chunk_row, FUTURE: tl.constexpr,
              CHUNK: tl.constexpr, TYPE: tl.constexpr):  # fmt: skip
    """The decayed sum of e^k (v, 1) over the tokens before (FUTURE: after) each."""
    shift: tl.constexpr = 1 if FUTURE else -1
    there = _token_there(chunk, length, channel, channels, shift, CHUNK)
    o = _key(k, at + shift * channels, there, TYPE)
    n = tl.load(v + at + shift * channels, mask=there, other=0.0).to(TYPE)
    return _running(o, n, tl.full(n.shape, 1.0, TYPE), w, carries, chunk_row, channel, channels, FUTURE, CHUNK)


@triton.jit
def total_kernel(k, v, w, carries, length, channels, CHUNK: tl.constexpr, COLS: tl.constexpr):
    """What every chunk adds to the sums of the others."""
    TYPE: tl.constexpr = w.dtype.element_ty
    chunk_row, chunk, channel, begin, at = _place(length, channels, CHUNK, COLS)
    there = _token_there(chunk, length, channel, channels, 0, CHUNK)
    decay = tl.load(w + channel, mask=channel < channels, other=0.0)
    o = _key(k + begin, at, there, TYPE)
    n = tl.load(v + begin + at, mask=there, other=0.0).to(TYPE)
    _save_total(carries, chunk_row, channel, channels, o, n, tl.full(n.shape, 1.0, TYPE), decay, CHUNK)


@triton.jit
def carry_kernel(carries, w, chunks, channels, CHUNK: tl.constexpr, COLS: tl.constexpr):
    """Replaces what each chunk adds by the sum over all chunks before it (side 0) or after it (side 1)."""
    blocks = tl.cdiv(channels, COLS)
    program = tl.program_id(0)
    channel = (program % blocks) * COLS + tl.arange(0, COLS)
    side = (program // blocks) % 2
    batch = (program // (2 * blocks)).to(tl.int64)
    there = channel < channels
    decay = tl.load(w + channel, mask=there, other=0.0)
    o = tl.zeros_like(decay) + EMPTY
    n = tl.zeros_like(decay)
    d = tl.zeros_like(decay)
    for i in range(chunks):
        chunk = i + side * (chunks - 1 - 2 * i)
        base = carries + (((batch * chunks + chunk) * 2 + side) * 3) * channels + channel
        new_o = tl.load(base, mask=there, other=EMPTY)
        new_n = tl.load(base + channels, mask=there, other=0.0)
        new_d = tl.load(base + 2 * channels, mask=there, other=0.0)
        tl.store(base, o, mask=there)
        tl.store(base + channels, n, mask=there)
        tl.store(base + 2 * channels, d, mask=there)
        o, n, d, _ = _add(o, n, d, decay, new_o, new_n, new_d, decay * CHUNK)


@triton.jit
def _mean(k, v, begin, at, chunk, length, channel, channels, decay, bonus, carries, chunk_row,
          CHUNK: tl.constexpr, TYPE: tl.constexpr):  # fmt: skip
    """The weighted mean at every token, and its denominator as exp(m) d."""
    there = _token_there(chunk, length, channel, channels, 0, CHUNK)
    po, pn, pd = _keys_sum(
        k + begin, v + begin, at, chunk, length, channel, channels, decay, carries, chunk_row, False, CHUNK, TYPE
    )
    fo, fn, fd = _keys_sum(
        k + begin, v + begin, at, chunk, length, channel, channels, decay, carries, chunk_row, True, CHUNK, TYPE
    )
    o = _key(k + begin, at, there, TYPE) + bonus
    m = tl.maximum(tl.maximum(po, fo), o)
    past, future, own = tl.exp(po - m), tl.exp(fo - m), tl.exp(o - m)
    d = past * pd + future * fd + own
    x = tl.load(v + begin + at, mask=there, other=0.0).to(TYPE)
    return (past * pn + future * fn + own * x) / d, m, d, there


@triton.jit
def mean_kernel(k, v, w, u, carries, y, length, channels, CHUNK: tl.constexpr, COLS: tl.constexpr):
    """The result, one chunk."""
    TYPE: tl.constexpr = w.dtype.element_ty
    chunk_row, chunk, channel, begin, at = _place(length, channels, CHUNK, COLS)
    decay = tl.load(w + channel, mask=channel < channels, other=0.0)
    bonus = tl.load(u + channel, mask=channel < channels, other=0.0)
    mean, _, _, there = _mean(
        k, v, begin, at, chunk, length, channel, channels, decay, bonus, carries, chunk_row, CHUNK, TYPE
    )
    tl.store(y + begin + at, mean, mask=there)


@triton.jit
def query_kernel(
    gy, k, v, w, u, carries, query_carries, qo, qn, qd, length, channels, CHUNK: tl.constexpr, COLS: tl.constexpr
):
    """The adjoint terms e^-m (q y, q), q = gy / d, of every token, and what every chunk adds to their sums."""
    TYPE: tl.constexpr = w.dtype.element_ty
    chunk_row, chunk, channel, begin, at = _place(length, channels, CHUNK, COLS)
    decay = tl.load(w + channel, mask=channel < channels, other=0.0)
    bonus = tl.load(u + channel, mask=channel < channels, other=0.0)
    mean, m, d, there = _mean(
        k, v, begin, at, chunk, length, channel, channels, decay, bonus, carries, chunk_row, CHUNK, TYPE
    )
    q = tl.load(gy + begin + at, mask=there, other=0.0).to(TYPE) / d
    o = tl.where(there, -m, EMPTY)
    tl.store(qo + begin + at, o, mask=there)
    tl.store(qn + begin + at, q * mean, mask=there)
    tl.store(qd + begin + at, q, mask=there)
    q = tl.where(there, q, 0.0)
    _save_total(query_carries, chunk_row, channel, channels, o, tl.where(there, q * mean, 0.0), q, decay, CHUNK)


@triton.jit
def _one_side(k, v, qo, qn, qd, begin, at, chunk, length, channel, channels, decay, carries, query_carries, chunk_row,
              o, PAST: tl.constexpr, CHUNK: tl.constexpr, TYPE: tl.constexpr):  # fmt: skip
    """e^k times the adjoints of the past (or future) sum at every token, and minus gw's share of it."""
    so, sn, sd = _keys_sum(
        k + begin, v + begin, at, chunk, length, channel, channels, decay, carries, chunk_row, not PAST, CHUNK, TYPE
    )
    shift: tl.constexpr = 1 if PAST else -1
    there = _token_there(chunk, length, channel, channels, shift, CHUNK)
    at += shift * channels
    ao = tl.load(qo + begin + at, mask=there, other=EMPTY)
    an = tl.load(qn + begin + at, mask=there, other=0.0)
    ad = tl.load(qd + begin + at, mask=there, other=0.0)
    ao, an, ad = _running(ao, an, ad, decay, query_carries, chunk_row, channel, channels, PAST, CHUNK)
    slope = tl.exp(so + ao - decay) * (ad * sn - an * sd)
    e = tl.exp(o + ao)
    return e * an, e * ad, slope


@triton.jit
def gradient_kernel(
    k, v, w, u, carries, query_carries, qo, qn, qd, gk, gv, gw, gu,
    length, channels, CHUNK: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v, and this chunk's share of those of w and u."""
    TYPE: tl.constexpr = w.dtype.element_ty
    chunk_row, chunk, channel, begin, at = _place(length, channels, CHUNK, COLS)
    there = _token_there(chunk, length, channel, channels, 0, CHUNK)
    decay = tl.load(w + channel, mask=channel < channels, other=0.0)
    bonus = tl.load(u + channel, mask=channel < channels, other=0.0)
    o = _key(k + begin, at, there, TYPE)
    n, d, slope = _one_side(
        k, v, qo, qn, qd, begin, at, chunk, length, channel, channels, decay, carries, query_carries, chunk_row,
        o, True, CHUNK, TYPE,
    )  # fmt: skip
    n2, d2, slope2 = _one_side(
        k, v, qo, qn, qd, begin, at, chunk, length, channel, channels, decay, carries, query_carries, chunk_row,
        o, False, CHUNK, TYPE,
    )  # fmt: skip
    slope = tl.where(there, slope + slope2, 0.0)
    own = tl.exp(o + bonus + tl.load(qo + begin + at, mask=there, other=EMPTY))
    x = tl.load(v + begin + at, mask=there, other=0.0).to(TYPE)
    own_n = own * tl.load(qn + begin + at, mask=there, other=0.0)
    own_d = own * tl.load(qd + begin + at, mask=there, other=0.0)
    d += d2 + own_d
    tl.store(gv + begin + at, d, mask=there)
    tl.store(gk + begin + at, x * d - (n + n2 + own_n), mask=there)
    at_sum = chunk_row * channels + channel
    tl.store(gw + at_sum, -tl.sum(slope, 0)[None, :], mask=channel < channels)
    tl.store(gu + at_sum, tl.sum(tl.where(there, own_d * x - own_n, 0.0), 0)[None, :], mask=channel < channels)
