"""The kernel that scans a small image in four directions while it lies in registers. Used by triton.py only."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from medseq.ops.triton_math import LOG2E, affine, softplus

__all__ = ["image_kernel"]


@triton.jit
def _in_order(x, COLUMNS: tl.constexpr):
    """Tokens (first axis, row, col) as sequences (first axis, token)."""
    if COLUMNS:
        x = tl.permute(x, (0, 2, 1))
    return tl.reshape(x, (x.shape[0], x.shape[1] * x.shape[2]))


@triton.jit
def _restored(y, ROWS: tl.constexpr, COLS: tl.constexpr, COLUMNS: tl.constexpr):
    """`_in_order` undone."""
    if COLUMNS:
        return tl.permute(tl.reshape(y, (y.shape[0], COLS, ROWS)), (0, 2, 1))
    else:
        return tl.reshape(y, (y.shape[0], ROWS, COLS))


@triton.jit
def _scan(a, b, REVERSE: tl.constexpr, SEGMENT: tl.constexpr):
    """h_t = a_t h_{t-1} + b_t along the second axis: within segments of one warp each, then over the segments.

    One scan over all tokens would keep the sums of all warps in every thread's registers.
    """
    segments: tl.constexpr = a.shape[1] // SEGMENT
    a3 = tl.reshape(a, (a.shape[0], segments, SEGMENT))
    b3 = tl.reshape(b, (a.shape[0], segments, SEGMENT))
    a3, b3 = tl.associative_scan((a3, b3), 2, affine, reverse=REVERSE)
    final = tl.arange(0, SEGMENT)[None, None, :] == (0 if REVERSE else SEGMENT - 1)
    a2 = tl.sum(tl.where(final, a3, 0.0), 2)
    b2 = tl.sum(tl.where(final, b3, 0.0), 2)
    carry = tl.associative_scan((a2, b2), 1, affine, reverse=REVERSE)[1]
    segment = tl.arange(0, segments)[None, :] + tl.zeros((a.shape[0], 1), tl.int32)
    if REVERSE:
        carry = tl.where(segment < segments - 1, tl.gather(carry, tl.minimum(segment + 1, segments - 1), 1), 0.0)
    else:
        carry = tl.where(segment > 0, tl.gather(carry, tl.maximum(segment - 1, 0), 1), 0.0)
    return tl.reshape(a3 * carry[:, :, None] + b3, (a.shape[0], a.shape[1]))


@triton.jit
def _direction(
    out, u, there, inside, tile, at, channel, channel_there, rows, plane, pixels, delta, A, Bm, Cm, bias, STATE,
    SOFTPLUS: tl.constexpr, COLUMNS: tl.constexpr, REVERSE: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """`out` plus one scan of `u`, both a sequence per channel.

    `rows` is the first row of delta, `plane` the first of B and C. Little is kept over the states' loop: registers are
    what limits the size of the image.
    """
    TYPE: tl.constexpr = A.dtype.element_ty
    dt = tl.load(delta + rows * pixels + tile, mask=there, other=0.0).to(TYPE)
    if bias is not None:
        dt += tl.load(bias + channel, mask=channel_there, other=0.0)[:, None, None]
    if SOFTPLUS:
        dt = softplus(dt)
    dt = tl.where(there, dt, 0.0)  # tokens that are not there leave the state as it is
    step = _in_order(dt, COLUMNS)
    for n in tl.range(STATE, disable_licm=True):
        rate = tl.load(A + channel * STATE + n, mask=channel_there, other=0.0)[:, None]
        begin = (plane + n) * pixels
        b = _in_order(tl.load(Bm + begin + at, mask=inside, other=0.0).to(TYPE), COLUMNS)
        a = tl.exp2(step * (rate * LOG2E))
        h = _scan(a, step * u * b, REVERSE, SEGMENT)
        out += h * _in_order(tl.load(Cm + begin + at, mask=inside, other=0.0).to(TYPE), COLUMNS)
    return out


@triton.jit(do_not_specialize=["STATE"])
def image_kernel(
    x, delta, A, Bm, Cm, Dskip, bias, y, channels, height, width, blocks, STATE,
    DIMS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, UNIT: tl.constexpr, SOFTPLUS: tl.constexpr,
    DOWN: tl.constexpr, BACK: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Reads x once and writes y once. Bit k of DOWN: direction k goes down the columns; of BACK: from the last token.

    `width` is in units of UNIT tokens, so that the compiler knows which loads can be wide.
    """
    width *= UNIT
    program = tl.program_id(0)
    first = program % blocks * DIMS
    batch = (program // blocks).to(tl.int64)
    pixels = height * width
    row, col = tl.arange(0, ROWS)[None, :, None], tl.arange(0, COLS)[None, None, :]
    inside = (row < height) & (col < width)
    at = row * width + col
    lane = tl.arange(0, DIMS)
    channel_there = first + lane < channels
    there = channel_there[:, None, None] & inside
    tile = lane[:, None, None] * pixels + at
    begin = (batch * channels + first) * pixels
    # The columns first, so that one accumulator serves all directions.
    u = _in_order(tl.load(x + begin + tile, mask=there, other=0.0).to(A.dtype.element_ty), True)
    out = tl.zeros_like(u)
    if Dskip is not None:
        for k in tl.static_range(4):
            skip = tl.load(Dskip + k * channels + first + lane, mask=channel_there, other=0.0)
            out += u * skip[:, None]
    for k in tl.static_range(8):
        if k == 4:
            out = _in_order(_restored(out, ROWS, COLS, True), False)
            u = _in_order(_restored(u, ROWS, COLS, True), False)
        if (DOWN >> (k % 4)) % 2 == (1 if k < 4 else 0):
            out = _direction(
                out, u, there, inside, tile, at, k % 4 * channels + first + lane, channel_there,
                (batch * 4 + k % 4) * channels + first, (batch * 4 + k % 4) * STATE, pixels,
                delta, A, Bm, Cm, bias, STATE, SOFTPLUS, k < 4, (BACK >> (k % 4)) % 2 == 1, SEGMENT,
            )  # fmt: skip
    tl.store(y + begin + tile, _restored(out, ROWS, COLS, False), mask=there)
