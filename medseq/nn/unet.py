"""The U-Net of fastMRI, and the same on complex images normalised on the way in and restored on the way out.

Parameter names are those of fastMRI's code, which direct and atommic share, so that their state dicts load.

Reference:
    Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839, section 6.2;
    Sriram et al., End-to-end variational networks, arXiv:2004.06688, section 3.2 (the normalisation).
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.nn.recon import as_complex

__all__ = ["NormUNet", "UNet"]


class ConvBlock(nn.Module):
    """Two times convolution 3x3, instance normalisation, leaky ReLU, dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            InstanceNorm(),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            InstanceNorm(),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, out_channels, H, W)``."""
        return self.layers(x)


class InstanceNorm(nn.Module):
    """Instance normalisation without parameters that accepts a single pixel, as small images leave at the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> same."""
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance + 1e-5)


class UpBlock(nn.Module):
    """Transposed convolution 2x2 to twice the size, instance normalisation, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False),
            InstanceNorm(),
            nn.LeakyReLU(0.2, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, out_channels, 2H, 2W)``."""
        return self.layers(x)


class UNet(nn.Module):
    """U-Net with average pooling.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        channels: Width of the first level; it doubles with each pooling.
        pools: How often the size is halved.
        dropout: Probability of dropping a channel.
    """

    def __init__(
        self, in_channels: int = 2, out_channels: int = 2, channels: int = 32, pools: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(pools + 1)]
        self.down_sample_layers = nn.ModuleList(
            ConvBlock(a, b, dropout) for a, b in zip([in_channels, *widths[:-2]], widths[:-1], strict=True)
        )
        self.conv = ConvBlock(widths[-2], widths[-1], dropout)
        self.up_transpose_conv = nn.ModuleList(UpBlock(2 * width, width) for width in widths[-2::-1])
        self.up_conv = nn.ModuleList(ConvBlock(2 * width, width, dropout) for width in widths[-2:0:-1])
        self.up_conv.append(
            nn.Sequential(ConvBlock(2 * channels, channels, dropout), nn.Conv2d(channels, out_channels, 1))
        )

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch out row col"]:
        """Any size of at least ``2 ** pools``; sizes that do not halve are mirrored by one pixel on the way up."""
        skips = []
        for layer in self.down_sample_layers:
            x = layer(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.conv(x)
        for up, merge in zip(self.up_transpose_conv, self.up_conv, strict=True):
            skip = skips.pop()
            x = up(x)
            right, down = skip.shape[3] - x.shape[3], skip.shape[2] - x.shape[2]
            if right or down:
                x = F.pad(x, (0, right, 0, down), mode="reflect" if min(x.shape[2:]) > 1 else "replicate")
            x = merge(torch.cat([x, skip], dim=1))
        return x


class NormUNet(nn.Module):
    """A U-Net on complex images: real and imaginary part each to mean 0 and deviation 1, and back.

    Args:
        channels: See `UNet`.
        pools: Same.
        dropout: Same.
        normalise: False leaves the normalisation out.
    """

    def __init__(self, channels: int = 18, pools: int = 4, dropout: float = 0.0, *, normalise: bool = True) -> None:
        super().__init__()
        self.unet = UNet(2, 2, channels, pools, dropout)
        self.normalise = normalise
        # At least 16, as in the originals; more where the U-Net halves more often.
        self.multiple = max(16, 2**pools)

    def forward(self, image: Complex[Tensor, "batch row col"]) -> Complex[Tensor, "batch row col"]:
        """Complex image of any size -> same."""
        x = torch.stack([image.real, image.imag], dim=1)
        if self.normalise:
            deviation, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=int(x[0, 0].numel() > 1))
            # The originals divide a constant image by 0; this is too little to change any other.
            deviation = deviation + 1e-12
            x = (x - mean) / deviation
        rows, cols = image.shape[-2:]
        up, left = ((-rows) % self.multiple) // 2, ((-cols) % self.multiple) // 2
        down, right = (-rows) % self.multiple - up, (-cols) % self.multiple - left
        x = self.unet(F.pad(x, (left, right, up, down)))[..., up : up + rows, left : left + cols]
        if self.normalise:
            x = x * deviation + mean
        return as_complex(x)
