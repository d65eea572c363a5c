"""Bidirectional WKV, the token mixing of Vision-RWKV and Restore-RWKV, in linear time. Derivation: README.md."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.wkv import chunked, exportable, registration  # noqa: F401  (defines torch.ops.medseq.bi_wkv)

__all__ = ["Convention", "bi_wkv"]

Convention = Literal["exact", "chunk64"]


def bi_wkv(
    w: Float[Tensor, " channel"],
    u: Float[Tensor, " channel"],
    k: Float[Tensor, "batch length channel"],
    v: Float[Tensor, "batch length channel"],
    convention: Convention = "exact",
) -> Float[Tensor, "batch length channel"]:
    """Mean of the values around every token, weighted by exp(k) and by distance in both directions.

    ``y_t = (sum_{j != t} e^{k_j - w (|t-j|-1)} v_j + e^{u + k_t} v_t) / (the same sum without v)``

    Time and memory are linear in the length; any length, any sign of `w` and any spread of `k`. Half-precision inputs
    are computed in float32. Gradients are exact in both conventions.

    Args:
        w: Decay per token of distance, already divided by the length; negative lets weights grow with distance.
        u: Bonus of a token for itself, already divided by the length.
        k: Log weights; -inf removes a token.
        v: Values.
        convention: ``exact`` is the formula above; ``chunk64`` is what the original CUDA kernel computes, for weights
            trained with it. They differ by about 1e-2 at length 64 and 3e-6 at length 4096.

    Returns:
        The means, in the shape and dtype of `v`.

    Raises:
        ShapeError: Shapes, dtypes or devices do not fit together.
        InputError: The convention is unknown.

    Reference:
        Duan et al., Vision-RWKV, arXiv:2403.02308; Yang et al., Restore-RWKV, arXiv:2407.11087.

    Example:
        >>> import torch
        >>> k, v = torch.zeros(1, 4, 1), torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
        >>> bi_wkv(torch.zeros(1), torch.zeros(1), k, v).flatten()  # no decay, no bonus: the plain mean
        tensor([1.5000, 1.5000, 1.5000, 1.5000])
    """
    _check(w, u, k, v)
    if convention not in ("exact", "chunk64"):
        raise InputError("unknown convention", where="bi_wkv", found=convention, wanted="exact | chunk64")
    if torch.compiler.is_exporting():
        # A graph that leaves torch may hold no operator of ours.
        dtype = torch.float64 if torch.float64 in (w.dtype, v.dtype) else torch.float32
        wide = w.to(dtype), u.to(dtype), k.to(dtype), v.to(dtype)
        y = exportable.forward(*wide) if convention == "exact" else chunked.forward(*wide, convention)
        return y.to(v.dtype)
    return torch.ops.medseq.bi_wkv(w, u, k, v, convention)


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if k.dim() != 3 or k.shape != v.shape:
        raise ShapeError(
            "k and v must have one shape (batch, length, channel)",
            where="bi_wkv",
            found=f"k {tuple(k.shape)}, v {tuple(v.shape)}",
        )
    for name, x in (("w", w), ("u", u)):
        if x.shape != k.shape[2:]:
            raise ShapeError(
                f"{name} must hold one number per channel of k",
                where="bi_wkv",
                found=f"{name} {tuple(x.shape)}, k {tuple(k.shape)}",
                wanted=f"{name} ({k.shape[2]},)",
            )
    for name, x in (("w", w), ("u", u), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise ShapeError(f"{name} must be a floating-point tensor", where="bi_wkv", found=f"{name} {x.dtype}")
        if x.device != v.device:
            raise ShapeError(
                "all tensors must be on one device", where="bi_wkv", found=f"{name} on {x.device}, v on {v.device}"
            )
    if k.dtype != v.dtype:
        raise ShapeError("k and v must have one dtype", where="bi_wkv", found=f"k {k.dtype}, v {v.dtype}")
    if w.dtype != u.dtype:
        raise ShapeError("w and u must have one dtype", where="bi_wkv", found=f"w {w.dtype}, u {u.dtype}")
