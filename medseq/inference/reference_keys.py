"""Loading the weights of other implementations: strict about keys, sizes and arguments, with errors that name them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from medseq.errors import BundleError
from medseq.nn.sensitivity import SensitivityNet

__all__ = ["count", "load_strictly", "ratio", "reconcile", "sensitivity_net"]


def reconcile(
    source: str, config: Mapping[str, Any], sizes: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The original's arguments: what the state dict tells, what the caller says, and the original's defaults.

    Args:
        source: Name of the implementation, for messages.
        config: What the caller says, by the original constructor's words.
        sizes: What the state dict tells; a caller who says otherwise is refused.
        defaults: Every other argument that the original knows.

    Raises:
        BundleError: Naming an unknown key, or one that contradicts the state dict.
    """
    known = {**defaults, **sizes}
    for key, value in config.items():
        if key not in known:
            raise BundleError("unknown configuration key", where=source, found=key, wanted=", ".join(sorted(known)))
        said = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        if key in sizes and said != sizes[key]:
            raise BundleError(
                f"configuration contradicts the state dict in {key!r}", where=source, found=value, wanted=sizes[key]
            )
        known[key] = value
    return known


def load_strictly(source: str, module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load a state dict into a module; every key must fit.

    Raises:
        BundleError: Naming what is missing, unknown or of another shape.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError("state dict does not fit", where=source, found=str(error)[:500]) from None
    return module


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered entries follow a prefix: 3 for ``a.0.w, a.2.w`` and the prefix ``a.``.

    Raises:
        BundleError: What follows is not a number.
    """
    numbers = [key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)]
    if not all(number.isdigit() for number in numbers):
        raise BundleError("state dict does not fit", found=f"{prefix}{numbers[0]}", wanted=f"{prefix}0, …")
    return 1 + max((int(number) for number in numbers), default=-1)


def ratio(width: int, base: int, wanted: float | None = None) -> float:
    """A ratio for which ``int(ratio * base) == width``: `wanted` if it is one; originals round widths down."""
    if wanted is not None and int(wanted * base) == width:
        return wanted
    plain = width / base
    return plain if int(plain * base) == width else (width + 0.5) / base


def sensitivity_net(
    state: Mapping[str, Tensor], prefix: str, style: Literal["varnet", "direct"], **keywords: Any
) -> tuple[SensitivityNet, dict[str, Tensor], dict[str, Any]]:
    """The network that the keys under `prefix` belong to, its state dict, and the arguments that build it."""
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    inner = "unet." if style == "varnet" else ""
    own = {f"net.{inner}{key.removeprefix('norm_unet.unet.')}": value for key, value in found.items()}
    first = next(value for key, value in own.items() if key.endswith("down_sample_layers.0.layers.0.weight"))
    pools = len({key.split("down_sample_layers.")[1].split(".")[0] for key in own if "down_sample_layers." in key})
    arguments = {"channels": first.shape[0], "pools": pools, "style": style, **keywords}
    return SensitivityNet(**arguments), own, arguments
