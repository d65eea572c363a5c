"""Networks that make coil sensitivity maps from the calibration region, and the maps of the original toolkits.

Only measured data are used: the region is read off the mask (`medseq.ops.coils.acs_mask`).
"""

from typing import Literal

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from medseq.nn.recon import as_channels, as_complex
from medseq.nn.unet import NormUNet, UNet
from medseq.ops.coils import divide_or_zero, extract_acs, rss
from medseq.ops.fourier import Norm, Origin, ifft2, to_centre, to_corner

__all__ = ["SensitivityNet"]


class SensitivityNet(nn.Module):
    """Refines low-resolution coil images by a U-Net that sees one coil at a time.

    Args:
        channels: Width of the U-Net's first level.
        pools: How often it halves the size.
        style: ``varnet``: normalised U-Net on the calibration images, then division by their root sum of squares
            (E2E-VarNet). ``direct``: plain U-Net on calibration images that are divided before and after; for a
            single coil the U-Net is left out.
        sigma: ``direct``: Gaussian over the columns of the calibration data, see `medseq.ops.coils.acs_sens_maps`.
        acs: Where the calibration data lie: ``auto`` as the mask tells; ``rows`` takes the rows that have the numbers
            of the mask's calibration columns, whatever was sampled there, as atommic does by default.
        divide: ``rss``; ``sqrt_abs``: atommic's divisor ``sqrt(sum |x|)``, which lacks the square; ``none``: neither
            this division nor the U-Net's normalisation, atommic's ``normalize: false``.
        fft_origin: Fourier convention of the scan, see `medseq.ops.fourier`.
        fft_norm: Same.

    Reference:
        Sriram et al., End-to-end variational networks, arXiv:2004.06688, section 3.3.
    """

    def __init__(
        self,
        channels: int = 8,
        pools: int = 4,
        style: Literal["varnet", "direct"] = "varnet",
        sigma: float | None = None,
        acs: Literal["auto", "rows"] = "auto",
        divide: Literal["rss", "sqrt_abs", "none"] = "rss",
        fft_origin: Origin = "centre",
        fft_norm: Norm = "ortho",
    ) -> None:
        super().__init__()
        self.style, self.sigma, self.acs, self.divide = style, sigma, acs, divide
        self.fft_origin, self.fft_norm = fft_origin, fft_norm
        self.net = (
            NormUNet(channels, pools, normalise=divide != "none") if style == "varnet" else UNet(2, 2, channels, pools)
        )

    def forward(
        self, masked_kspace: Complex[Tensor, "batch coil row col"], mask: Tensor
    ) -> Complex[Tensor, "batch coil row col"]:
        """Sensitivity maps of a scan.

        Raises:
            InputError: The centre of k-space was not sampled.
        """
        images = self.calibration_images(masked_kspace, mask)
        if self.style == "direct":
            images = divide_or_zero(images, rss(images)[:, None])
        return self.refine(images)

    def calibration_images(self, masked_kspace: Tensor, mask: Tensor) -> Tensor:
        """Coil images of the calibration region alone."""
        corner = self.fft_origin == "corner"
        kspace, mask = (to_centre(masked_kspace), to_centre(mask)) if corner else (masked_kspace, mask)
        data, region = extract_acs(kspace, mask)
        if self.acs == "rows":
            data = torch.where(_rows(region, kspace.shape[-2]), kspace, 0)
        if self.sigma is not None:
            position = torch.linspace(-1, 1, kspace.shape[-1], dtype=kspace.real.dtype, device=kspace.device)
            data = data * torch.exp(-((position / self.sigma) ** 2))
        return ifft2(to_corner(data) if corner else data, origin=self.fft_origin, norm=self.fft_norm)

    def refine(self, images: Complex[Tensor, "batch coil row col"]) -> Complex[Tensor, "batch coil row col"]:
        """Run the U-Net over each coil and divide by the coils' sum."""
        batch, coils, rows, cols = images.shape
        flat = images.reshape(batch * coils, rows, cols)
        if self.style == "varnet":
            flat = self.net(flat)
        elif coils > 1:
            flat = as_complex(self.net(as_channels(flat)))
        maps = flat.view(batch, coils, rows, cols)
        if self.divide == "none":
            return maps
        total = rss(maps) if self.divide == "rss" else maps.abs().sum(dim=1).sqrt()
        return divide_or_zero(maps, total[:, None])


def _rows(region: Tensor, rows: int) -> Tensor:
    """The rows that have the numbers of the region's columns."""
    columns = region.any(dim=2)[:, 0]
    band = torch.zeros(region.shape[0], 1, rows, 1, dtype=torch.bool, device=region.device)
    count = min(rows, columns.shape[1])
    band[:, 0, :count, 0] = columns[:, :count]
    return band
