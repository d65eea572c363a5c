"""The cross scan in a few plain torch operations, for graphs that leave torch (torch.export, ONNX).

A recurrence ``h_t = a_t h_{t-1} + b_t`` over L tokens is made in log2(L) steps: after step i every pair (a, b) stands
for 2^i tokens (Hillis & Steele, Data parallel algorithms, Comm. ACM 29(12), 1986). Decays are only multiplied, never
divided. All states of all tokens stand in memory together: neither the fastest nor the leanest, but the graph does not
grow with the image and knows no custom operator.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.ops.cross_scan.naive import cross_merge, cross_scan, in_scan_order

__all__ = ["forward"]


def forward(
    x: Float[Tensor, "batch channel row col"],
    delta: Float[Tensor, "batch 4 channel row col"],
    A: Float[Tensor, "4*channel state"],
    B: Float[Tensor, "batch 4 state row col"],
    C: Float[Tensor, "batch 4 state row col"],
    D: Float[Tensor, " 4*channel"] | None,
    delta_bias: Float[Tensor, " 4*channel"] | None,
    softplus: bool,
    directions: str,
) -> Float[Tensor, "batch channel row col"]:
    """The merged output, in float32 (float64 if `x` is); arguments: `medseq.ops.cross_selective_scan`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    channel = x.shape[1]

    def by_channel(t: Tensor) -> Tensor:
        return t.to(dtype).view(4, channel, 1)

    u = cross_scan(x, directions).flatten(3).to(dtype)
    dt, b, c = (in_scan_order(t, directions).to(dtype) for t in (delta, B, C))
    if delta_bias is not None:
        dt = dt + by_channel(delta_bias)
    if softplus:
        dt = F.softplus(dt)
    # Axes from here: batch, direction, channel, state, token.
    decay = torch.exp(dt.unsqueeze(3) * A.to(dtype).view(4, channel, -1, 1))
    state = (dt * u).unsqueeze(3) * b.unsqueeze(2)
    step, length = 1, state.shape[-1]
    while step < length:
        state = state + decay * F.pad(state[..., :-step], (step, 0))
        decay = decay * F.pad(decay[..., :-step], (step, 0), value=1.0)
        step *= 2
    y = (state * c.unsqueeze(2)).sum(dim=3)
    if D is not None:
        y = y + by_channel(D) * u
    return cross_merge(y.unflatten(3, x.shape[2:]), directions)
