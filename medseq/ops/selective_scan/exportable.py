"""The selective scan as one loop over tokens that other runtimes know (`Scan` of ONNX), for any length.

Exported programs of torch keep the operator `medseq::selective_scan`; `medseq.inference.export_onnx` replaces it by
this function while it translates. Half the work, decays and entering values, is done for all tokens outside the loop.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

__all__ = ["forward"]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    initial_state: Tensor | None,
    reverse: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state and nothing kept; arguments as of the operator, see `naive.selective_scan`."""
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    if softplus:
        dt = F.softplus(dt)
    B, C = (_per_channel(x, u) for x in (B, C))
    # Axes from here: token, batch, channel, state.
    decay, entering, read = (
        x.flip(0) if reverse else x
        for x in (
            (dt[:, :, None] * A[:, :, None]).exp().permute(3, 0, 1, 2),
            ((dt * u)[:, :, None] * B).permute(3, 0, 1, 2),
            C.permute(3, 0, 1, 2),
        )
    )

    def step(h: Tensor, token: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = token[0] * h + token[1]
        return h, h.clone()

    start = torch.zeros_like(entering[0]) if initial_state is None else initial_state.clone()
    last, states = scan(step, start, (decay, entering))
    y = (states * read).sum(3)
    y = (y.flip(0) if reverse else y).permute(1, 2, 0)
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    return y, last, u.new_empty(0)


def _per_channel(x: Tensor, u: Tensor) -> Tensor:
    """B or C as one number per batch item, channel, state and token."""
    if x.dim() == 2:
        return x[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    return x.repeat_interleave(u.shape[1] // x.shape[1], 1)
