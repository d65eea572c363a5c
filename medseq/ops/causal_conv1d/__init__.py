"""Depthwise causal convolution along a sequence, with an optional SiLU: the short filter in front of Mamba's scan."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.causal_conv1d import registration  # noqa: F401  (defines torch.ops.medseq.causal_conv1d)

__all__ = ["Activation", "causal_conv1d", "causal_conv1d_update"]

Activation = Literal["silu", "swish"] | None


def causal_conv1d(
    x: Float[Tensor, "batch dim length"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None = None,
    activation: Activation = None,
    initial_state: Float[Tensor, "batch dim width-1"] | None = None,
    return_final_state: bool = False,
) -> Float[Tensor, "batch dim length"] | tuple[Tensor, Tensor]:
    """Every output token from the last `width` input tokens of its own channel.

    ``y_t = act(bias + sum_k weight_k x_{t - width + 1 + k})``; tokens before the first are those of `initial_state`,
    or zeros. Half-precision inputs are computed in float32.

    Args:
        x: The sequence.
        weight: One filter a channel, its last element for the current token; any width >= 1.
        bias: Added before the activation.
        activation: ``silu`` (also called ``swish``) or None.
        initial_state: The `width` - 1 tokens before the sequence, oldest first.
        return_final_state: Also return the last `width` - 1 tokens, the `initial_state` of what follows.

    Returns:
        The result in the shape and dtype of `x`; with `return_final_state` a pair with the state
        ``(batch, dim, width - 1)``.

    Raises:
        ShapeError: Shapes, dtypes or devices do not fit together.
        InputError: The activation is unknown.

    Reference:
        Gu & Dao, Mamba, arXiv:2312.00752, section 3.4. The call of the causal_conv1d package, without `seq_idx`, and
        with `initial_state` for its plural `initial_states`; widths are not limited to 2, 3 and 4.

    Example:
        >>> import torch
        >>> causal_conv1d(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[1.0, 10.0]]))
        tensor([[[10., 21., 32.]]])
    """
    silu = _is_silu(activation)
    _check(x, weight, bias, initial_state)
    y = torch.ops.medseq.causal_conv1d(x, weight, bias, initial_state, silu)
    return (y, _final_state(x, weight.shape[1], initial_state)) if return_final_state else y


@torch.no_grad()
def causal_conv1d_update(
    state: Float[Tensor, "batch dim width-1"],
    x: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, " dim"] | None = None,
    activation: Activation = None,
) -> Float[Tensor, "batch dim"]:
    """One token of a stream: the next output, and `state` moved on in place. Not differentiable.

    Args:
        state: The last `width` - 1 tokens, oldest first; changed.
        x: The new token.
        weight: As in `causal_conv1d`.
        bias: As there.
        activation: As there.

    Returns:
        What `causal_conv1d` gives for this token.

    Raises:
        ShapeError, InputError: As `causal_conv1d`.
    """
    if x.dim() != 2:
        raise ShapeError("x must be one token (batch, dim)", where="causal_conv1d_update", found=tuple(x.shape))
    y, after = causal_conv1d(x[:, :, None], weight, bias, activation, state, return_final_state=True)
    state.copy_(after)
    return y[:, :, 0]


def _final_state(x: Tensor, width: int, initial_state: Tensor | None) -> Tensor:
    """The last `width` - 1 tokens of the state and `x`, in the dtype of `x`."""
    missing = max(0, width - 1 - x.shape[2])
    if initial_state is None:
        before = x.new_zeros(*x.shape[:2], missing)
    else:
        before = initial_state[:, :, width - 1 - missing :].to(x.dtype)
    return torch.cat([before, x[:, :, x.shape[2] - (width - 1 - missing) :]], dim=2)


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise InputError("unknown activation", where="causal_conv1d", found=activation, wanted="silu | swish | None")
    return activation is not None


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None) -> None:
    where = "causal_conv1d"
    if x.dim() != 3:
        raise ShapeError("x must be (batch, dim, length)", where=where, found=tuple(x.shape))
    if weight.dim() != 2 or weight.shape[0] != x.shape[1] or weight.shape[1] < 1:
        raise ShapeError(
            "weight must hold one filter per channel of x",
            where=where,
            found=f"weight {tuple(weight.shape)}, x {tuple(x.shape)}",
            wanted=f"weight ({x.shape[1]}, width >= 1)",
        )
    wanted = (*x.shape[:2], weight.shape[1] - 1)
    if bias is not None and bias.shape != weight.shape[:1]:
        found = f"bias {tuple(bias.shape)}, weight {tuple(weight.shape)}"
        raise ShapeError("bias must hold one number per channel of x", where=where, found=found)
    if state is not None and state.shape != wanted:
        found = f"initial_state {tuple(state.shape)}, x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ShapeError(
            "initial_state must hold the width - 1 tokens before x", where=where, found=found, wanted=wanted
        )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("initial_state", state)):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} must be a floating-point tensor", where=where, found=f"{name} {tensor.dtype}")
        if tensor.device != x.device:
            found = f"{name} on {tensor.device}, x on {x.device}"
            raise ShapeError("all tensors must be on one device", where=where, found=found)
