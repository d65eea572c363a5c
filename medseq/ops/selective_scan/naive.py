"""The selective scan from its definition, token by token: the oracle of every faster implementation.

Any floating dtype, differentiable by autograd any number of times. Written to be checked by eye against README.md, not
for production: autograd keeps the states of all tokens.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["backward", "forward", "per_channel", "selective_scan"]


def selective_scan(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch groups state length"] | Float[Tensor, "dim state"],
    C: Float[Tensor, "batch groups state length"] | Float[Tensor, "dim state"],
    D: Float[Tensor, " dim"] | None,
    z: Float[Tensor, "batch dim length"] | None,
    delta_bias: Float[Tensor, " dim"] | None,
    softplus: bool,
    initial_state: Float[Tensor, "batch dim state"] | None,
    reverse: bool = False,
) -> tuple[Float[Tensor, "batch dim length"], Float[Tensor, "batch dim state"]]:
    """Runs ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = (C_t h_t + D u_t) silu(z_t)``.

    Args:
        u: Input.
        delta: Step sizes before bias and softplus; ``dt`` is what comes out.
        A: Rates of decay, below 0 in trained models.
        B: How the input enters the state: per token and group of consecutive channels, or constant.
        C: How the state is read: as B.
        D: Weight of the input in the output.
        z: Gate.
        delta_bias: Added to `delta`.
        softplus: Whether ``dt = softplus(delta + delta_bias)`` instead of the sum itself.
        initial_state: State before the first token, 0 if None.
        reverse: Scan from the last token to the first.

    Returns:
        The output and the state after the last token that was visited, both in the dtype of the inputs.

    Reference:
        Gu and Dao, Mamba, arXiv:2312.00752, Eq. 2a and 2b with Algorithm 2.
    """
    batch, dim, length = u.shape
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    if softplus:
        dt = F.softplus(dt)
    B, C = per_channel(B, dim, batch, length), per_channel(C, dim, batch, length)
    h = u.new_zeros(batch, dim, A.shape[1]) if initial_state is None else initial_state
    outputs = [u.new_zeros(batch, dim)] * length
    for t in reversed(range(length)) if reverse else range(length):
        step = dt[:, :, t, None]
        h = (step * A).exp() * h + step * B[..., t] * u[:, :, t, None]
        outputs[t] = (C[..., t] * h).sum(-1)
    y = torch.stack(outputs, 2) if length else torch.zeros_like(u)
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z)
    return y, h


def per_channel(x: Tensor, dim: int, batch: int, length: int) -> Float[Tensor, "batch dim state length"]:
    """B or C as one number per token, channel and state."""
    if x.dim() == 2:
        return x[None, :, :, None].expand(batch, -1, -1, length)
    return x.repeat_interleave(dim // x.shape[1], 1)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state and, for `backward`, nothing."""
    y, last_state = selective_scan(u, delta, A, B, C, D, z, delta_bias, softplus, initial_state, reverse)
    return y, last_state, u.new_empty(0)


def backward(
    gy: Tensor,
    glast: Tensor | None,
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
    checkpoints: Tensor,
    reverse: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of all tensors by autograd of `selective_scan`, for use below the dispatcher's autograd."""
    inputs = [u, delta, A, B, C, D, z, delta_bias, initial_state]
    present = [i for i, x in enumerate(inputs) if x is not None]

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        full = list(inputs)
        for i, x in zip(present, tensors, strict=True):
            full[i] = x
        arguments: list[Any] = [*full[:8], softplus, full[8], reverse]
        return selective_scan(*arguments)

    with torch.enable_grad():
        (_, last_state), pull = torch.func.vjp(run, *(inputs[i] for i in present))  # type: ignore[misc]
        found = pull((gy, torch.zeros_like(last_state) if glast is None else glast))
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(present, found, strict=True):
        gradients[i] = gradient.detach()
    return tuple(gradients)
