"""Depthwise convolution as a mixer: the local baseline of the scans, in all three forms."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.mixers import OnGrid
from medseq.nn.recurrent import Recurrent

__all__ = ["DepthwiseMixer", "DepthwiseRecurrentMixer", "DepthwiseSequenceMixer"]


class DepthwiseMixer(nn.Module):
    """A depthwise convolution, then a linear layer over the channels; an `ImageMixer`.

    Args:
        channels: Number of channels.
        kernel_size: Rows and columns of the kernel, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError("kernel_size", found=kernel_size, wanted="odd and positive")
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "batch channel row col"], mask: Bool[Tensor, "batch row col"] | None = None
    ) -> Float[Tensor, "batch channel row col"]:
        """Mix each pixel with those under the kernel; zero outside the image and where `mask` is False."""
        if mask is None:
            return self.pointwise(self.depthwise(x))
        return self.pointwise(self.depthwise(x * mask[:, None])) * mask[:, None]


class DepthwiseRecurrentMixer(Recurrent):
    """The same as a `RecurrentMixer`; arguments as of `DepthwiseMixer`."""

    def __init__(self, channels: int, *, kernel_size: int = 7) -> None:
        super().__init__(channels, DepthwiseMixer(channels, kernel_size=kernel_size))


class DepthwiseSequenceMixer(OnGrid):
    """The same as a `SequenceMixer` on the slide's grid.

    Args:
        dim: Width of the tokens.
        kernel_size: See `DepthwiseMixer`.
        patch_size_level0: See `medseq.nn.mixers.OnGrid`.
    """

    def __init__(self, dim: int, *, kernel_size: int = 7, patch_size_level0: float | None = None) -> None:
        super().__init__(DepthwiseMixer(dim, kernel_size=kernel_size), patch_size_level0)
