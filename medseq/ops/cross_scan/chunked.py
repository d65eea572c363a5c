"""The cross scan in pure torch: the sequences of four directions side by side through the chunked selective scan.

For where there is no kernel: any device, no compiler. Unlike the kernels it does make the four copies.
"""

import torch
from torch import Tensor

from medseq.ops.cross_scan.naive import ORDERS, cross_merge, cross_scan, in_scan_order, restored
from medseq.ops.selective_scan import chunked

__all__ = ["backward", "checkpoint_shape", "forward"]


def checkpoint_shape(x: Tensor, A: Tensor) -> tuple[int, ...]:
    """What `forward` keeps for `backward`: the states before some of the tokens."""
    batch, _, rows, cols = x.shape
    u = x.new_empty(batch, A.shape[0], rows * cols, device="meta")
    b = x.new_empty(batch, 4, A.shape[1], rows * cols, device="meta")
    return chunked.checkpoint_shape(u, A, b, b)


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
    """The merged output and states for `backward`. Arguments: `medseq.ops.cross_selective_scan`."""
    u, dt, b, c = _sequences(x, delta, B, C, directions)
    y, _, checkpoints = chunked.forward(u, dt, A, b, c, D, None, delta_bias, softplus, None)
    return cross_merge(y.view(x.shape[0], 4, *x.shape[1:]), directions), checkpoints


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
    """Gradients of x, delta, A, B, C, D and delta_bias; None where the input is None."""
    u, dt, b, c = _sequences(x, delta, B, C, directions)
    # The merge is the scan's adjoint, so the gradient of every direction is the image's in that direction's order.
    incoming = cross_scan(gy, directions).flatten(3).flatten(1, 2)
    gu, gdelta, gA, gB, gC, gD, _, gbias, _ = chunked.backward(
        incoming, None, u, dt, A, b, c, D, None, delta_bias, softplus, None, checkpoints
    )
    gx = cross_merge(_by_direction(gu, x, x.shape[1]), directions)
    gdelta = _in_image_order(_by_direction(gdelta, x, x.shape[1]), directions)
    gB, gC = (_in_image_order(_by_direction(g, x, A.shape[1]), directions) for g in (gB, gC))
    return gx, gdelta, gA, gB, gC, gD, gbias


def _sequences(x: Tensor, delta: Tensor, B: Tensor, C: Tensor, directions: str) -> tuple[Tensor, ...]:
    u = cross_scan(x, directions).flatten(3).flatten(1, 2)
    dt = in_scan_order(delta, directions).flatten(1, 2)
    return u, dt, in_scan_order(B, directions), in_scan_order(C, directions)


def _by_direction(g: Tensor | None, x: Tensor, inner: int) -> Tensor:
    assert g is not None  # the gradient of an input that is always there
    return g.reshape(x.shape[0], 4, inner, *x.shape[2:])


def _in_image_order(y: Tensor, directions: str) -> Tensor:
    """`in_scan_order` undone."""
    return torch.stack([restored(y[:, k], *order) for k, order in enumerate(ORDERS[directions])], 1)
