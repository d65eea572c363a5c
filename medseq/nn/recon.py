"""What all reconstruction networks share: their result, the check of their input, soft data consistency.

Axes are ``(batch, coil, row, col)``, complex; masks ``(batch or 1, 1, row or 1, col)``. Networks never rescale their
input: scale belongs to the transforms around them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Complex
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medseq.errors import InputError, ShapeError
from medseq.ops.coils import SenseOperator
from medseq.ops.fourier import Norm, Origin

__all__ = ["Acquisition", "ReconOutput", "as_channels", "as_complex", "prepare", "recomputed"]

Result = TypeVar("Result")


class ReconOutput(NamedTuple):
    """What a reconstruction network returns.

    Attributes:
        image: ``(batch, row, col)``; complex where the model's `image_kind` is ``complex``, real where it is ``rss``.
        kspace: Predicted k-space ``(batch, coil, row, col)`` of networks that work there, else None.
        intermediates: ``[cascade][step]`` predictions on the way: complex images, or multi-coil k-space of networks
            that unroll in k-space.
        states: Hidden states, if asked for; see the model.
    """

    image: Tensor
    kspace: Tensor | None = None
    intermediates: list[list[Tensor]] | None = None
    states: list[Any] | None = None


class Acquisition(NamedTuple):
    """One checked input, its k-space in the order of `operator` (zero frequency at the corner).

    Attributes:
        kspace: Measured data.
        mask: Bool, broadcasts against `kspace`.
        operator: Coils and Fourier convention.
    """

    kspace: Complex[Tensor, "batch coil row col"]
    mask: Tensor
    operator: SenseOperator


def prepare(
    masked_kspace: Tensor,
    mask: Tensor,
    sens_maps: Tensor | None,
    sens_net: nn.Module | None,
    *,
    origin: Origin,
    norm: Norm,
) -> Acquisition:
    """Check an input, find its sensitivity maps, and turn it to the operator's order.

    Args:
        masked_kspace: Measured k-space in the scan's order.
        mask: Bool, or a number that is not zero where k-space was measured.
        sens_maps: Sensitivity maps, or None for those of `sens_net`.
        sens_net: Called with k-space and mask.
        origin: Fourier convention of the scan.
        norm: Same.

    Raises:
        ShapeError: Sizes or dtypes do not fit.
        InputError: There are no maps and no network that makes them.
    """
    if masked_kspace.dim() != 4 or not masked_kspace.is_complex():
        raise ShapeError(
            "k-space has the wrong form",
            found=f"{masked_kspace.dtype} {tuple(masked_kspace.shape)}",
            wanted="complex (batch, coil, row, col)",
        )
    batch, coils, rows, cols = masked_kspace.shape
    fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] == 1
    if not fits or mask.shape[2] not in (1, rows) or mask.shape[3] not in (1, cols):
        raise ShapeError(
            "mask and k-space disagree",
            found=f"mask {tuple(mask.shape)}, k-space {tuple(masked_kspace.shape)}",
            wanted=f"mask ({batch} or 1, 1, {rows} or 1, {cols})",
        )
    if sens_maps is None:
        if sens_net is None:
            raise InputError("this network needs sensitivity maps", remedy="estimate them, or build it with a sens_net")
        sens_maps = sens_net(masked_kspace, mask)
    if sens_maps.shape != masked_kspace.shape:
        raise ShapeError(
            f"k-space has {coils} coils, sensitivity maps have {sens_maps.shape[1] if sens_maps.dim() == 4 else '?'}",
            found=f"maps {tuple(sens_maps.shape)}",
            wanted=tuple(masked_kspace.shape),
            remedy="re-estimate the maps or pass sens_maps=None",
        )
    operator = SenseOperator(sens_maps, origin, norm)
    return Acquisition(operator.corner(masked_kspace), operator.corner(mask).bool(), operator)


def as_channels(image: Complex[Tensor, "batch row col"]) -> Tensor:
    """Complex image -> two channels, real and imaginary part."""
    return torch.stack([image.real, image.imag], dim=1)


def as_complex(channels: Tensor) -> Complex[Tensor, "batch row col"]:
    """Two channels -> complex image; complex numbers have single precision at least, whatever the channels have.

    Physics stays in float32 under mixed precision: a Fourier transform of half the precision loses what the data say.
    """
    if channels.dtype in (torch.float16, torch.bfloat16):
        channels = channels.float()
    return torch.complex(channels[:, 0], channels[:, 1])


def recomputed(flag: bool, step: Callable[..., Result], *inputs: Any) -> Result:
    """Run a step; with `flag` what it computes inside is computed again for the gradient, not kept.

    Args:
        flag: Trade time for memory.
        step: A cascade or an unrolled step.
        inputs: Its arguments; these and its result are kept.
    """
    if flag and torch.is_grad_enabled():
        return checkpoint(step, *inputs, use_reentrant=False)
    return step(*inputs)
