"""The cross scan from its definition: four copies, four scans token by token, one merge. The oracle of the tests.

Any floating dtype, differentiable by autograd any number of times. Written to be checked by eye against README.md, not
for production.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.ops.selective_scan import naive as one_dimensional

__all__ = [
    "ORDERS",
    "backward",
    "cross_merge",
    "cross_scan",
    "cross_selective_scan",
    "forward",
    "in_scan_order",
    "restored",
]

ORDERS = {
    "cross": ((False, False), (True, False), (False, True), (True, True)),
    "forward": ((False, False),) * 4,
    "bidirectional": ((False, False), (False, False), (False, True), (False, True)),
}
"""For every name of four directions: does each go down the columns, does it run from the last token to the first."""


def cross_scan(
    x: Float[Tensor, "batch channel row col"], directions: str = "cross"
) -> Float[Tensor, "batch 4 channel row col"]:
    """Four copies of an image, each in the order in which its direction meets the tokens.

    Args:
        x: The image.
        directions: A key of `ORDERS`.

    Returns:
        Sequences of row * col tokens, one per direction, each stored in the shape of the image.

    Reference:
        Liu et al., VMamba, arXiv:2401.10166, Section 4.2.

    Example:
        >>> import torch
        >>> cross_scan(torch.tensor([[[[1, 2], [3, 4]]]])).flatten(2).tolist()
        [[[1, 2, 3, 4], [1, 3, 2, 4], [4, 3, 2, 1], [4, 2, 3, 1]]]
    """
    return torch.stack([_ordered(x, *order) for order in ORDERS[directions]], 1)


def cross_merge(
    y: Float[Tensor, "batch 4 channel row col"], directions: str = "cross"
) -> Float[Tensor, "batch channel row col"]:
    """Puts the tokens of every direction back to their places and adds the four: the adjoint of `cross_scan`.

    Args:
        y: Sequences as `cross_scan` returns them.
        directions: A key of `ORDERS`.

    Returns:
        The sum, in the order of the image.
    """
    parts = [restored(y[:, k], *order) for k, order in enumerate(ORDERS[directions])]
    return parts[0] + parts[1] + parts[2] + parts[3]


def cross_selective_scan(
    x: Float[Tensor, "batch channel row col"],
    delta: Float[Tensor, "batch 4 channel row col"],
    A: Float[Tensor, "4*channel state"],
    B: Float[Tensor, "batch 4 state row col"],
    C: Float[Tensor, "batch 4 state row col"],
    D: Float[Tensor, " 4*channel"] | None,
    delta_bias: Float[Tensor, " 4*channel"] | None,
    delta_softplus: bool,
    directions: str = "cross",
) -> Float[Tensor, "batch channel row col"]:
    """The sum of four selective scans over one image; arguments as `medseq.ops.cross_selective_scan`."""
    u = cross_scan(x, directions).flatten(3).flatten(1, 2)
    dt = in_scan_order(delta, directions).flatten(1, 2)
    b, c = in_scan_order(B, directions), in_scan_order(C, directions)
    y, _ = one_dimensional.selective_scan(u, dt, A, b, c, D, None, delta_bias, delta_softplus, None)
    return cross_merge(y.view(x.shape[0], 4, *x.shape[1:]), directions)


def in_scan_order(x: Float[Tensor, "batch 4 inner row col"], directions: str) -> Float[Tensor, "batch 4 inner length"]:
    """What is given in the order of the image, each direction in its own order."""
    parts = [_ordered(x[:, k], *order).flatten(2) for k, order in enumerate(ORDERS[directions])]
    return torch.stack(parts, 1)


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    directions: str = "cross",
) -> tuple[Tensor, Tensor]:
    """The merged output and, for `backward`, nothing."""
    return cross_selective_scan(x, delta, A, B, C, D, delta_bias, softplus, directions), x.new_empty(0)


def backward(
    gy: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    checkpoints: Tensor,
    directions: str = "cross",
) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C, D and delta_bias by autograd, for use below the dispatcher's autograd."""
    inputs = [x, delta, A, B, C, D, delta_bias]
    present = [i for i, tensor in enumerate(inputs) if tensor is not None]

    def run(*tensors: Tensor) -> Tensor:
        full: list[Any] = [*inputs, softplus, directions]
        for i, tensor in zip(present, tensors, strict=True):
            full[i] = tensor
        return cross_selective_scan(*full)

    with torch.enable_grad():
        pull = torch.func.vjp(run, *(inputs[i] for i in present))[1]
        found = pull(gy)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(present, found, strict=True):
        gradients[i] = gradient.detach()
    return tuple(gradients)


def _ordered(x: Float[Tensor, "batch inner row col"], columns: bool, reverse: bool) -> Tensor:
    """In the order of one direction, in the shape of the image."""
    tokens = (x.transpose(2, 3) if columns else x).flatten(2)
    return (tokens.flip(2) if reverse else tokens).view(x.shape)


def restored(y: Float[Tensor, "batch inner row col"], columns: bool, reverse: bool) -> Tensor:
    """`_ordered` undone."""
    batch, inner, rows, cols = y.shape
    tokens = y.flatten(2).flip(2) if reverse else y.flatten(2)
    return tokens.view(batch, inner, cols, rows).transpose(2, 3) if columns else tokens.view(y.shape)
