"""What causal layers remember between calls: the convolution's last inputs and the scan's state."""

from typing import NamedTuple

from torch import Tensor

from medseq.errors import ShapeError

__all__ = ["MambaState", "check_tokens"]


class MambaState(NamedTuple):
    """What a causal layer remembers of the tokens so far; never changed in place.

    conv: The last ``d_conv - 1`` inputs of the convolution, ``(batch, channel, d_conv - 1)``.
    ssm: State of the scan, ``(batch, d_inner, d_state)`` or ``(batch, head, headdim, d_state)``; at least float32.
    """

    conv: Tensor
    ssm: Tensor


def check_tokens(x: Tensor, dim: int, where: str) -> None:
    """Refuse what is not ``(batch, length, dim)``.

    Raises:
        ShapeError: Naming both shapes.
    """
    if x.dim() != 3 or x.shape[2] != dim:
        raise ShapeError(
            "tokens do not fit the layer", where=where, found=tuple(x.shape), wanted=f"(batch, length, {dim})"
        )
