"""Cached realisations of FBP noise: unit variance inside the object, several kernels, made once and kept on disk.

A radon transform and its back-projection take seconds; training draws crops of these instead. Amplitude is set when
a crop is used. The maps keep what makes CT noise different from white noise: its spectrum, and its growth and
streaks where rays cross much bone.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseq.data.content import head_ct_slices
from medseq.data.degrade import CTScanner, Kernel, add_projection_noise, line_integrals

__all__ = ["NoiseBank", "ct_noise_bank"]

KERNELS: tuple[Kernel, ...] = ("ramp", "shepp-logan", "cosine", "hann")
SPACING_MM = 0.957


@dataclass(frozen=True)
class NoiseBank:
    """Noise maps ``(object * kernel, row, col)``, kernel fastest."""

    maps: np.ndarray

    def __len__(self) -> int:
        return len(self.maps)

    def partner(self, index: int, generator: torch.Generator) -> int:
        """Another map of the same kernel."""
        objects = len(self.maps) // len(KERNELS)
        return int(torch.randint(objects, (), generator=generator)) * len(KERNELS) + index % len(KERNELS)

    def crop(self, index: int, side: int, generator: torch.Generator) -> Float[Tensor, "1 side side"]:
        """A random crop of one map; maps smaller than `side` are tiled by reflection."""
        image = self.maps[index]
        if side > min(image.shape):
            image = np.pad(image, [(0, max(0, side - size)) for size in image.shape], mode="reflect")
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape)
        return torch.from_numpy(image[top : top + side, left : left + side].astype(np.float32))[None]


def ct_noise_bank(cache: Path, split: str, every: int = 2) -> NoiseBank:
    """Noise maps for one split of the head CT and for four water ellipses of body size.

    Args:
        cache: Folder to keep the bank in; made if missing.
        split: Whose anatomy the noise is shaped by: test anatomy never shapes training noise.
        every: Use every n-th slice of the split.
    """
    head = head_ct_slices(split).slices[::every]
    objects = [(image.numpy(), SPACING_MM) for image in head]
    objects += [(_ellipse(rx, ry), 1.5) for rx, ry in ((0.9, 0.62), (0.8, 0.75), (0.95, 0.5), (0.6, 0.6))]
    scanner = CTScanner(electronic_sd=0.0, angles=360)
    recipe = {"scanner": asdict(scanner), "kernels": KERNELS, "split": split, "every": every, "objects": len(objects)}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(cache) / f"ct_noise_{split}_{key}.npy"
    if not path.exists():
        maps = np.stack([noise for i, (image, mm) in enumerate(objects) for noise in _maps(image, mm, scanner, i)])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(temporary, maps)
        os.replace(temporary, path)
    return NoiseBank(np.load(path, mmap_mode="r"))


def _maps(image: np.ndarray, spacing_mm: float, scanner: CTScanner, seed: int) -> list[np.ndarray]:
    integrals = line_integrals(image, spacing_mm, scanner)
    inside = image > -500
    maps = []
    for kernel in KERNELS:
        generator = torch.Generator().manual_seed(1000 * seed + KERNELS.index(kernel))
        settings = CTScanner(**{**asdict(scanner), "kernel": kernel})
        noise = add_projection_noise(image, integrals, spacing_mm, 0.5, generator, settings) - image
        maps.append((noise / noise[inside].std()).astype(np.float16))
    return maps


def _ellipse(rx: float, ry: float, side: int = 256) -> np.ndarray:
    axis = np.linspace(-1, 1, side)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.where((x / rx) ** 2 + (y / ry) ** 2 < 1, 0.0, -1000.0).astype(np.float32)
