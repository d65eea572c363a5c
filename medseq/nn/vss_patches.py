"""The layers of VMamba that change the resolution: patch embedding and downsampling, channel first.

Reference:
    Liu et al., VMamba: Visual State Space Model, arXiv:2401.10166.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError
from medseq.nn.rwkv import ChannelLayerNorm
from medseq.nn.ss2d import Linear2d

__all__ = ["PatchMerging", "downsample", "patch_embed"]


class PatchMerging(nn.Module):
    """Half the resolution: the four pixels of a square side by side as channels, a norm, a linear layer."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduction = Linear2d(4 * channels, out_channels, bias=False)
        self.norm = ChannelLayerNorm(4 * channels)

    def forward(self, x: Float[Tensor, "batch channel row col"]) -> Float[Tensor, "batch out half_row half_col"]:
        """Odd sizes are padded with zeros at the end."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [x[:, :, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, 1)))


def patch_embed(version: str, channels: int, width: int, patch: int, normed: bool) -> nn.Sequential:
    """From the image to the first stage: v1 is one convolution, v2 two of half the stride each.

    Places in the sequence are those of the original, which also held permutations.

    Raises:
        InputError: Unknown version, or an odd patch size for v2.
    """

    def norm(size: int) -> nn.Module:
        return ChannelLayerNorm(size) if normed else nn.Identity()

    if version == "v1":
        return nn.Sequential(nn.Conv2d(channels, width, patch, patch), nn.Identity(), norm(width))
    if version != "v2" or patch % 2:
        raise InputError("patch embedding", found=(version, patch), wanted="v1, or v2 with an even patch size")
    half, stride = width // 2, patch // 2
    first = nn.Conv2d(channels, half, stride + 1, stride, padding=1)
    second = nn.Conv2d(half, width, stride + 1, stride, padding=1)
    middle = (nn.Identity(), norm(half), nn.Identity(), nn.GELU())
    return nn.Sequential(first, *middle, second, nn.Identity(), norm(width))


def downsample(version: str, width: int, out: int) -> nn.Module:
    """From one stage to the next: v1 merges squares, v2 is a 2x2 and v3 a 3x3 convolution of stride 2.

    Raises:
        InputError: Unknown version.
    """
    if version == "v1":
        return PatchMerging(width, out)
    if version not in ("v2", "v3"):
        raise InputError("downsample_version", found=version, wanted="v1 | v2 | v3")
    conv = nn.Conv2d(width, out, 2, 2) if version == "v2" else nn.Conv2d(width, out, 3, 2, padding=1)
    return nn.Sequential(nn.Identity(), conv, nn.Identity(), ChannelLayerNorm(out))
