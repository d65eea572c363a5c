"""The scale of a scan, from its measured data alone: what unrolled networks are fed is divided by it."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medseq.errors import InputError
from medseq.nn.conjugate_gradient import cg_sense
from medseq.ops.coils import SenseOperator
from medseq.ops.fourier import Norm, Origin

__all__ = ["kspace_scale", "sense_scale"]


def sense_scale(
    kspace: Complex[Tensor, "batch coil row col"],
    mask: Tensor,
    sens_maps: Complex[Tensor, "batch coil row col"],
    *,
    origin: Origin = "centre",
    norm: Norm = "ortho",
) -> tuple[Float[Tensor, " batch"], Complex[Tensor, "batch row col"]]:
    """The 95th percentile of the magnitude of a regularised SENSE image, and that image divided by it.

    Unlike a percentile of k-space it hardly depends on the sampling pattern, on the matrix or on the coils.

    Raises:
        InputError: There is no signal at all.
    """
    operator = SenseOperator(sens_maps, origin, norm)
    image = cg_sense(operator.corner(kspace), operator.corner(mask).bool(), operator)
    scale = torch.quantile(image.abs().flatten(1), 0.95, dim=1)
    scale = torch.where(scale > 0, scale, image.abs().amax(dim=(1, 2)))
    if not bool((scale > 0).all()):
        raise InputError("the scan has no signal", where="k-space times sensitivity maps")
    return scale, image / scale[:, None, None]


def kspace_scale(kspace: Complex[Tensor, "batch coil row col"], share: float = 0.99) -> Float[Tensor, " batch"]:
    """A quantile of the modulus of measured k-space, coils that are all zero left out: what direct divides by."""
    scales = []
    for item in kspace:
        alive = item[(item != 0).flatten(1).any(dim=1)]
        if not alive.numel():
            raise InputError("k-space is all zero")
        modulus = alive.abs().flatten()
        above = int((1 - share) * modulus.numel()) + 1
        scales.append(modulus.kthvalue(modulus.numel() - above + 1).values)
    return torch.stack(scales)
