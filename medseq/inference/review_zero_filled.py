"""Raw data as images before any reconstruction: zeros where nothing was measured. numpy only, no torch."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseq.inference.discover_kspace import open_kspace_item
from medseq.io.kspace import KSpaceReader, KSpaceSlice
from medseq.io.kspace_fft import centred, ifft_axis
from medseq.io.kspace_write import centre_crop, recon_header
from medseq.io.volume import VolumeHeader

__all__ = ["ZeroFilledReader", "coil_images", "combined"]


class ZeroFilledReader:
    """A `medseq.io.volume.VolumeReader` over raw data.

    Args:
        root: The input folder.
        item_id: The item.
        relpaths: Its files.
        params: Of the run: its Fourier convention is used.
    """

    def __init__(self, root: Path, item_id: str, relpaths: Sequence[str], params: Mapping[str, Any]) -> None:
        reader = open_kspace_item(root, item_id, relpaths, fft=params.get("fft"))
        self.kspace: KSpaceReader = centred(reader)
        self._header = recon_header(self.kspace)
        self._lock = threading.Lock()

    @property
    def header(self) -> VolumeHeader:
        return self._header

    def part(self, number: int) -> KSpaceSlice:
        """One slice of raw data, in the convention ``centre``."""
        with self._lock:
            return self.kspace.read(number)

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `medseq.io.volume.VolumeReader.read`."""
        shape = self.kspace.recon_shape
        return np.stack([centre_crop(combined(self.part(k), self.kspace.fft.norm), shape) for k in range(lo, hi)])

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """Every pixel is valid."""
        return None


def coil_images(part: KSpaceSlice, norm: str) -> np.ndarray:
    """Zero-filled images of the coils, ``(coil, row, col)`` complex64, in the units of the result.

    Args:
        part: A slice in the convention ``centre``.
        norm: Norm of the file's Fourier transform, ``ortho`` or ``backward``.
    """
    kspace = np.where(part.mask, part.kspace, 0)
    image = ifft_axis(ifft_axis(kspace, -1), -2)
    # Results are written as unitary images of unitary k-space: the same numbers whatever the file's norm.
    factor = float(kspace.shape[-2] * kspace.shape[-1]) ** -0.5 if norm == "backward" else 1.0
    return (image * factor).astype(np.complex64)


def combined(part: KSpaceSlice, norm: str) -> np.ndarray:
    """Magnitude of all coils ``(row, col)`` float32: by their maps if the file has them, else root sum of squares.

    Reference:
        Roemer et al., The NMR phased array, MRM 16, 1990, Eqs. 27 and 31 (uniform noise).
    """
    coils = coil_images(part, norm)
    if part.sens_maps is not None:
        weight = np.sqrt((np.abs(part.sens_maps) ** 2).sum(0))
        image = np.abs((part.sens_maps.conj() * coils).sum(0))
        return np.divide(image, weight, out=np.zeros_like(image), where=weight > 0).astype(np.float32)
    return np.sqrt((np.abs(coils) ** 2).sum(0)).astype(np.float32)
