"""The selective scan of Mamba, in linear time and with exact gradients. Derivation: README.md."""

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.ops.selective_scan import naive, registration  # noqa: F401  (registration defines the operator)
from medseq.ops.selective_scan.checks import check_bidirectional, check_scan, check_step

__all__ = ["bidirectional_selective_scan", "selective_scan", "selective_state_update"]


def selective_scan(
    u: Float[Tensor, "batch dim length"],
    delta: Float[Tensor, "batch dim length"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch groups state length"] | Float[Tensor, "batch state length"] | Float[Tensor, "dim state"],
    C: Float[Tensor, "batch groups state length"] | Float[Tensor, "batch state length"] | Float[Tensor, "dim state"],
    D: Float[Tensor, " dim"] | None = None,
    z: Float[Tensor, "batch dim length"] | None = None,
    delta_bias: Float[Tensor, " dim"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Float[Tensor, "batch dim state"] | None = None,
) -> Float[Tensor, "batch dim length"] | tuple[Float[Tensor, "batch dim length"], Float[Tensor, "batch dim state"]]:
    """Runs ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = (C_t h_t + D u_t) silu(z_t)`` along the length.

    Drop-in for `mamba_ssm`'s function of this name, with real A. Time is linear in the length; any length, including 0,
    any dim, any state size. Gradients are exact, that of the last state included. Half precision is only for
    storage: sums are made in float32, or in float64 if any input has it.

    Under autocast the operator takes its inputs as they come, of mixed dtypes if need be; the result has the dtype of
    `u` then as always.

    Args:
        u: Input.
        delta: Step sizes; ``dt = softplus(delta + delta_bias)`` with `delta_softplus`, else ``delta + delta_bias``.
        A: Rates, below 0 for a state that fades. A positive one makes it grow, in the end beyond the largest number.
        B: How the input enters the state: per token, of one group or of several groups of consecutive channels, or
            constant. With as many batch items as channels, the number of axes tells which.
        C: How the state is read: as B.
        D: Weight of the input in the output.
        z: Gate.
        delta_bias: Added to `delta`.
        delta_softplus: Whether step sizes pass through softplus.
        return_last_state: Also return the state after the last token.
        initial_state: State before the first token, 0 if None.

    Returns:
        The output in the dtype of `u`, contiguous; with `return_last_state` also the state, in float32 or float64, so
        that a sequence may be cut anywhere and carried on with `initial_state`.

    Raises:
        ShapeError: Shapes, groups, dtypes or devices do not fit together.
        InputError: A is complex.
        BackendError: MEDSEQ_BACKEND asks for an implementation that cannot run here.

    Reference:
        Gu and Dao, Mamba, arXiv:2312.00752, Eq. 2a and 2b with Algorithm 2.

    Example:
        >>> import torch
        >>> ones = torch.ones(1, 1, 4)
        >>> selective_scan(ones, ones, torch.zeros(1, 1), ones, ones).flatten()  # no decay: the running sum
        tensor([1., 2., 3., 4.])
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, last_state = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    return (y, last_state) if return_last_state else y


def bidirectional_selective_scan(
    u: Float[Tensor, "batch dim length"] | Float[Tensor, "batch 2 dim length"],
    delta: Float[Tensor, "batch 2 dim length"],
    A: Float[Tensor, "2*dim state"],
    B: Float[Tensor, "batch 2 state length"],
    C: Float[Tensor, "batch 2 state length"],
    D: Float[Tensor, " 2*dim"] | None = None,
    z: Float[Tensor, "batch dim length"] | None = None,
    delta_bias: Float[Tensor, " 2*dim"] | None = None,
    delta_softplus: bool = False,
    merge: bool = True,
) -> Float[Tensor, "batch dim length"] | Float[Tensor, "batch 2 dim length"]:
    """Scans from the first token to the last and from the last to the first, each direction with its own parameters.

    The one-dimensional sibling of `cross_selective_scan`: direction 0 goes forward, 1 backward, every tensor is in the
    order of the sequence, and A, D, delta_bias hold the directions one after the other. No flipped copy is made.

    Args:
        u: Input, one for both directions or one for each.
        delta: Step sizes, as in `selective_scan`.
        A: Rates.
        B: How the input enters the state.
        C: How the state is read.
        D: Weight of the input in the output.
        z: Gate, the same for both directions.
        delta_bias: Added to `delta`.
        delta_softplus: Whether step sizes pass through softplus.
        merge: Return the sum of the directions; otherwise both.

    Returns:
        The sum (batch, dim, length), or both (batch, 2, dim, length), in the dtype of `u`.

    Raises:
        ShapeError: Shapes, dtypes or devices do not fit together.

    Reference:
        Zhu et al., Vision Mamba, arXiv:2401.09417, Algorithm 1.
    """
    check_bidirectional(u, delta, A, B, C, D, z, delta_bias)
    dim = u.shape[-2]
    both = u.unsqueeze(1).expand(-1, 2, -1, -1) if u.dim() == 3 else u
    results = []
    for k in (0, 1):
        of_direction = slice(k * dim, (k + 1) * dim)
        d, bias = (None if x is None else x[of_direction] for x in (D, delta_bias))
        tensors = (both[:, k], delta[:, k], A[of_direction], B[:, k], C[:, k], d, z, bias)
        results.append(_scan(*tensors, delta_softplus, None, reverse=k == 1)[0])
    return results[0] + results[1] if merge else torch.stack(results, 1)


def selective_state_update(
    state: Float[Tensor, "batch dim state"],
    u: Float[Tensor, "batch dim"],
    delta: Float[Tensor, "batch dim"],
    A: Float[Tensor, "dim state"],
    B: Float[Tensor, "batch state"] | Float[Tensor, "batch groups state"],
    C: Float[Tensor, "batch state"] | Float[Tensor, "batch groups state"],
    D: Float[Tensor, " dim"] | None = None,
    z: Float[Tensor, "batch dim"] | None = None,
    dt_bias: Float[Tensor, " dim"] | None = None,
    dt_softplus: bool = False,
) -> Float[Tensor, "batch dim"]:
    """One step of `selective_scan`, for streaming: `state` is replaced by the state after the token.

    Args:
        state: State before the token, overwritten. Keep it in float32: a half-precision state is rounded every step.
        u: The token.
        delta: Its step sizes before bias and softplus.
        A: Rates.
        B: How the token enters the state.
        C: How the state is read.
        D: Weight of the token in the output.
        z: Gate.
        dt_bias: Added to `delta`.
        dt_softplus: Whether step sizes pass through softplus.

    Returns:
        The output for the token, in the dtype of `u`.

    Raises:
        ShapeError: Shapes, groups, dtypes or devices do not fit together.
    """
    check_step(state, u, delta, A, B, C, D, z, dt_bias)
    tensors = (state, u, delta, A, B, C, D, z, dt_bias)
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)

    def token(x: Tensor) -> Tensor:
        """With a length of 1, in the dtype to compute in."""
        return x.to(dtype).unsqueeze(-1)

    def parameter(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype)

    dtype = torch.float64 if wide else torch.float32
    b, c = (token(x if x.dim() == 3 else x.unsqueeze(1)) for x in (B, C))
    gate = None if z is None else token(z)
    inputs = (token(u), token(delta), A.to(dtype), b, c, parameter(D), gate, parameter(dt_bias))
    y, after = naive.selective_scan(*inputs, dt_softplus, state.to(dtype))
    state.copy_(after)
    return y.squeeze(-1).to(u.dtype)


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator's call on checked inputs: output and last state."""
    B, C = (x.unsqueeze(1) if x.dim() == 3 else x for x in (B, C))
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    # An exported program is for inference, and what would be kept ties its shapes to multiples of a chunk.
    training = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    keep = training and any(x is not None and x.requires_grad for x in tensors)
    inputs = (*tensors[:8], delta_softplus, initial_state)
    y, last_state, _ = torch.ops.medseq.selective_scan(*inputs, reverse, keep)
    return y, last_state
