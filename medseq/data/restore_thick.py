"""Training data for through-plane super-resolution: thin slices of a volume, and what thick ones leave of them.

Samples are planes across the slices: rows are slices, columns run along a row or a column of the images. Only the rows
are coarse. The image is brought to the thin grid by linear interpolation, as viewers do.
"""

import numpy as np
import torch
from torch.nn import functional as F

from medseq.data.coil_fields import uniform
from medseq.data.content import vary_mr
from medseq.data.degrade import rician_noise
from medseq.data.degrade_mr import Profile, thick_slices
from medseq.data.example import colin27, mni152
from medseq.data.restore import CroppedDataset, Sample
from medseq.errors import InputError

__all__ = ["ThickSliceMR", "interpolated_slices"]

# Slabs along the columns' axis, 6 planes apart: validation planes have no neighbour in training.
_SLABS = {"train": (0, 28), "val": (34, 40)}


class ThickSliceMR(CroppedDataset):
    """Planes across thick slices of two T1 head volumes, and the same of the thin ones.

    Args:
        length, crop, seed: See `CroppedDataset`.
        factor: Distance of the thick slices, in thin ones.
        thickness: Range of their thickness, in parts of the distance: below 1 there are gaps.
        profile: ``box`` or ``gaussian``, see `medseq.data.degrade_mr.slice_profile`.
        split: ``train`` or ``val`` slabs.
        own_noise: Thin slices carry Rician noise of up to this fraction of the 99th percentile.

    Raises:
        InputError: Parameters out of range.
    """

    def __init__(
        self,
        length: int = 4000,
        crop: int = 64,
        seed: int = 0,
        factor: int = 4,
        thickness: tuple[float, float] = (0.7, 1.0),
        profile: Profile = "gaussian",
        split: str = "train",
        own_noise: float = 0.02,
    ) -> None:
        super().__init__(length, crop, seed)
        if factor < 2 or not 0 < thickness[0] <= thickness[1] or split not in _SLABS:
            raise InputError(
                "thick slices cannot be made so",
                found=(factor, tuple(thickness), split),
                wanted="factor >= 2, thickness increasing, split train or val",
            )
        self.factor, self.thickness, self.profile, self.own_noise = factor, thickness, profile, own_noise
        self.split = split
        self.volumes = [_scaled(volume) for volume in (colin27(), mni152("t1"))]

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        volume = self.volumes[int(torch.randint(len(self.volumes), (), generator=generator))]
        volume = volume.swapaxes(1, 2) if uniform((0, 1), generator) < 0.5 else volume
        low, high = _SLABS[self.split]
        planes = [at for at in range(volume.shape[1]) if low <= at % 40 < high]
        plane = volume[:, planes[int(torch.randint(len(planes), (), generator=generator))]]
        thin = vary_mr(torch.from_numpy(np.ascontiguousarray(plane))[None], generator)[0].numpy()
        thin = rician_noise(thin, self.own_noise * uniform((0, 1), generator), generator)
        rows = len(thin) - len(thin) % self.factor
        image = interpolated_slices(
            thin[:rows], self.factor, self.factor * uniform(self.thickness, generator), self.profile
        )
        pair = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (image, thin[:rows])]
        top, left = (int(torch.randint(side - self.crop + 1, (), generator=generator)) for side in pair[0].shape)
        inner = (None, slice(top, top + self.crop), slice(left, left + self.crop))
        return Sample(pair[0][inner], pair[1][inner], 0.85 + 0.4 * uniform((0, 1), generator), "mr")


def interpolated_slices(thin: np.ndarray, factor: int, thickness: float, profile: Profile) -> np.ndarray:
    """Thick slices of a plane ``(slice, col)``, brought back to the thin grid by linear interpolation.

    Args:
        thin: The plane; its slices are a multiple of the factor.
        factor: Distance of the thick slices.
        thickness: Their thickness, in thin ones; at least 1.
        profile: See `medseq.data.degrade_mr.slice_profile`.
    """
    thick = thick_slices(thin[:, None].astype(np.float32), factor, thickness=max(1.0, thickness), profile=profile)
    image = torch.from_numpy(thick[None, None, :, 0])
    return F.interpolate(image, size=thin.shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def _scaled(volume) -> np.ndarray:
    array = np.asarray(volume.array, dtype=np.float32)
    return array / np.percentile(array[array > 0], 99)
