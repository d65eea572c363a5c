"""The backward kernel of selective scan in Triton. Used by triton.py only, which explains the plan."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from medseq.ops.selective_scan.triton_forward import place, spot_of, state_of
from medseq.ops.triton_math import LOG2E, affine, sigmoid, silu, silu_slope, softplus

__all__ = ["backward_kernel"]


@triton.jit
def _step_size(delta, bias, at, valid, SOFTPLUS: tl.constexpr, TYPE: tl.constexpr):
    """Delta after bias and softplus, 0 where there is no token; and before softplus."""
    raw = tl.load(delta + at, mask=valid, other=0.0).to(TYPE) + bias
    dt = raw
    if SOFTPLUS:
        dt = softplus(raw)
    return tl.where(valid, dt, 0.0), raw


@triton.jit
def _per_channel(x, at, there, TYPE: tl.constexpr):
    """A column of one number per channel, 0 where x is None."""
    if x is None:
        return tl.zeros_like(at).to(TYPE)[:, None]
    else:
        return tl.load(x + at, mask=there, other=0.0)[:, None]


@triton.jit
def backward_kernel(
    gy, glast, u, delta, A, Bm, Cm, Dskip, z, bias, checkpoints,
    gu, gdelta, gA, gB, gC, gD, gz, gbias, gstart,
    dim, length, groups, blocks, STATE, token_rows, step_rows, pairs, height, width,
    STATES: tl.constexpr, DIMS: tl.constexpr, CHUNK: tl.constexpr,
    CONSTANT_B: tl.constexpr, CONSTANT_C: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    COLUMNS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """From the last chunk to the first: the states again from the checkpoint, then their adjoints the other way.

    With a = exp(delta A): m_t = a_t h_{t-1} is scanned instead of h_t = m_t + b_t, because gA and gdelta need m and
    h - b would cancel where the decay is strong; and l_t = gy_t C_t + a_{t+1} l_{t+1}.
    """
    TYPE: tl.constexpr = A.dtype.element_ty
    batch, group, block, channel, there = place(dim, groups, blocks, DIMS)
    row = batch * dim + channel
    lane = tl.arange(0, DIMS)
    state = tl.arange(0, STATES)[None, :]
    state_there = there[:, None] & (state < STATE)
    state_at = lane[:, None] * STATE + state
    adjoints = tl.zeros((DIMS, STATES), TYPE)  # l of the first token of the chunk after this one
    if glast is not None:
        adjoints = tl.load(glast + row * STATE + state_at, mask=state_there, other=0.0)
    gA_sum = tl.zeros((DIMS, STATES), TYPE)
    gB_sum = tl.zeros((DIMS, STATES), TYPE)
    gC_sum = tl.zeros((DIMS, STATES), TYPE)
    gD_sum = tl.zeros((DIMS,), TYPE)
    gbias_sum = tl.zeros((DIMS,), TYPE)
    step = tl.arange(0, CHUNK)[None, :]
    first = step == (CHUNK - 1 if REVERSE else 0)
    final = step == (0 if REVERSE else CHUNK - 1)
    onward: tl.constexpr = -1 if REVERSE else 1
    chunks = tl.cdiv(length, CHUNK)
    batches = tl.num_programs(0) // (blocks * groups)
    sequence = (batch * pairs + group) * STATE  # row of B and C for state 0
    partial = ((block * batches + batch) * groups + group) * STATE  # and of this program's gB and gC
    token_row = (batch * token_rows + channel) * length
    step_row = (batch * step_rows + channel) * length
    dt_bias = _per_channel(bias, channel + lane, there, TYPE)
    skip = _per_channel(Dskip, channel + lane, there, TYPE)
    for i in range(chunks):
        chunk = i if REVERSE else chunks - 1 - i
        token = chunk * CHUNK + step
        real = token < length
        valid = there[:, None] & real
        begin = 0 if COLUMNS else chunk * CHUNK
        spot = spot_of(token, begin, height, width, COLUMNS)
        spot_before = spot_of(token - onward, begin, height, width, COLUMNS)
        at = lane[:, None] * length + spot
        at_before = lane[:, None] * length + spot_before
        at_later = lane[:, None] * length + spot_of(token + onward, begin, height, width, COLUMNS)
        tokens, steps = token_row + begin, step_row + begin
        dt, _ = _step_size(delta + steps, dt_bias, at, valid, SOFTPLUS, TYPE)
        x = dt * tl.load(u + tokens + at, mask=valid, other=0.0).to(TYPE)
        # The neighbours' values are read again (from cache) instead of moved between threads.
        later = there[:, None] & (token + onward >= 0) & (token + onward < length)
        dt_later, _ = _step_size(delta + steps, dt_bias, at_later, later, SOFTPLUS, TYPE)
        before_real = (token - onward >= 0) & (token - onward < length)
        before = there[:, None] & before_real
        x_before, _ = _step_size(delta + steps, dt_bias, at_before, before, SOFTPLUS, TYPE)
        x_before *= tl.load(u + tokens + at_before, mask=before, other=0.0).to(TYPE)
        g = tl.load(gy + tokens + at, mask=valid, other=0.0).to(TYPE)
        if z is not None:
            g *= silu(tl.load(z + tokens + at, mask=valid, other=0.0).to(TYPE))
        gx = tl.zeros_like(x)  # of x = delta u
        gdt = tl.zeros_like(x)
        out = tl.zeros_like(x)
        for n in range(STATE):
            at_n = (channel + lane) * STATE + n
            row_n = (sequence + n) * length + begin
            An = tl.load(A + at_n, mask=there, other=0.0)[:, None]
            if CONSTANT_B:
                B_now = tl.load(Bm + at_n, mask=there, other=0.0)[:, None]
                B_before = B_now
            else:
                B_now = tl.load(Bm + row_n + spot, mask=real, other=0.0)
                B_before = tl.load(Bm + row_n + spot_before, mask=before_real, other=0.0)
            if CONSTANT_C:
                C_now = tl.load(Cm + at_n, mask=there, other=0.0)[:, None]
            else:
                C_now = tl.load(Cm + row_n + spot, mask=real, other=0.0)
            h = tl.load(checkpoints + (row * chunks + chunk) * STATE + lane * chunks * STATE + n, mask=there, other=0.0)
            a = tl.exp2(dt * (An * LOG2E))
            m = a * tl.where(first, h[:, None], x_before * B_before)
            m = tl.associative_scan((a, m), 1, affine, reverse=REVERSE)[1]
            h = m + x * B_now
            a = tl.exp2(dt_later * (An * LOG2E))
            adjoint = g * C_now
            adjoint = tl.where(final, adjoint + a * state_of(adjoints, n, STATES)[:, None], adjoint)
            adjoint = tl.associative_scan((a, adjoint), 1, affine, reverse=not REVERSE)[1]
            adjoints = tl.where(state == n, tl.sum(tl.where(first, adjoint, 0.0), 1)[:, None], adjoints)
            m *= adjoint
            gdt += An * m
            gA_sum += tl.where(state == n, tl.sum(dt * m, 1)[:, None], 0.0)
            gx += adjoint * B_now
            if CONSTANT_B:
                gB_sum += tl.where(state == n, tl.sum(adjoint * x, 1)[:, None], 0.0)
            else:
                at_n = (partial + n) * length + begin + spot
                tl.store(gB + at_n, tl.sum(adjoint * x, 0)[None, :], mask=real)
            if CONSTANT_C:
                gC_sum += tl.where(state == n, tl.sum(g * h, 1)[:, None], 0.0)
            else:
                at_n = (partial + n) * length + begin + spot
                tl.store(gC + at_n, tl.sum(g * h, 0)[None, :], mask=real)
            if z is not None:
                out += h * C_now
        # Read again rather than kept in registers over the loop.
        x = tl.load(u + tokens + at, mask=valid, other=0.0).to(TYPE)
        gdt += gx * x
        if SOFTPLUS:
            gdt *= sigmoid(tl.load(delta + steps + at, mask=valid, other=0.0).to(TYPE) + dt_bias)
        gbias_sum += tl.sum(tl.where(valid, gdt, 0.0), 1)
        gD_sum += tl.sum(g * x, 1)
        gx = gx * dt + skip * g
        if ADD:
            gx += tl.load(gu + tokens + at, mask=valid, other=0.0).to(TYPE)
        tl.store(gu + tokens + at, gx, mask=valid)
        tl.store(gdelta + steps + at, gdt, mask=valid)
        if z is not None:
            gate = silu_slope(tl.load(z + tokens + at, mask=valid, other=0.0).to(TYPE))
            g = tl.load(gy + tokens + at, mask=valid, other=0.0).to(TYPE)
            tl.store(gz + tokens + at, (out + skip * x) * gate * g, mask=valid)
    # Before the first token lies the initial state. (Padding at a reversed begin has taken that step already.)
    token = chunks * CHUNK - 1 if REVERSE else 0
    some = there[:, None] & (lane[:, None] * 0 + token < length)
    dt, _ = _step_size(
        delta + step_row,
        dt_bias,
        lane[:, None] * length + spot_of(token, 0, height, width, COLUMNS),
        some,
        SOFTPLUS,
        TYPE,
    )
    a = tl.exp2(dt * tl.load(A + channel * STATE + state_at, mask=state_there, other=0.0) * LOG2E)
    tl.store(gstart + row * STATE + state_at, a * adjoints, mask=state_there)
    tl.store(gA + row * STATE + state_at, gA_sum, mask=state_there)
    if CONSTANT_B:
        tl.store(gB + row * STATE + state_at, gB_sum, mask=state_there)
    if CONSTANT_C:
        tl.store(gC + row * STATE + state_at, gC_sum, mask=state_there)
    if Dskip is not None:
        tl.store(gD + row + lane, gD_sum, mask=there)
    if bias is not None:
        tl.store(gbias + row + lane, gbias_sum, mask=there)
