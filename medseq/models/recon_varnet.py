"""End-to-end variational network: unrolled gradient steps in k-space with a U-Net regulariser in the image domain.

Reference:
    Sriram et al., End-to-end variational networks for accelerated MRI reconstruction, arXiv:2004.06688. Parameter
    names are those of fastMRI's code.
"""

from typing import Any

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.recon import Acquisition, ReconOutput, prepare, recomputed
from medseq.nn.sensitivity import SensitivityNet
from medseq.nn.unet import NormUNet
from medseq.ops.coils import rss
from medseq.ops.fourier import Norm, Origin, ifft2

__all__ = ["VarNet", "varnet"]


class VarNetBlock(nn.Module):
    """``k <- k - w M (k - y) - F S model(S^H F^-1 k)``.

    Args:
        model: Complex image -> complex image.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(self, k: Complex[Tensor, "batch coil row col"], scan: Acquisition) -> Tensor:
        """One step; k-space in the operator's order."""
        mismatch = torch.where(scan.mask, k - scan.kspace, 0)
        return k - self.dc_weight * mismatch - scan.operator.expand(self.model(scan.operator.reduce(k)))


class VarNet(nn.Module):
    """E2E-VarNet.

    Args:
        num_cascades: Unrolled steps.
        channels: Width of the regularisers' first level.
        pools: How often they halve the size.
        sens_net: Makes sensitivity maps where none are given, from k-space and mask; the paper's is
            `medseq.nn.sensitivity.SensitivityNet`.
        checkpoint_cascades: Keep only what passes between cascades and compute the rest again for the gradient.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    image_kind = "rss"

    def __init__(
        self,
        num_cascades: int = 12,
        channels: int = 18,
        pools: int = 4,
        sens_net: nn.Module | None = None,
        checkpoint_cascades: bool = False,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__()
        if num_cascades < 1:
            raise InputError("VarNet needs at least one cascade", found=num_cascades)
        self.fft_origin, self.fft_norm = fft_origin, fft_norm
        self.cascades = nn.ModuleList(VarNetBlock(NormUNet(channels, pools)) for _ in range(num_cascades))
        self.sens_net, self.checkpoint_cascades = sens_net, checkpoint_cascades

    def forward(
        self,
        masked_kspace: Complex[Tensor, "batch coil row col"],
        mask: Tensor,
        sens_maps: Complex[Tensor, "batch coil row col"] | None = None,
        initial_image: Complex[Tensor, "batch row col"] | None = None,
        return_states: bool = False,
    ) -> ReconOutput:
        """Reconstruct a batch.

        Args:
            masked_kspace: Measured k-space, zero elsewhere.
            mask: ``(batch or 1, 1, row or 1, col)``, any dtype, not zero where measured.
            sens_maps: Sensitivity maps; None for those of `sens_net`.
            initial_image: Start at its k-space where nothing was measured, instead of at zeros.
            return_states: This network has no states.

        Returns:
            Root sum of squares of the coil images; multi-coil k-space; ``intermediates[cascade][0]`` is k-space.

        Raises:
            ShapeError: Sizes or dtypes do not fit.
            InputError: No maps and no `sens_net`.
        """
        scan = prepare(masked_kspace, mask, sens_maps, self.sens_net, origin=self.fft_origin, norm=self.fft_norm)
        k, steps = scan.kspace, []
        if initial_image is not None:
            k = torch.where(scan.mask, k, scan.operator.expand(initial_image))
        for block in self.cascades:
            k = recomputed(self.checkpoint_cascades, block, k, scan)
            steps.append([scan.operator.scan(k)])
        image = rss(ifft2(k, origin="corner", norm=self.fft_norm))
        return ReconOutput(scan.operator.scan(image), steps[-1][0], steps)


def varnet(**keywords: Any) -> VarNet:
    """The paper's size: 12 cascades of width 18, sensitivity network of width 8."""
    return VarNet(**{"sens_net": SensitivityNet(8, 4), **keywords})


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"num_cascades": 2, "channels": 4, "pools": 2}
    return {
        "given": VarNet(**small),
        "sens_net": VarNet(sens_net=SensitivityNet(4, 2), **small),
        "corner": VarNet(fft_origin="corner", fft_norm="backward", **small),
    }


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[..., ::3], mask[..., 8:13] = True, True
    inputs = {"masked_kspace": torch.randn(2, 3, 18, 20, dtype=torch.complex64) * mask, "mask": mask}
    if name != "sens_net":
        maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64)
        inputs["sens_maps"] = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return inputs
