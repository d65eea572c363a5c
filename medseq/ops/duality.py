"""State space duality: the selective scan with one decay per head, computed by matrix products over chunks.

With a scalar ``A`` per head the scan is ``y = (L o C B^T) x`` with ``L_ij = exp(a_{j+1} + … + a_i)``, ``a = dt A``.
Within a chunk this product is formed; between chunks only the states travel. Time is ``O(length * chunk)`` and the
work is matrix products, which any backend of PyTorch runs at full speed. No loop over tokens or chunks.

Reference:
    Dao and Gu, Transformers are SSMs, arXiv:2405.21060, section 6 and listing 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.errors import InputError, ShapeError

__all__ = ["ssd"]

# Chunks whose states are carried by one triangular product; more are carried block by block, recursively.
_CARRY = 32


def ssd(
    x: Float[Tensor, "batch length head dim"],
    dt: Float[Tensor, "batch length head"],
    A: Float[Tensor, " head"],
    B: Float[Tensor, "batch length group state"],
    C: Float[Tensor, "batch length group state"],
    chunk: int = 64,
    initial_state: Float[Tensor, "batch head dim state"] | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, ``y_t = C_t h_t``, head by head.

    Equal to `medseq.ops.selective_scan` with ``A`` repeated over the channels and states of a head. Any length; half
    precision is computed in float32.

    Args:
        x: Inputs.
        dt: Time steps, after softplus; 0 skips a token.
        A: One decay per head, negative.
        B: Input weights; consecutive heads share a group.
        C: Output weights.
        chunk: Tokens per chunk; changes time and memory, not the result.
        initial_state: State before the first token, zero if None.
        return_last_state: Also return the state after the last token.

    Returns:
        y in the shape and dtype of `x`; with `return_last_state` also the state ``(batch, head, dim, state)``.

    Raises:
        ShapeError: Shapes do not fit together.
        InputError: The chunk is smaller than 1.
    """
    _check(x, dt, A, B, C, initial_state)
    if chunk < 1:
        raise InputError("chunk is too small", where="ssd", found=chunk, wanted=">= 1")
    batch, length, heads, dim = x.shape
    groups, states = B.shape[2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    pad = -length % chunk
    count = (length + pad) // chunk

    def cut(t: Tensor, *tail: int) -> Tensor:
        """``(batch, length, …)`` -> ``(batch, chunk number, token, …)``; padded tokens have a step of 0."""
        return F.pad(t.to(dtype), (0, 0) * (t.dim() - 2) + (0, pad)).view(batch, count, chunk, *tail)

    fold = heads // groups
    steps = cut(dt, groups, fold)
    decay = steps * A.to(dtype).view(groups, fold)
    inputs = cut(x, groups, fold, dim) * steps[..., None]
    B, C = cut(B, groups, states), cut(C, groups, states)

    # Sums in float64: they are subtracted from each other, and a chunk's sum may be large.
    log_from_start = decay.double().cumsum(2).permute(0, 1, 3, 4, 2)
    total = log_from_start[..., -1:]
    within = (log_from_start[..., :, None] - log_from_start[..., None, :]).to(dtype)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    mixing = within.masked_fill(later, -torch.inf).exp() * torch.einsum("bcign,bcjgn->bcgij", C, B)[:, :, :, None]
    y = torch.einsum("bcgfij,bcjgfp->bcigfp", mixing, inputs)

    to_end = (total - log_from_start).to(dtype).exp()
    kept = inputs * to_end.permute(0, 1, 4, 2, 3)[..., None]
    made = torch.einsum("bcjgn,bcjgfp->bcgfpn", B, kept).reshape(batch, count, heads, dim, states)
    first = made.new_zeros(batch, heads, dim, states) if initial_state is None else initial_state.to(dtype)
    before, last = _carry(total.reshape(batch, count, heads), made, first)

    from_start = log_from_start.to(dtype).exp().permute(0, 1, 4, 2, 3)
    before = before.reshape(batch, count, groups, fold, dim, states)
    y = y + torch.einsum("bcign,bcgfpn->bcigfp", C, before) * from_start[..., None]
    y = y.reshape(batch, count * chunk, heads, dim)[:, :length].to(x.dtype)
    return (y, last) if return_last_state else y


def _carry(log_decay: Tensor, made: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """States before every chunk, and after the last: ``h_{c+1} = exp(log_decay_c) h_c + made_c``.

    Args:
        log_decay: ``(batch, chunk, head)``, float64.
        made: What every chunk adds to the state by its end, ``(batch, chunk, head, dim, state)``.
        first: State before the first chunk.
    """
    batch, count, heads = log_decay.shape
    if count > _CARRY:
        blocks = -(-count // _CARRY)
        spare = blocks * _CARRY - count
        # Chunks that add nothing and keep the state fill the last block.
        log_decay = F.pad(log_decay, (0, 0, 0, spare)).view(batch * blocks, _CARRY, heads)
        made = F.pad(made, (0, 0, 0, 0, 0, 0, 0, spare)).view(batch * blocks, _CARRY, *made.shape[2:])
        local, ends = _carry(log_decay, made, torch.zeros_like(made[:, 0]))
        sums = log_decay.cumsum(1)
        starts, last = _carry(sums[:, -1].view(batch, blocks, heads), ends.view(batch, blocks, *ends.shape[1:]), first)
        decayed = (sums - log_decay).to(made.dtype).exp()[..., None, None] * starts.flatten(0, 1)[:, None]
        return (local + decayed).reshape(batch, blocks * _CARRY, *made.shape[2:])[:, :count], last
    sums = F.pad(log_decay.cumsum(1), (0, 0, 1, 0))
    difference = (sums[:, :, None] - sums[:, None]).to(made.dtype)
    later = torch.ones(count + 1, count + 1, dtype=torch.bool, device=made.device).triu(1)
    weight = difference.masked_fill(later[..., None], -torch.inf).exp()
    states = torch.einsum("bijh,bjhpn->bihpn", weight, torch.cat([first[:, None], made], 1))
    return states[:, :-1], states[:, -1]


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None) -> None:
    if x.dim() != 4 or dt.shape != x.shape[:3] or A.shape != x.shape[2:3]:
        raise ShapeError(
            "x, dt and A do not fit together",
            where="ssd",
            found=f"x {tuple(x.shape)}, dt {tuple(dt.shape)}, A {tuple(A.shape)}",
            wanted="x (batch, length, head, dim), dt (batch, length, head), A (head,)",
        )
    if B.shape != C.shape or B.dim() != 4 or B.shape[:2] != x.shape[:2] or B.shape[2] == 0 or x.shape[2] % B.shape[2]:
        raise ShapeError(
            "B and C must be (batch, length, group, state), the heads a multiple of the groups",
            where="ssd",
            found=f"B {tuple(B.shape)}, C {tuple(C.shape)}, x {tuple(x.shape)}",
        )
    state = (x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    if initial_state is not None and initial_state.shape != state:
        raise ShapeError("initial_state", where="ssd", found=tuple(initial_state.shape), wanted=state)
