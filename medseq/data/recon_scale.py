"""The scale of a scan, from its measured data alone: what unrolled networks are fed is divided by it.

Networks without normalisation answer well only at the scale that they were trained at, and every toolkit has its own
rule. A bundle's `preprocess` names the rule (one entry); without one it is `SenseScale`, that of the shipped model.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from medseq.errors import InputError
from medseq.nn.conjugate_gradient import cg_sense
from medseq.ops.coils import SenseOperator
from medseq.ops.fourier import Norm, Origin, ifft2c

__all__ = [
    "CoilImageMax",
    "KSpaceQuantile",
    "KSpaceScale",
    "SenseScale",
    "Unscaled",
    "kspace_scale",
    "sense_scale",
]

KSpace = Complex[Tensor, "batch coil row col"]


class KSpaceScale(ABC):
    """A rule for the scale of a scan; the data are centred and unitary."""

    @abstractmethod
    def fit(self, kspace: KSpace, mask: Tensor, sens_maps: KSpace) -> dict[str, Tensor]:
        """``scale`` ``(batch,)``, and where the rule made one, a ``start`` image ``(batch, row, col)`` at that scale.

        Raises:
            InputError: There is no signal.
        """

    def apply(self, kspace: KSpace, params: dict[str, Tensor]) -> KSpace:
        """What the network is fed, still centred and unitary."""
        return kspace / params["scale"].view(-1, 1, 1, 1)

    def invert(self, output: Tensor, params: dict[str, Tensor]) -> Tensor:
        """An image or k-space of the network in the units of the scan."""
        return output * params["scale"].view(-1, *(1,) * (output.dim() - 1))


class SenseScale(KSpaceScale):
    """See `sense_scale`."""

    def fit(self, kspace: KSpace, mask: Tensor, sens_maps: KSpace) -> dict[str, Tensor]:
        """See `KSpaceScale.fit`; the start is the regularised SENSE image."""
        scale, start = sense_scale(kspace, mask, sens_maps)
        return {"scale": scale, "start": start}


class KSpaceQuantile(KSpaceScale):
    """See `kspace_scale`.

    Args:
        share: The quantile; 1 is the largest sample.
        norm: Convention in which the samples are 1 at that quantile. Samples of ``backward`` data are larger than
            unitary ones by the square root of the number of pixels.
    """

    def __init__(self, share: float = 0.99, norm: Literal["ortho", "backward"] = "ortho") -> None:
        if not 0 < share <= 1 or norm not in ("ortho", "backward"):
            raise InputError("this quantile makes no sense", found=(share, norm), wanted="0 < share <= 1, a known norm")
        self.share, self.norm = float(share), norm

    def fit(self, kspace: KSpace, mask: Tensor, sens_maps: KSpace) -> dict[str, Tensor]:
        """See `KSpaceScale.fit`."""
        pixels = kspace.shape[-2] * kspace.shape[-1]
        factor = float(pixels) ** (0.5 if self.norm == "backward" else 0.0)
        return {"scale": factor * kspace_scale(kspace, self.share)}


class CoilImageMax(KSpaceScale):
    """The largest magnitude in the zero-filled images of all coils: what atommic and mridc divide by."""

    def fit(self, kspace: KSpace, mask: Tensor, sens_maps: KSpace) -> dict[str, Tensor]:
        """See `KSpaceScale.fit`."""
        scale = ifft2c(torch.where(mask, kspace, 0)).abs().amax(dim=(1, 2, 3))
        if not bool((scale > 0).all()):
            raise InputError("k-space is all zero")
        return {"scale": scale}


class Unscaled(KSpaceScale):
    """The data as they are: for networks whose training saw the scanner's own units."""

    def fit(self, kspace: KSpace, mask: Tensor, sens_maps: KSpace) -> dict[str, Tensor]:
        """See `KSpaceScale.fit`."""
        return {"scale": kspace.real.new_ones(kspace.shape[0])}


def sense_scale(
    kspace: KSpace,
    mask: Tensor,
    sens_maps: KSpace,
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


def kspace_scale(kspace: KSpace, share: float = 0.99) -> Float[Tensor, " batch"]:
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
