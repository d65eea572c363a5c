"""Training data for PET, all of it simulated: few counts to full counts, and MR to a PET-like image."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseq.data.coil_fields import uniform
from medseq.data.pet_bank import pet_bank
from medseq.data.restore import CroppedDataset, Sample
from medseq.errors import InputError

__all__ = ["LowCountPET", "PETFromMR"]


class LowCountPET(CroppedDataset):
    """Slices reconstructed from a half to a twentieth of the counts, and from all of them; SUV, simulated.

    The target is the scan at full counts, noise of its own included, as a pair of clinical scans has it; its counts
    are independent of the image's.

    Args:
        length, crop, seed: See `CroppedDataset`; the crop is at most 128.
        split: ``train`` or ``val``.
        cache: Folder for the simulated slices (made once, some minutes).
        slices: How many of them.
        clean_share: Share of samples whose image is the scan at full counts and is to stay as it is.
    """

    def __init__(
        self,
        length: int = 4000,
        crop: int = 64,
        seed: int = 0,
        split: str = "train",
        cache: Path = Path("runs/cache"),
        slices: int = 600,
        clean_share: float = 0.15,
    ) -> None:
        super().__init__(length, crop, seed)
        self.bank, self.clean_share = pet_bank(cache, split, slices), clean_share

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        index = int(torch.randint(len(self.bank), (), generator=generator))
        target = self.bank.full(index)
        image = target
        if uniform((0, 1), generator) >= self.clean_share:
            image = self.bank.low(index, int(torch.randint(3, (), generator=generator)))
        scale = robust_scale(image) * uniform((0.85, 1.25), generator)
        image, target = crop_alike([image, target], self.crop, image > 0.1 * scale, generator)
        return Sample(image, target, scale, "pet")


class PETFromMR(CroppedDataset):
    """T1-weighted slices of a head and the simulated FDG-like scan of the same slice: what synthesis is tried out on.

    Nothing here says that a real PET can be told from an MR: uptake is drawn from the tissue maps, so that a network
    can at most learn the map from tissue to mean uptake. Lesions without an MR counterpart are lost, as they would be.

    Args:
        length, crop, seed, split, cache, slices: See `LowCountPET`.
    """

    def __init__(
        self,
        length: int = 4000,
        crop: int = 64,
        seed: int = 0,
        split: str = "train",
        cache: Path = Path("runs/cache"),
        slices: int = 300,
    ) -> None:
        super().__init__(length, crop, seed)
        self.bank = pet_bank(cache, split, slices, drawn_share=0.0)

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`; the target is in parts of its own 99th percentile, as the image is."""
        index = int(torch.randint(len(self.bank), (), generator=generator))
        image, target = self.bank.t1(index), self.bank.full(index)
        target = target / robust_scale(target)
        image, target = crop_alike([image, target], self.crop, image > 0.1, generator)
        return Sample(image, target, 1.0, "pet from mr")


def robust_scale(image: Tensor, percentile: float = 99.0) -> float:
    """What `RobustScale` fits to one slice; 1 for an empty one."""
    values = image.abs()[image != 0].numpy()
    scale = float(np.percentile(values, percentile)) if values.size else 1.0
    return scale if scale > 0 else 1.0


def crop_alike(images: list[Tensor], side: int, body: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The same square of several images ``(row, col)``, flipped and turned alike: ``(1, side, side)`` each.

    Of up to four draws the first is taken that shows tissue on a fifth of its pixels.

    Raises:
        InputError: The images are smaller.
    """
    rows, cols = images[0].shape
    if side > min(rows, cols):
        raise InputError("the crop is larger than the slices", found=side, wanted=f"at most {min(rows, cols)}")
    for _ in range(4):
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in (rows, cols))
        if body[top : top + side, left : left + side].float().mean() > 0.2:
            break
    turns = int(torch.randint(8, (), generator=generator))
    out = []
    for image in images:
        part = torch.rot90(image[None, top : top + side, left : left + side], turns % 4, (-2, -1))
        out.append((part.flip(-1) if turns >= 4 else part).contiguous())
    return out
