"""Training data for restoration from a site's own pairs: the same volumes in low and in high quality, in two folders.

    pairs/LQ/p01_scan1.nii.gz    pairs/HQ/p01_scan1.nii.gz       NIfTI: equal names
    pairs/LQ/p02/*.dcm           pairs/HQ/p02/*.dcm              DICOM: equal names of the folder below LQ and HQ

Nothing is registered or resampled: the two volumes of a pair must lie on one grid, or the high quality on one whose
rows and columns are a whole multiple (super-resolution; the low quality is then zero-filled). Splits are by patient.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from medseq.data.restore import CroppedDataset, Sample
from medseq.data.restore_pet import crop_alike, robust_scale
from medseq.data.seeded import seeded
from medseq.errors import FormatError, InputError, ManifestError, ShapeError
from medseq.io.nifti import open_nifti
from medseq.io.volume import Modality, Units, VolumeReader
from medseq.ops.resolution import zero_fill

__all__ = ["Pair", "PairedVolumes", "find_pairs"]

Role = Literal["train", "val"]
_NIFTI = (".nii", ".nii.gz")
# Pickles run code when they are opened; these suffixes are what other toolkits give them.
_PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".npz")
_UNITS: dict[Modality, Units] = {"CT": "HU", "PT": "SUVbw"}


class Pair(NamedTuple):
    """Two volumes of one scan.

    Attributes:
        low: A file, or the folder of a DICOM series.
        high: Its partner.
        subject: Whose they are, as the name tells it.
    """

    low: Path
    high: Path
    subject: str


def find_pairs(folder: Path, subject: str = r"^[^_]+") -> list[Pair]:
    """The pairs below ``LQ`` and ``HQ`` of a folder, sorted by name.

    Args:
        folder: Holds the two.
        subject: Regular expression that finds the patient in a pair's name; its first group, if it has one.

    Raises:
        ManifestError: No such folders, a volume without a partner, a name that tells no patient.
        FormatError: Pickles, which are not opened.
    """
    low, high = (_entries(Path(folder) / side) for side in ("LQ", "HQ"))
    alone = sorted(low.keys() ^ high.keys())
    if alone:
        raise ManifestError(
            "volumes without a partner",
            where=Path(folder).name,
            found=f"{len(alone)} of {len(low.keys() | high.keys())}",
            wanted="equal names in LQ and HQ",
        )
    if not low:
        raise ManifestError("LQ and HQ hold no volumes", where=Path(folder).name, wanted="NIfTI, or folders of DICOM")
    try:
        rule = re.compile(subject)
    except re.error as error:
        raise ManifestError("the subject is no regular expression", found=str(error)) from None
    pairs = []
    for number, name in enumerate(sorted(low)):
        match = rule.search(name)
        if match is None or not match.group(1 if rule.groups else 0):
            raise ManifestError("a name tells no patient", found=f"pair {number + 1}", wanted=rule.pattern)
        pairs.append(Pair(low[name], high[name], match.group(1 if rule.groups else 0)))
    return pairs


class PairedVolumes(CroppedDataset):
    """Crops of the slices of paired volumes, flipped and turned alike.

    A patient is in training or in validation, never in both; which one, the seed of the split decides. CT stays in HU;
    everything else comes in parts of the 99th percentile of the low quality.

    Args:
        folder: See `find_pairs`.
        role: Part of the split.
        length, crop, seed: See `CroppedDataset`. In validation the crops are the middles of evenly spaced slices.
        subject: See `find_pairs`.
        val_share: Share of the patients in validation, at least one.
        split_seed: Which patients those are; the same for both roles.
        modality: What NIfTI volumes show; DICOM says it itself.
        cached: Pairs that are kept in memory.

    Raises:
        ManifestError: See `find_pairs`; or fewer than two patients.
        InputError: Parameters out of range.
        ShapeError: Volumes of a pair that do not fit each other.
        FormatError: A volume cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        role: Role = "train",
        length: int = 1000,
        crop: int = 64,
        seed: int = 0,
        subject: str = r"^[^_]+",
        val_share: float = 0.2,
        split_seed: int = 0,
        modality: Modality = "MR",
        cached: int = 8,
    ) -> None:
        super().__init__(length, crop, seed)
        if role not in ("train", "val") or not 0 < val_share < 1 or cached < 1:
            raise InputError(
                "the split cannot be made",
                found=(role, val_share, cached),
                wanted="train or val, a share between 0 and 1, at least one pair in memory",
            )
        self.role, self.modality, self.cached = role, modality, cached
        self.pairs = _part(find_pairs(Path(folder), subject), role, val_share, split_seed)
        self._loaded: OrderedDict[int, tuple[np.ndarray, np.ndarray, float]] = OrderedDict()

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; in validation the same in every epoch."""
        if self.role == "train":
            return super().__getitem__(index)
        if not 0 <= index < self.length:
            raise IndexError(index)
        low, high, scale = self._volumes(index % len(self.pairs))
        turns = max(1, self.length // len(self.pairs))
        place = (index // len(self.pairs) + 0.5) / turns % 1.0
        plane = int(place * len(low))
        rows, cols = ((side - self.crop) // 2 for side in low.shape[1:])
        inner = (plane, slice(rows, rows + self.crop), slice(cols, cols + self.crop))
        image, target = (torch.from_numpy(volume[inner])[None] for volume in (low, high))
        return Sample(image, target, scale, f"pair {index % len(self.pairs)}")

    def draw(self, generator: torch.Generator) -> Sample:
        """See `SeededDataset.draw`."""
        number = int(torch.randint(len(self.pairs), (), generator=generator))
        low, high, scale = self._volumes(number)
        plane = int(torch.randint(len(low), (), generator=generator))
        image, target = torch.from_numpy(low[plane]), torch.from_numpy(high[plane])
        body = target > 0.15 * scale if self.modality != "CT" else target > -500
        image, target = crop_alike([image, target], self.crop, body, generator)
        return Sample(image, target, scale, f"pair {number}")

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes keep pairs of their own."""
        return {**self.__dict__, "_loaded": OrderedDict()}

    def _volumes(self, number: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Both volumes of a pair on one grid, and the scale of the low quality; the least recently used are dropped."""
        if number not in self._loaded:
            pair = self.pairs[number]
            low, high = (self._read(path) for path in (pair.low, pair.high))
            low = _on_one_grid(low, high, f"pair {number + 1}")
            if min(low.shape[1:]) < self.crop:
                raise InputError("the crop is larger than the slices", where=f"pair {number + 1}", found=self.crop)
            if self.modality != "CT":
                # Arbitrary units become parts of the 99th percentile, so that losses and PSNR mean the same everywhere.
                scale = np.float32(robust_scale(torch.from_numpy(low[:: max(1, len(low) // 16)])))
                low, high = low / scale, high / scale
            self._loaded[number] = low, high, 1.0
        self._loaded.move_to_end(number)
        while len(self._loaded) > self.cached:
            self._loaded.popitem(last=False)
        return self._loaded[number]

    def _read(self, path: Path) -> np.ndarray:
        reader = self._open(path)
        if reader.header.modality != self.modality:
            raise InputError(
                "the modality does not fit", found=reader.header.modality, wanted=self.modality, remedy="set modality"
            )
        planes = reader.read(0, reader.header.planes)
        if not np.isfinite(planes).all():
            raise FormatError("pixels are NaN or infinite", found=int((~np.isfinite(planes)).sum()))
        return np.ascontiguousarray(planes, dtype=np.float32)

    def _open(self, path: Path) -> VolumeReader:
        if path.is_file():
            return open_nifti(path, modality=self.modality, units=_UNITS.get(self.modality, "1"))
        from medseq.io.dicom import group_dicom, open_dicom

        stacks, _, broken = group_dicom(sorted(file for file in path.rglob("*") if file.is_file()))
        if broken:
            raise broken[0].error
        if len(stacks) != 1:
            raise ManifestError("a folder of a pair holds one series", found=f"{len(stacks)} series", wanted="1")
        return open_dicom(stacks[0])


def _entries(side: Path) -> dict[str, Path]:
    """NIfTI files by name without suffix, and folders by name."""
    if not side.is_dir():
        raise ManifestError("no such folder", found=side.name, wanted="folders LQ and HQ", remedy="see docs/restore.md")
    found: dict[str, Path] = {}
    for path in sorted(side.iterdir()):
        lower = path.name.lower()
        if path.is_symlink() or path.name.startswith("."):
            continue
        if lower.endswith(_PICKLES):
            raise FormatError(
                "pickled arrays are not opened: they can run code",
                where=side.name,
                found=path.suffix,
                wanted="NIfTI or DICOM",
                remedy="write the arrays as NIfTI with the program that made them",
            )
        if path.is_dir():
            found[path.name] = path
        elif lower.endswith(_NIFTI):
            found[re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)] = path
    return found


def _part(pairs: Sequence[Pair], role: Role, val_share: float, split_seed: int) -> list[Pair]:
    subjects = sorted({pair.subject for pair in pairs})
    if len(subjects) < 2:
        raise ManifestError(
            "a split by patient needs two patients",
            found=f"{len(subjects)} in {len(pairs)} pairs",
            remedy="name files PATIENT_SCAN, or set subject to what finds the patient in the name",
        )
    order = torch.randperm(len(subjects), generator=seeded([split_seed, len(subjects)])).tolist()
    count = min(len(subjects) - 1, max(1, round(val_share * len(subjects))))
    held_out = {subjects[i] for i in order[:count]}
    return [pair for pair in pairs if (pair.subject in held_out) == (role == "val")]


def _on_one_grid(low: np.ndarray, high: np.ndarray, where: str) -> np.ndarray:
    """The low quality on the grid of the high quality."""
    if low.shape == high.shape:
        return low
    factors = [large / small for large, small in zip(high.shape[1:], low.shape[1:], strict=True)]
    if len(low) != len(high) or factors[0] != factors[1] or factors[0] not in (2.0, 3.0, 4.0):
        raise ShapeError(
            "the volumes of a pair do not fit",
            where=where,
            found=f"{low.shape} and {high.shape}",
            wanted="one size, or 2, 3 or 4 times the rows and columns",
        )
    return zero_fill(torch.from_numpy(low), (high.shape[1], high.shape[2])).numpy()
