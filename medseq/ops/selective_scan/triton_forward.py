"""The forward kernel of selective scan in Triton. Used by triton.py only, which explains the plan."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from medseq.ops.triton_math import LOG2E, affine, silu, softplus

__all__ = ["forward_kernel", "place", "spot_of", "state_of"]


@triton.jit
def place(dim, groups, blocks, DIMS: tl.constexpr):
    """Batch item, group, block and first channel of this program, and which of its `DIMS` channels exist.

    Only what starts at the first channel is a 64-bit offset: 64-bit tiles would take half of the registers.
    """
    program = tl.program_id(0)
    block = program % blocks
    group = (program // blocks) % groups
    batch = (program // (blocks * groups)).to(tl.int64)
    per_group = dim // groups
    there = block * DIMS + tl.arange(0, DIMS) < per_group
    return batch, group, block, group * per_group + block * DIMS, there


@triton.jit
def state_of(states, n, STATES: tl.constexpr):
    """Column n of `states` (channel, state), which is held in registers."""
    return tl.sum(tl.where(tl.arange(0, STATES)[None, :] == n, states, 0.0), 1)


@triton.jit
def spot_of(token, begin, height, width, COLUMNS: tl.constexpr):
    """Where tokens lie, from place `begin`: down the columns of an image if COLUMNS, else one after the other."""
    if COLUMNS:
        return token % height * width + token // height - begin
    else:
        return token - begin


@triton.jit
def forward_kernel(
    u, delta, A, Bm, Cm, Dskip, z, bias, start, y, last, checkpoints,
    dim, length, groups, blocks, STATE, token_rows, step_rows, pairs, height, width,
    STATES: tl.constexpr, DIMS: tl.constexpr, CHUNK: tl.constexpr,
    CONSTANT_B: tl.constexpr, CONSTANT_C: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    COLUMNS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t;  y_t = (<C_t, h_t> + D u_t) silu(z_t).

    A batch item has `token_rows` rows in u, z and y, `step_rows` in delta, and `pairs` groups in B and C: more than
    `dim` and `groups` where the scan is one of several. With ADD the output is added to what is there.
    """
    batch, group, _, channel, there = place(dim, groups, blocks, DIMS)
    row = batch * dim + channel
    lane = tl.arange(0, DIMS)
    state = tl.arange(0, STATES)[None, :]
    state_there = there[:, None] & (state < STATE)
    state_at = lane[:, None] * STATE + state
    states = tl.zeros((DIMS, STATES), A.dtype.element_ty)
    if start is not None:
        states = tl.load(start + row * STATE + state_at, mask=state_there, other=0.0)
    step = tl.arange(0, CHUNK)[None, :]
    first = step == (CHUNK - 1 if REVERSE else 0)
    final = step == (0 if REVERSE else CHUNK - 1)
    chunks = tl.cdiv(length, CHUNK)
    sequence = (batch * pairs + group) * STATE  # row of B and C for state 0
    token_row = (batch * token_rows + channel) * length
    step_row = (batch * step_rows + channel) * length
    for i in range(chunks):
        chunk = chunks - 1 - i if REVERSE else i
        at = lane[:, None] * chunks * STATE + state
        tl.store(checkpoints + (row * chunks + chunk) * STATE + at, states, mask=state_there)
        begin = 0 if COLUMNS else chunk * CHUNK
        spot = spot_of(chunk * CHUNK + step, begin, height, width, COLUMNS)
        at = lane[:, None] * length + spot
        real = step < length - chunk * CHUNK
        valid = there[:, None] & real
        x = tl.load(u + (token_row + begin) + at, mask=valid, other=0.0).to(A.dtype.element_ty)
        dt = tl.load(delta + (step_row + begin) + at, mask=valid, other=0.0).to(A.dtype.element_ty)
        if bias is not None:
            dt += tl.load(bias + channel + lane, mask=there, other=0.0)[:, None]
        if SOFTPLUS:
            dt = softplus(dt)
        dt = tl.where(valid, dt, 0.0)  # tokens that are not there leave the state as it is
        out = tl.zeros_like(x)
        if Dskip is not None:
            out = x * tl.load(Dskip + channel + lane, mask=there, other=0.0)[:, None]
        x *= dt
        for n in range(STATE):
            at_n = (channel + lane) * STATE + n
            a = tl.exp2(dt * (tl.load(A + at_n, mask=there, other=0.0) * LOG2E)[:, None])
            if CONSTANT_B:
                b = x * tl.load(Bm + at_n, mask=there, other=0.0)[:, None]
            else:
                b = x * tl.load(Bm + ((sequence + n) * length + begin) + spot, mask=real, other=0.0)
            b = tl.where(first, b + a * state_of(states, n, STATES)[:, None], b)
            h = tl.associative_scan((a, b), 1, affine, reverse=REVERSE)[1]
            if CONSTANT_C:
                out += h * tl.load(Cm + at_n, mask=there, other=0.0)[:, None]
            else:
                out += h * tl.load(Cm + ((sequence + n) * length + begin) + spot, mask=real, other=0.0)
            states = tl.where(state == n, tl.sum(tl.where(final, h, 0.0), 1)[:, None], states)
        if z is not None:
            out *= silu(tl.load(z + (token_row + begin) + at, mask=valid, other=0.0).to(A.dtype.element_ty))
        if ADD:
            out += tl.load(y + (token_row + begin) + at, mask=valid, other=0.0).to(A.dtype.element_ty)
        tl.store(y + (token_row + begin) + at, out, mask=valid)
    tl.store(last + row * STATE + state_at, states, mask=state_there)
