"""Cached simulated PET slices: reconstructions take a twentieth of a second each, training draws crops of these.

Each slice has its own object, pixel size, scanner, counts and reconstruction. It is scanned several times: at the full
counts, once more at the full counts, and at fractions of them, every time with counts of its own.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseq.data.coil_fields import uniform
from medseq.data.pet_uptake import Head, Uptake, brain_uptake, drawn_uptake
from medseq.data.seeded import seeded
from medseq.data.simulate_pet import PETScanner, acquire_pet, reconstruct_pet
from medseq.errors import InputError

__all__ = ["PETBank", "pet_bank", "simulate_slice"]

# Change with anything that changes the slices: old caches are then left alone.
_RECIPE = 1
_LOW = 3
# Seeds apart, so that no split shares an object with another.
_SPLITS = {"train": 11, "val": 12}


@dataclass(frozen=True)
class PETBank:
    """Simulated slices ``(slice, kind, row, col)`` in SUV, kinds: T1 (no unit), full, full again, three low counts."""

    slices: Float[np.ndarray, "slice kind row col"]

    def __len__(self) -> int:
        return len(self.slices)

    def t1(self, index: int) -> Float[Tensor, "row col"]:
        """T1-weighted MR of the same slice; zeros where the body is drawn."""
        return self._plane(index, 0)

    def full(self, index: int, again: bool = False) -> Float[Tensor, "row col"]:
        """The scan at full counts, or its repetition."""
        return self._plane(index, 2 if again else 1)

    def low(self, index: int, which: int) -> Float[Tensor, "row col"]:
        """One of the three scans at fewer counts."""
        return self._plane(index, 3 + which % _LOW)

    def _plane(self, index: int, kind: int) -> Tensor:
        return torch.from_numpy(self.slices[index, kind].astype(np.float32))


def pet_bank(cache: Path, split: str, count: int, *, drawn_share: float = 0.4, side: int = 128) -> PETBank:
    """The simulated slices of a split: made once, seconds for ten of them.

    Args:
        cache: Folder to keep them in; made if missing.
        split: ``train`` or ``val``. Both are of the MNI152 template and of drawn bodies; they differ in position of the
            slices, in everything drawn, and in nothing else: scores are told on other heads.
        count: Slices.
        drawn_share: Share of drawn bodies.
        side: Pixels.

    Raises:
        InputError: Another split.
    """
    if split not in _SPLITS:
        raise InputError("unknown split", found=split, wanted=", ".join(_SPLITS))
    recipe = {"recipe": _RECIPE, "split": split, "count": count, "drawn": drawn_share, "side": side}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(cache) / f"pet_{split}_{key}.npy"
    if not path.exists():
        slices = np.stack([_entry(split, index, drawn_share, side) for index in range(count)])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(temporary, slices)
        os.replace(temporary, path)
    return PETBank(np.load(path, mmap_mode="r"))


def simulate_slice(
    uptake: Uptake, pixel_mm: float, scanner: PETScanner, fractions: list[float], rng: np.random.Generator
) -> list[Float[np.ndarray, "row col"]]:
    """Reconstructions in SUV of independent scans of one slice, at fractions of the full counts."""
    scans = (
        acquire_pet(uptake.suv.numpy(), uptake.body.numpy(), pixel_mm, scanner, rng, fraction=fraction)
        for fraction in fractions
    )
    return [reconstruct_pet(scan, scanner) for scan in scans]


def random_scanner(generator: torch.Generator) -> PETScanner:
    """A scanner and a protocol: blur, counts, background, kind and filter of the reconstruction."""
    return PETScanner(
        fwhm_mm=uniform((4.0, 7.0), generator),
        counts=float(np.exp(uniform((np.log(5e5), np.log(5e6)), generator))),
        background=uniform((0.15, 0.5), generator),
        method="fbp" if uniform((0, 1), generator) < 0.2 else "osem",
        iterations=2 + int(torch.randint(3, (), generator=generator)),
        filter_mm=uniform((2.0, 6.0), generator),
    )


def _entry(split: str, index: int, drawn_share: float, side: int, head: Head = "mni152") -> np.ndarray:
    generator = seeded([_SPLITS[split], index])
    pixel_mm = uniform((2.0, 3.2), generator)
    if uniform((0, 1), generator) < drawn_share:
        uptake = drawn_uptake(side, pixel_mm, generator)
    else:
        # Slabs of a template that is symmetric and smooth: validation takes every fifth.
        slab = int(torch.randint(20, (), generator=generator))
        slab = 5 * (slab // 5) + (4 if split == "val" else slab % 4)
        uptake = brain_uptake(head, side, pixel_mm, generator, at=0.05 * (slab + uniform((0, 1), generator)))
    scanner = random_scanner(generator)
    low = [float(np.exp(uniform((np.log(1 / 20), np.log(1 / 2)), generator))) for _ in range(_LOW)]
    seed = int(torch.randint(2**31, (), generator=generator))
    scans = simulate_slice(uptake, pixel_mm, scanner, [1.0, 1.0, *low], np.random.default_rng(seed))
    return np.stack([uptake.t1.numpy(), *scans]).astype(np.float16)
