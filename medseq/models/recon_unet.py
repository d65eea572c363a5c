"""A U-Net on the zero-filled image: fastMRI's baseline. It never looks back at the data.

Reference:
    Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839, section 6.2.
"""

from typing import Any, Literal

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.recon import ReconOutput, prepare
from medseq.nn.unet import NormUNet, UNet
from medseq.ops.coils import rss
from medseq.ops.fourier import Norm, Origin, ifft2

__all__ = ["ReconUNet"]


class ReconUNet(nn.Module):
    """Corrects the zero-filled image: ``x + net(x)``, the net on an image of mean 0 and deviation 1.

    Args:
        channels: Width of the U-Net's first level.
        pools: How often it halves the size.
        dropout: Probability of dropping a channel.
        image: ``complex`` for the coil-combined image, ``rss`` for its root sum of squares, which needs no maps.
        sens_net: Makes sensitivity maps where none are given, from k-space and mask.
        fft_origin: Fourier convention, see `medseq.ops.fourier`.
        fft_norm: Same.
    """

    def __init__(
        self,
        channels: int = 32,
        pools: int = 4,
        dropout: float = 0.0,
        image: Literal["complex", "rss"] = "complex",
        sens_net: nn.Module | None = None,
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__()
        if image not in ("complex", "rss"):
            raise InputError("unknown kind of image", found=image, wanted="complex or rss")
        self.image_kind, self.fft_origin, self.fft_norm = image, fft_origin, fft_norm
        self.net = NormUNet(channels, pools, dropout) if image == "complex" else MagnitudeUNet(channels, pools, dropout)
        self.sens_net = sens_net

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
            sens_maps: Sensitivity maps; None for those of `sens_net`, or with ``image="rss"``.
            initial_image: What to correct; None for the zero-filled image.
            return_states: This network has no states.

        Raises:
            ShapeError: Sizes or dtypes do not fit.
            InputError: No maps and no `sens_net` with ``image="complex"``.
        """
        plain = self.image_kind == "rss"
        # Any maps do for the check of the input: root sum of squares does not use them.
        maps = masked_kspace if plain else sens_maps
        scan = prepare(masked_kspace, mask, maps, self.sens_net, origin=self.fft_origin, norm=self.fft_norm)
        if initial_image is not None:
            x = initial_image.abs() if plain else initial_image
        elif plain:
            x = rss(ifft2(masked_kspace, origin=self.fft_origin, norm=self.fft_norm))
        else:
            x = scan.operator.reduce(scan.kspace)
        return ReconOutput(x + self.net(x))


class MagnitudeUNet(nn.Module):
    """A U-Net on real images of mean 0 and deviation 1."""

    def __init__(self, channels: int, pools: int, dropout: float) -> None:
        super().__init__()
        self.unet = UNet(1, 1, channels, pools, dropout)
        self.multiple = 2**pools

    def forward(self, image: Tensor) -> Tensor:
        """``(batch, row, col)`` -> same, any size."""
        deviation, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
        x = (image - mean) / (deviation + 1e-12)
        rows, cols = image.shape[1:]
        x = nn.functional.pad(x[:, None], (0, (-cols) % self.multiple, 0, (-rows) % self.multiple))
        return self.unet(x)[:, 0, :rows, :cols] * deviation


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"channels": 4, "pools": 2}
    return {"complex": ReconUNet(**small), "rss": ReconUNet(image="rss", fft_origin="corner", **small)}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    mask = torch.zeros(2, 1, 1, 20, dtype=torch.bool)
    mask[..., ::3], mask[..., 8:13] = True, True
    inputs = {"masked_kspace": torch.randn(2, 3, 18, 20, dtype=torch.complex64) * mask, "mask": mask}
    if name == "complex":
        maps = torch.randn(2, 3, 18, 20, dtype=torch.complex64)
        inputs["sens_maps"] = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return inputs
