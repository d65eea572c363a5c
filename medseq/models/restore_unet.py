"""A plain convolutional U-Net for restoration: the baseline that the scan-based models are measured against.

Three levels of residual 3x3 blocks at half resolution (pixel unshuffle), with the same global residual and the same
contract as `medseq.models.restore_rwkv`. After Ronneberger et al., arXiv:1505.04597, and the residual formulation of
Zhang et al. (DnCNN), arXiv:1608.03981.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError, ShapeError
from medseq.models.restore_rwkv import pad_to_multiple

__all__ = ["RestoreUNet"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a GELU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> same."""
        return x + self.conv2(F.gelu(self.conv1(x)))


class RestoreUNet(nn.Module):
    """Residual U-Net.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the result, at most `in_channels`.
        dims: Width of each level.
        num_blocks: Residual blocks of each level (encoder and decoder alike).
        residual_scale: The network's output times this is added to the first channels of the input.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        dims: Sequence[int] = (40, 80, 128),
        num_blocks: Sequence[int] = (1, 1, 2),
        residual_scale: float = 0.1,
    ) -> None:
        super().__init__()
        if in_channels < out_channels or len(dims) != len(num_blocks):
            raise InputError(
                "RestoreUNet needs in_channels >= out_channels and as many num_blocks as dims",
                found=(in_channels, out_channels, tuple(dims), tuple(num_blocks)),
            )
        self.in_channels, self.out_channels, self.residual_scale = in_channels, out_channels, residual_scale
        self.multiple = 2 ** len(dims)
        self.head = nn.Conv2d(4 * in_channels, dims[0], 3, padding=1)
        self.encoders, self.downs = nn.ModuleList(), nn.ModuleList()
        self.decoders, self.ups, self.merges = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for upper, lower, count in zip(dims[:-1], dims[1:], num_blocks[:-1], strict=True):
            self.encoders.append(nn.Sequential(*(ResidualBlock(upper) for _ in range(count))))
            self.downs.append(nn.Conv2d(upper, lower, 2, stride=2))
            self.ups.append(nn.Sequential(nn.Conv2d(lower, 4 * upper, 1), nn.PixelShuffle(2)))
            self.merges.append(nn.Conv2d(2 * upper, upper, 1))
            self.decoders.append(nn.Sequential(*(ResidualBlock(upper) for _ in range(count))))
        self.latent = nn.Sequential(*(ResidualBlock(dims[-1]) for _ in range(num_blocks[-1])))
        self.tail = nn.Conv2d(dims[0], 4 * out_channels, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, image: Float[Tensor, "batch channel row col"], condition: Tensor | None = None
    ) -> Float[Tensor, "batch out row col"]:
        """Restore images of any size >= 1 x 1; this model takes no condition.

        Raises:
            ShapeError: The channels are not those the model was built for, or a condition was given.
        """
        if image.dim() != 4 or image.shape[1] != self.in_channels or condition is not None:
            raise ShapeError(
                "input does not fit the model",
                found=f"image {tuple(image.shape)}, condition {'given' if condition is not None else 'none'}",
                wanted=f"(batch, {self.in_channels}, row, col), no condition",
            )
        rows, cols = image.shape[2:]
        x = F.pixel_unshuffle(pad_to_multiple(image, self.multiple), 2).contiguous(memory_format=torch.channels_last)
        x = self.head(x)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.latent(x)
        for decoder, up, merge, skip in zip(
            reversed(self.decoders), reversed(self.ups), reversed(self.merges), reversed(skips), strict=True
        ):
            x = decoder(merge(torch.cat([up(x), skip], 1)))
        x = F.pixel_shuffle(self.tail(x), 2)
        return image[:, : self.out_channels] + self.residual_scale * x[:, :, :rows, :cols]


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    return {"unet": RestoreUNet(1, 1, (8, 8), (1, 1)), "ct": RestoreUNet(2, 1, (8, 8, 8), (1, 1, 1))}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"image": torch.randn(2, 2 if name == "ct" else 1, 19, 24)}
