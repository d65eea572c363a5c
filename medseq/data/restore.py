"""Training data for restoration: typed batches, and data sets that degrade clean images on the fly.

Every sample is drawn from a generator seeded by (seed, index) alone, so a resumed run sees what an uninterrupted one
would have seen, whatever the number of workers. Sources of clean content and sources of noise are separate: the CT
set mixes real anatomy at random pixel sizes with other real images mapped to HU, because one head alone teaches a
network that head.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.data.content import (
    Content,
    add_lesions,
    head_ct_slices,
    mr_slices,
    photographs,
    random_soft_tissue,
    sample_phantom,
    to_hounsfield,
    vary_mr,
)
from medseq.data.degrade import rician_noise
from medseq.data.noise_bank import ct_noise_bank
from medseq.data.seeded import SeededDataset

__all__ = ["LowDoseCT", "NoisyMR", "PhantomPairs", "RestoreBatch", "collate"]


class RestoreBatch(NamedTuple):
    """One training batch, in native units (HU for CT).

    Attributes:
        image: Degraded images ``(batch, 1, row, col)``.
        target: Clean images ``(batch, 1, row, col)``.
        condition: Further channels on the same grid, or None.
        scale: What `RobustScale` would fit, ``(batch,)``; 1 for absolute units.
        case_id: Where each sample came from.
    """

    image: Float[Tensor, "batch 1 row col"]
    target: Float[Tensor, "batch 1 row col"]
    condition: Float[Tensor, "batch condition row col"] | None
    scale: Float[Tensor, " batch"]
    case_id: list[str]


class Sample(NamedTuple):
    """One element of a `RestoreBatch`: images ``(1, row, col)``."""

    image: Tensor
    target: Tensor
    scale: float
    case_id: str


def collate(samples: Sequence[Sample]) -> RestoreBatch:
    """Stack samples of one size into a batch."""
    return RestoreBatch(
        torch.stack([s.image for s in samples]),
        torch.stack([s.target for s in samples]),
        None,
        torch.tensor([s.scale for s in samples], dtype=torch.float32),
        [s.case_id for s in samples],
    )


class CroppedDataset(SeededDataset[Sample]):
    """A seeded data set of square samples.

    Args:
        length: Samples an epoch.
        crop: Side of the samples, in pixels.
        seed: See `SeededDataset`.
    """

    def __init__(self, length: int, crop: int, seed: int = 0) -> None:
        super().__init__(length, seed)
        self.crop = crop


class LowDoseCT(CroppedDataset):
    """Simulated low-dose CT: clean slices plus FBP noise of random strength and kernel.

    Args:
        length, crop, seed: See `CroppedDataset`.
        split: ``train``, ``val`` or ``test`` block of the head CT.
        cache: Folder for the noise realisations (made once, some minutes).
        noise_hu: Range of the added noise's standard deviation inside the object, log-uniform.
        own_noise_hu: Targets carry noise of up to this standard deviation (same kernel), as real full-dose images do.
            The network learns to bring noise down to about that level and to leave a good image alone.
        clean_share: Share of samples without added noise.
        diversity: Share of samples whose content is not the head CT.
        bank_every: Noise is made from every n-th slice of the head.
    """

    def __init__(
        self,
        length: int = 4000,
        crop: int = 64,
        seed: int = 0,
        split: str = "train",
        cache: Path = Path("runs/cache"),
        noise_hu: tuple[float, float] = (8.0, 70.0),
        own_noise_hu: float = 12.0,
        clean_share: float = 0.2,
        diversity: float = 0.45,
        bank_every: int = 2,
    ) -> None:
        super().__init__(length, crop, seed)
        self.noise_hu, self.own_noise_hu = noise_hu, own_noise_hu
        self.clean_share, self.diversity = clean_share, diversity
        self.head = head_ct_slices(split)
        self.bank = ct_noise_bank(cache, split, bank_every)
        self.mr: Content | None = mr_slices("train") if diversity else None
        self.photos: Content | None = photographs() if diversity else None

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        clean, name = self._content(generator)
        if _chance(0.3, generator):
            clean = add_lesions(clean, generator)
        kernel = int(torch.randint(len(self.bank), (), generator=generator))
        if self.own_noise_hu and _chance(0.7, generator):
            own = self.own_noise_hu * torch.rand((), generator=generator).item()
            clean = clean + own * self._noise(kernel, generator)
        if _chance(self.clean_share, generator):
            return Sample(clean, clean, 1.0, name)
        low, high = np.log(self.noise_hu)
        sd = float(np.exp(low + (high - low) * torch.rand((), generator=generator).item()))
        return Sample(clean + sd * self._noise(kernel, generator), clean, 1.0, name)

    def _content(self, generator: torch.Generator) -> tuple[Tensor, str]:
        if self.mr is None or self.photos is None or not _chance(self.diversity, generator):
            image = self.head.sample(self.crop, generator, zoom=(0.75, 2.2), air=-1000.0, body=-500.0)
            return random_soft_tissue(image, generator), "head"
        kind = torch.rand((), generator=generator).item()
        if kind < 0.5:
            return to_hounsfield(self.mr.sample(self.crop, generator, zoom=(0.8, 2.2)), generator), "mr"
        if kind < 0.75:
            return to_hounsfield(self.photos.sample(self.crop, generator, zoom=(0.4, 1.5)), generator), "photo"
        return sample_phantom(self.crop, generator), "phantom"

    def _noise(self, kernel: int, generator: torch.Generator) -> Tensor:
        """A crop of unit-variance FBP noise of one kernel: two realisations mixed, flipped and turned."""
        mixed = torch.rand((), generator=generator).item() * np.pi / 2
        first, second = (self.bank.crop(self.bank.partner(kernel, generator), self.crop, generator) for _ in range(2))
        return _flip(np.cos(mixed) * first + np.sin(mixed) * second, generator)


class NoisyMR(CroppedDataset):
    """MR slices with simulated Rician noise.

    Args:
        length, crop, seed: See `CroppedDataset`.
        split: ``train``, ``val`` or ``test``.
        noise: Range of the added noise's standard deviation as a fraction of the volume's 99th percentile, uniform.
        own_noise: Nine targets in ten carry Rician noise of up to this fraction, as single real acquisitions do.
        clean_share: Share of samples without added noise.
        dark_air: Share of samples whose air is 0, as scanners store it that suppress the background. A network that
            never sees such images reads the noise off the air, and takes them for clean.
    """

    def __init__(
        self,
        length: int = 4000,
        crop: int = 64,
        seed: int = 0,
        split: str = "train",
        noise: tuple[float, float] = (0.02, 0.14),
        own_noise: float = 0.025,
        clean_share: float = 0.2,
        dark_air: float = 0.0,
    ) -> None:
        super().__init__(length, crop, seed)
        self.noise, self.own_noise, self.clean_share, self.dark_air = noise, own_noise, clean_share, dark_air
        self.content = mr_slices(split)

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        clean = self.content.sample(self.crop, generator, zoom=(0.6, 2.0)).clamp(min=0.0)
        clean = vary_mr(clean, generator)
        body = torch.ones_like(clean)
        if self.dark_air and _chance(self.dark_air, generator):
            # Tissue and what lies within 3 pixels of it.
            body = F.max_pool2d((clean > 0.05).float()[None], 7, stride=1, padding=3)[0]
        if self.own_noise and _chance(0.9, generator):
            own = self.own_noise * torch.rand((), generator=generator).item()
            clean = torch.from_numpy(rician_noise(clean.numpy(), own, generator))
        scale = 0.85 + 0.4 * torch.rand((), generator=generator).item()
        if _chance(self.clean_share, generator):
            return Sample(clean * body, clean * body, scale, "mr")
        low, high = self.noise
        sd = low + (high - low) * torch.rand((), generator=generator).item()
        noisy = torch.from_numpy(rician_noise(clean.numpy(), sd, generator))
        return Sample(noisy * body, clean * body, scale, "mr")


class PhantomPairs(CroppedDataset):
    """Synthetic phantoms with white noise: needs no download; for tests and the tiny configuration."""

    # Every sample is another phantom.
    independent = True

    def __init__(self, length: int = 16, crop: int = 32, seed: int = 0, sd: float = 40.0) -> None:
        super().__init__(length, crop, seed)
        self.sd = sd

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        clean = sample_phantom(self.crop, generator)
        return Sample(clean + self.sd * torch.randn(clean.shape, generator=generator), clean, 1.0, "phantom")


def _chance(probability: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < probability)


def _flip(image: Tensor, generator: torch.Generator) -> Tensor:
    turns = int(torch.randint(8, (), generator=generator))
    image = torch.rot90(image, turns % 4, (-2, -1))
    return image.flip(-1) if turns >= 4 else image
