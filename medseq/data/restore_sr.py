"""Training data for MR super-resolution: heads at many pixel sizes, and what fewer lines of k-space leave of them."""

import math

import torch
from torch import Tensor

from medseq.data.content import mr_slices, photographs, vary_mr
from medseq.data.degrade import rician_noise
from medseq.data.degrade_mr import low_resolution
from medseq.data.restore import CroppedDataset, Sample
from medseq.errors import InputError
from medseq.ops.resolution import truncate_kspace, zero_fill

__all__ = ["LowResolutionMR"]

# Low-resolution pixels around a sample that are degraded with it and cut away: k-space wraps around the margin's edge.
_MARGIN = 6


class LowResolutionMR(CroppedDataset):
    """MR slices, and the same after k-space truncation and zero filling: `image` and `target` share one fine grid.

    The object is drawn on a grid of about the source's own pixels, and the target is its truncated k-space at a random
    pixel size: as sharp as a scanner's image of that size, Gibbs ringing included.

    Args:
        length, crop, seed: See `CroppedDataset`.
        factor: Ratio of the low resolution's pixel size to the target's.
        split: ``train``, ``val`` or ``test`` slabs of the training heads.
        pixel_size: Range of the target's pixel size in pixels of the source (1 mm), log-uniform.
        own_noise: Nine targets in ten carry Rician noise of up to this fraction of the 99th percentile, as single
            acquisitions do; the low resolution is made from the noisy target.
        photo_share: Share of samples whose content is a photograph.
    """

    def __init__(
        self,
        length: int = 4000,
        crop: int = 64,
        seed: int = 0,
        factor: int = 2,
        split: str = "train",
        pixel_size: tuple[float, float] = (0.9, 2.0),
        own_noise: float = 0.03,
        photo_share: float = 0.15,
    ) -> None:
        super().__init__(length, crop, seed)
        if factor < 2 or pixel_size[0] > pixel_size[1] or pixel_size[0] <= 0:
            raise InputError(
                "factor and pixel sizes do not fit", found=(factor, pixel_size), wanted="factor >= 2, sizes increasing"
            )
        self.factor, self.pixel_size, self.own_noise, self.photo_share = factor, pixel_size, own_noise, photo_share
        self.heads = mr_slices(split)
        self.photos = photographs() if photo_share else None

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        margin = _MARGIN * self.factor
        side = self.factor * math.ceil((self.crop + 2 * margin) / self.factor)
        target = truncate_kspace(self._object(side, generator), (side, side)).abs()
        if torch.rand((), generator=generator) < 0.9:
            own = self.own_noise * torch.rand((), generator=generator).item()
            target = torch.from_numpy(rician_noise(target.numpy(), own, generator))
        image = zero_fill(low_resolution(target, self.factor), (side, side))
        inner = slice(margin, margin + self.crop)
        scale = 0.85 + 0.4 * torch.rand((), generator=generator).item()
        return Sample(image[:, inner, inner], target[:, inner, inner], scale, "mr")

    def _object(self, side: int, generator: torch.Generator) -> Tensor:
        """Square content with at least `side` pixels a side, dark background at 0."""
        low, high = (math.log(size) for size in self.pixel_size)
        size = math.exp(low + (high - low) * torch.rand((), generator=generator).item())
        fine = max(side, round(side * size))
        zoom = min(fine / (side * size), 1.2)
        content = self.heads
        if self.photos is not None and torch.rand((), generator=generator) < self.photo_share:
            content = self.photos
        image = content.sample(fine, generator, zoom=(0.95 * zoom, 1.05 * zoom)).clamp(min=0.0)
        return vary_mr(image, generator)
