"""What the selective scan's public functions refuse, each time naming both sides."""

import torch
from torch import Tensor

from medseq.errors import InputError, ShapeError

__all__ = ["check_bidirectional", "check_scan", "check_step"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Raises what `selective_scan` documents."""
    where = "selective_scan"
    if u.dim() != 3:
        raise ShapeError("u must be (batch, dim, length)", where=where, found=f"u {tuple(u.shape)}")
    batch, dim, length = u.shape
    per_token = {"u": u, "delta": delta, "z": z}
    _one_type(where, {**per_token, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "state": initial_state})
    _like_u(where, u, {"delta": delta, "z": z}, tuple(u.shape))
    _rates(where, A, u, dim)
    _like_u(where, u, {"D": D, "delta_bias": delta_bias}, (dim,))
    _like_u(where, u, {"initial_state": initial_state}, (batch, dim, A.shape[1]))
    groups = {name: _groups(where, name, x, A, u, (batch, A.shape[1], length)) for name, x in (("B", B), ("C", C))}
    counts = {name: count for name, count in groups.items() if count is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ShapeError("B and C must have the same number of groups", where=where, found=found)
    per_token |= {name: x for name, x in (("B", B), ("C", C)) if x.dim() > 2}
    _one_dtype(where, u, per_token)


def check_bidirectional(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raises what `bidirectional_selective_scan` documents."""
    where = "bidirectional_selective_scan"
    if u.dim() not in (3, 4) or (u.dim() == 4 and u.shape[1] != 2):
        raise ShapeError(
            "u must be (batch, dim, length) or (batch, 2, dim, length)", where=where, found=f"u {tuple(u.shape)}"
        )
    batch, dim, length = u.shape[0], *u.shape[-2:]
    _one_type(where, {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias})
    _rates(where, A, u, 2 * dim)
    _like_u(where, u, {"delta": delta}, (batch, 2, dim, length))
    _like_u(where, u, {"z": z}, (batch, dim, length))
    _like_u(where, u, {"D": D, "delta_bias": delta_bias}, (2 * dim,))
    _like_u(where, u, {"B": B, "C": C}, (batch, 2, A.shape[1], length))
    _one_dtype(where, u, {"delta": delta, "z": z, "B": B, "C": C})


def check_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    """Raises what `selective_state_update` documents."""
    where = "selective_state_update"
    if u.dim() != 2:
        raise ShapeError("u must be (batch, dim)", where=where, found=f"u {tuple(u.shape)}")
    batch, dim = u.shape
    given = {"state": state, "u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    _one_type(where, given)
    _rates(where, A, u, dim)
    _like_u(where, u, {"state": state}, (batch, dim, A.shape[1]))
    _like_u(where, u, {"delta": delta, "z": z}, (batch, dim))
    _like_u(where, u, {"D": D, "dt_bias": dt_bias}, (dim,))
    for name, x in (("B", B), ("C", C)):
        if x.dim() == 3 and x.shape[1] and dim % x.shape[1] == 0:
            _like_u(where, u, {name: x}, (batch, x.shape[1], A.shape[1]))
        else:
            _like_u(where, u, {name: x}, (batch, A.shape[1]))


def _one_type(where: str, tensors: dict[str, Tensor | None]) -> None:
    """Real floating-point tensors on one device."""
    device = None
    for name, x in tensors.items():
        if x is None:
            continue
        if x.is_complex():
            raise InputError(f"{name} must be real", where=where, found=f"{name} {x.dtype}")
        if x.dtype not in _DTYPES:
            wanted = "float32 | float64 | bfloat16 | float16"
            raise ShapeError(f"{name} has no usable dtype", where=where, found=f"{name} {x.dtype}", wanted=wanted)
        device = device or (name, x.device)
        if x.device != device[1]:
            found = f"{name} on {x.device}, {device[0]} on {device[1]}"
            raise ShapeError("all tensors must be on one device", where=where, found=found)


def _one_dtype(where: str, u: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """What varies by token has one dtype. Not under autocast, which mixes them by design."""
    if torch.is_autocast_enabled(u.device.type):
        return
    for name, x in tensors.items():
        if x is not None and x.dtype != u.dtype:
            raise ShapeError(
                f"{name} and u must have one dtype",
                where=where,
                found=f"{name} {x.dtype}, u {u.dtype}",
                remedy="convert one; only autocast mixes them",
            )


def _rates(where: str, A: Tensor, u: Tensor, dim: int) -> None:
    if A.dim() != 2 or A.shape[0] != dim:
        found = f"A {tuple(A.shape)}, u {tuple(u.shape)}"
        raise ShapeError("A must hold one row per channel", where=where, found=found, wanted=f"A ({dim}, state)")


def _like_u(where: str, u: Tensor, tensors: dict[str, Tensor | None], shape: tuple[int, ...]) -> None:
    for name, x in tensors.items():
        if x is not None and x.shape != shape:
            found = f"{name} {tuple(x.shape)}, u {tuple(u.shape)}"
            raise ShapeError(f"{name} does not fit u", where=where, found=found, wanted=f"{name} {tuple(shape)}")


def _groups(where: str, name: str, x: Tensor, A: Tensor, u: Tensor, sizes: tuple[int, int, int]) -> int | None:
    """Number of groups of B or C, None if it is constant."""
    batch, state, length = sizes
    if x.dim() == 2:
        _like_u(where, u, {name: x}, (u.shape[1], state))
        return None
    groups = x.shape[1] if x.dim() == 4 else 1
    if x.dim() not in (3, 4) or x.shape[0] != batch or tuple(x.shape[-2:]) != (state, length):
        raise ShapeError(
            f"{name} does not fit u and A",
            where=where,
            found=f"{name} {tuple(x.shape)}, u {tuple(u.shape)}, A {tuple(A.shape)}",
            wanted=f"{name} ({batch}, groups, {state}, {length}), ({batch}, {state}, {length}) or {tuple(A.shape)}",
        )
    if groups == 0 or u.shape[1] % groups:
        found = f"{name} with {groups} groups, u with {u.shape[1]} channels"
        raise ShapeError("the channels cannot be shared out evenly among the groups", where=where, found=found)
    return groups
