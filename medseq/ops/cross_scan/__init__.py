"""Selective scans over an image in four directions at once, and their sum. Derivation: README.md."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.cross_scan import exportable, naive, registration  # noqa: F401  (registration defines the operator)

__all__ = ["Directions", "cross_merge", "cross_scan", "cross_selective_scan"]

Directions = Literal["cross", "forward", "bidirectional"]
_WHERE = "cross_selective_scan"


def cross_scan(
    x: Float[Tensor, "batch channel row col"], directions: Directions = "cross"
) -> Float[Tensor, "batch 4 channel row col"]:
    """Four copies of an image, each in the order in which its direction meets the tokens.

    What `cross_selective_scan` does without making them; differentiable.

    Args:
        x: The image.
        directions: As in `cross_selective_scan`.

    Returns:
        Sequences of row * col tokens, one per direction, each stored in the shape of the image.

    Raises:
        ShapeError: `x` is no batch of images.
        InputError: The directions are unknown.

    Reference:
        Liu et al., VMamba, arXiv:2401.10166, Section 4.2.

    Example:
        >>> import torch
        >>> cross_scan(torch.tensor([[[[1, 2], [3, 4]]]])).flatten(2).tolist()
        [[[1, 2, 3, 4], [1, 3, 2, 4], [4, 3, 2, 1], [4, 2, 3, 1]]]
    """
    _check_directions(directions, "cross_scan")
    if x.dim() != 4:
        raise ShapeError(
            "x must be (batch, channel, row, col)", where="cross_scan", found=f"{x.dim()} axes, {tuple(x.shape)}"
        )
    return naive.cross_scan(x, directions)


def cross_merge(
    y: Float[Tensor, "batch 4 channel row col"], directions: Directions = "cross"
) -> Float[Tensor, "batch channel row col"]:
    """Puts the tokens of every direction back to their places and adds the four: the adjoint of `cross_scan`.

    Args:
        y: Sequences in the shape that `cross_scan` returns.
        directions: As in `cross_selective_scan`.

    Returns:
        The sum, in the order of the image.

    Raises:
        ShapeError: `y` does not hold four directions.
        InputError: The directions are unknown.
    """
    _check_directions(directions, "cross_merge")
    if y.dim() != 5 or y.shape[1] != 4:
        raise ShapeError(
            "y must be (batch, 4, channel, row, col)", where="cross_merge", found=f"{y.dim()} axes, {tuple(y.shape)}"
        )
    return naive.cross_merge(y, directions)


def cross_selective_scan(
    x: Float[Tensor, "batch channel row col"],
    delta: Float[Tensor, "batch 4 channel row col"],
    A: Float[Tensor, "4*channel state"],
    B: Float[Tensor, "batch 4 state row col"],
    C: Float[Tensor, "batch 4 state row col"],
    D: Float[Tensor, " 4*channel"] | None,
    delta_bias: Float[Tensor, " 4*channel"] | None = None,
    delta_softplus: bool = False,
    directions: Directions = "cross",
) -> Float[Tensor, "batch channel row col"]:
    """Four selective scans over an image, each with its own parameters, and the sum of their outputs.

    Equal to `selective_scan` of `cross_scan(x)` with the directions as groups, then `cross_merge`; but no copy is made,
    and every tensor stays in the order of the image. Any image, 1 x N included. Gradients are exact. Half precision is
    only for storage: sums are made in float32, or in float64 if any input has it.

    Args:
        x: The image.
        delta: Step sizes; ``dt = softplus(delta + delta_bias)`` with `delta_softplus`, else ``delta + delta_bias``.
        A: Rates, direction by direction, as all parameters; below 0 for a state that fades.
        B: How the input enters the state.
        C: How the state is read.
        D: Weight of the input in the output, or None.
        delta_bias: Added to `delta`.
        delta_softplus: Whether step sizes pass through softplus.
        directions: ``cross``: along the rows, down the columns, and both of these from the last token to the first;
            ``forward``: four times along the rows; ``bidirectional``: twice along the rows, twice that reversed.

    Returns:
        The sum, contiguous, in the dtype of `x`.

    Raises:
        ShapeError: Shapes, dtypes or devices do not fit together.
        InputError: The directions are unknown.
        BackendError: MEDSEQ_BACKEND asks for an implementation that cannot run here.

    Reference:
        Liu et al., VMamba, arXiv:2401.10166, Section 4.2; Gu and Dao, Mamba, arXiv:2312.00752, Eq. 2a and 2b.

    Example:
        >>> import torch
        >>> x, delta, b = torch.ones(1, 1, 2, 2), torch.ones(1, 4, 1, 2, 2), torch.ones(1, 4, 1, 2, 2)
        >>> y = cross_selective_scan(x, delta, torch.zeros(4, 1), b, b, torch.zeros(4))
        >>> y.flatten()  # no decay: every token counts those before it and itself, in four directions
        tensor([10., 10., 10., 10.])
    """
    _check_directions(directions, _WHERE)
    tensors = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    given = {name: t for name, t in tensors.items() if t is not None}
    _check_shapes(given)
    _check_kinds(given)
    if torch.compiler.is_exporting():
        # A graph that leaves torch may hold no operator of ours.
        return exportable.forward(x, delta, A, B, C, D, delta_bias, delta_softplus, directions).to(x.dtype)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in given.values())
    y, _ = torch.ops.medseq.cross_selective_scan(*tensors.values(), delta_softplus, directions, keep)
    return y


def _check_directions(directions: str, where: str) -> None:
    if directions not in naive.ORDERS:
        raise InputError("unknown directions", where=where, found=directions, wanted=" | ".join(naive.ORDERS))


def _check_shapes(tensors: dict[str, Tensor]) -> None:
    x, A = tensors["x"], tensors["A"]
    if x.dim() != 4:
        raise ShapeError(
            "x must be (batch, channel, row, col)", where=_WHERE, found=f"{x.dim()} axes, {tuple(x.shape)}"
        )
    batch, channel, *image = x.shape
    if A.dim() != 2 or A.shape[0] != 4 * channel:
        raise ShapeError(
            "A must hold a row of states for every direction and channel of x",
            where=_WHERE,
            found=f"A {tuple(A.shape)}, x {tuple(x.shape)}",
            wanted=f"A ({4 * channel}, state)",
        )
    per_token, per_channel = (batch, 4, A.shape[1], *image), (4 * channel,)
    wanted = {"delta": (batch, 4, channel, *image), "B": per_token, "C": per_token}
    wanted |= dict.fromkeys(("D", "delta_bias"), per_channel)
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            raise ShapeError(
                f"{name} does not fit x and A",
                where=_WHERE,
                found=f"{name} {tuple(tensors[name].shape)}, x {tuple(x.shape)}, A {tuple(A.shape)}",
                wanted=f"{name} {tuple(shape)}",
            )


def _check_kinds(tensors: dict[str, Tensor]) -> None:
    x = tensors["x"]
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise ShapeError(f"{name} must be a real floating-point tensor", where=_WHERE, found=f"{name} {t.dtype}")
        if t.device != x.device:
            raise ShapeError(
                "all tensors must be on one device", where=_WHERE, found=f"{name} on {t.device}, x on {x.device}"
            )
