"""Mixers: the exchangeable layer of every model here, in three forms.

    ImageMixer(channels, **options)      forward(x)                (batch, channel, row, col) -> same
    RecurrentMixer(channels, **options)  forward(x, state=None)    -> (y, state); state None at the first step
    SequenceMixer(dim, **options)        forward(x, coords=None)   (batch, length, dim) -> same

A model takes ``mixer: Callable[[int], nn.Module]`` and calls it with the width of each level; in YAML that is one line:
``mixer: {class_path: medseq.nn.ss2d.SS2DMixer, init_args: {d_state: 1}}``. There are

    what                 ImageMixer                RecurrentMixer                     SequenceMixer
    selective scan       ss2d.SS2DMixer            ss2d.SS2DRecurrentMixer            ss2d.SS2DSequenceMixer
    bidirectional WKV    rwkv.SpatialMix           rwkv.ReWKVRecurrentMixer           rwkv.ReWKVSequenceMixer
    depthwise conv.      depthwise.DepthwiseMixer  depthwise.DepthwiseRecurrentMixer  depthwise.DepthwiseSequenceMixer
    scan without places                                                               mamba.Mamba, BiMamba, Mamba2

`medseq.nn.recurrent.Recurrent` gives a state to any image mixer, `OnGrid` below lays sequences on a grid for it.
An image mixer of this package also takes ``mask`` (batch, row, col), False where a pixel holds nothing: such a pixel
changes no other and gives 0.
"""

from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor, nn

from medseq.nn.grid import SlideGrid

__all__ = ["ImageMixer", "OnGrid", "RecurrentMixer", "SequenceMixer"]


class ImageMixer(Protocol):
    """Mixes the pixels of each image; any size."""

    def __call__(
        self, x: Float[Tensor, "batch channel row col"], mask: Bool[Tensor, "batch row col"] | None = None
    ) -> Float[Tensor, "batch channel row col"]:
        """Images in, images of the same shape out."""


class RecurrentMixer(Protocol):
    """One step of a recurrence over images: iterations of a reconstruction, frames of a series."""

    def __call__(
        self, x: Float[Tensor, "batch channel row col"], state: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch channel row col"], Tensor]:
        """Input and the state of the step before, None at the first; output and the state for the next step."""


class SequenceMixer(Protocol):
    """Mixes the tokens of each sequence; any length."""

    def __call__(
        self, x: Float[Tensor, "batch length dim"], coords: Float[Tensor, "batch length 2"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Tokens in, as many out; `coords` are the tokens' places (x, y) on a slide, if they have any."""


class OnGrid(nn.Module):
    """A `SequenceMixer` from any `ImageMixer`: tokens are laid on the slide's grid, mixed as an image, and read back.

    Cells without a token are holes. Without coordinates the tokens fill a square row by row.

    Args:
        mixer: Takes the grid and the mask of its holes.
        patch_size_level0: Distance of neighbouring patches in level-0 pixels; None reads it off the coordinates.
    """

    def __init__(self, mixer: nn.Module, patch_size_level0: float | None = None) -> None:
        super().__init__()
        self.mixer, self.patch_size_level0 = mixer, patch_size_level0

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        coords: Float[Tensor, "batch length 2"] | None = None,
        patch_size_level0: float | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """Mix all tokens.

        Args:
            x: Tokens.
            coords: Their level-0 pixels (x, y), ``(batch, length, 2)`` or ``(length, 2)``.
            patch_size_level0: Of this slide; else that of the layer.

        Raises:
            ShapeError: Coordinates do not fit the tokens.
            InputError: Two patches in one cell, or a grid that is far too large.
        """
        if x.shape[1] == 0:
            return x
        patch_size = patch_size_level0 if patch_size_level0 is not None else self.patch_size_level0
        grid = SlideGrid.square(x) if coords is None else SlideGrid.of(x, coords, patch_size)
        # A full grid needs no mask, and takes the faster way through the scan.
        return grid.gather(self.mixer(grid.scatter(x), None if grid.is_full else grid.mask))
