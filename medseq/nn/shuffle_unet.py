"""A small, fast U-Net for unrolled reconstruction: it works at half resolution, on four times the channels.

Most of the cost of an unrolled network on a CPU is its first, full-resolution convolutions; folding 2 x 2 pixels into
channels first (Shi et al., arXiv:1609.05158) removes them. No normalisation: an unrolled network's input has a scale
that means something, and statistics of single images would make the result depend on how much air a slice shows.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ShuffleUNet"]


class ShuffleUNet(nn.Module):
    """Two levels, at a half and a quarter of the resolution, with residual blocks and one skip.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels at half the resolution.
        mixer: Makes a block that mixes pixels over the whole image at a quarter of the resolution, from its channels
            (an `ImageMixer`, for example `medseq.nn.mixers.SS2DMixer`); None for convolutions alone.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 32, mixer: Callable[[int], nn.Module] | None = None
    ) -> None:
        super().__init__()
        deep = 2 * width
        self.head = nn.Conv2d(4 * in_channels, width, 3, padding=1)
        self.shallow = _Residual(width)
        self.down = nn.Conv2d(width, deep, 3, stride=2, padding=1)
        self.deep = nn.Sequential(_Residual(deep), _Residual(deep))
        self.mixer = mixer(deep) if mixer is not None else None
        self.merge = nn.Conv2d(deep, deep, 3, padding=1)
        self.up = nn.Conv2d(deep, 4 * width, 1)
        self.tail = _Residual(width)
        self.last = nn.Conv2d(width, 4 * out_channels, 3, padding=1)
        # The network starts close to doing nothing, whatever follows it.
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            if self.last.bias is not None:
                self.last.bias.zero_()

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch out row col"]:
        """Any size; the border is repeated up to a multiple of 4 and cut off again."""
        rows, cols = x.shape[-2:]
        if rows % 4 or cols % 4:
            x = F.pad(x, (0, -cols % 4, 0, -rows % 4), mode="replicate")
        skip = self.shallow(_act(self.head(F.pixel_unshuffle(x, 2))))
        deep = self.deep(_act(self.down(skip)))
        if self.mixer is not None:
            deep = deep + self.mixer(deep)
        y = skip + F.pixel_shuffle(self.up(_act(self.merge(deep))), 2)
        y = F.pixel_shuffle(self.last(self.tail(y)), 2)
        return y[..., :rows, :cols]


class _Residual(nn.Module):
    """``x + conv(act(conv(x)))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(_act(self.first(x)))


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)
