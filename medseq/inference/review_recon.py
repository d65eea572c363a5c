"""How a reconstruction came about, slice by slice: what was measured, by which coils, and what was made of it.

Everything is computed from the raw data of the item with numpy; nothing here runs a network. Coil maps that the file
does not hold are estimated from the middle of k-space and named so. No torch.

Reference:
    Pruessmann et al., SENSE, MRM 42, 1999 (relative maps); Wang et al., IEEE TIP 13, 2004, Eq. 13 (SSIM).
"""

from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import InputError, MedseqError
from medseq.inference.review_layer import Layer
from medseq.inference.review_picture import diverging, grey, png_bytes
from medseq.inference.review_volume import SeriesView
from medseq.inference.review_zero_filled import ZeroFilledReader, coil_images
from medseq.io.kspace_write import centre_crop

__all__ = ["PICTURES", "ReconView", "find_reference"]

PICTURES = ("mask", "kspace", "coils", "maps", "zero-filled", "result", "reference", "ssim", "error")
_COLUMNS = 8
_REFERENCES = ("_reference.npy", ".npy", "_reference.nii.gz", ".nii.gz")
# The part of k-space that maps are estimated from, at most.
_CENTRE = 24


class ReconView:
    """The raw data of an item beside its result.

    Args:
        raw: The raw data.
        series: Zero-filled image and result.
        reference: A fully sampled image of the same slices, ``(slice, row, col)``, or None.
    """

    def __init__(self, raw: ZeroFilledReader, series: SeriesView, reference: np.ndarray | None = None) -> None:
        self.raw, self.series, self.reference = raw, series, reference

    def info(self, index: int = 0) -> dict[str, Any]:
        """Facts of a slice, JSON-ready."""
        part = self.raw.part(self._checked(index))
        measured = float(part.mask.mean())
        found = {
            "slices": self.raw.kspace.n,
            "coils": part.kspace.shape[0],
            "matrix": list(part.kspace.shape[1:]),
            "recon_shape": list(self.raw.kspace.recon_shape),
            "measured": measured,
            "acceleration": 1 / measured if measured else None,
            "maps_from": "the file" if part.sens_maps is not None else "an estimate from the middle of k-space",
            "pictures": self.pictures,
            "notice": "Research use only. Not for diagnosis.",
        }
        if self.reference is not None:
            scores = {name: self._ssim(index, name)[0] for name in self._images if name != "reference"}
            found["ssim"] = {name: round(value, 4) for name, value in scores.items()}
        return found

    @property
    def pictures(self) -> list[str]:
        """What `picture` makes."""
        without = set() if self.reference is not None else {"reference", "ssim", "error"}
        if "after" not in self.series.layers:
            without |= {"result", "ssim", "error"}
        return [name for name in PICTURES if name not in without]

    def picture(self, name: str, index: int = 0, of: str = "result") -> bytes:
        """A picture of a slice as PNG.

        Args:
            name: ``mask``, ``kspace`` (logarithm of the magnitude), ``coils``, ``maps``, ``zero-filled``, ``result``,
                ``reference``, ``ssim`` (map) or ``error`` (minus the reference).
            index: Slice from 0.
            of: For ``ssim`` and ``error``: ``result`` or ``zero-filled``.

        Raises:
            InputError: No such picture or slice.
        """
        if name not in self.pictures:
            raise InputError("no such picture of this item", found=name[:20], wanted=", ".join(self.pictures))
        number = self._checked(index)
        if name in ("mask", "kspace", "coils", "maps"):
            return png_bytes(self._raw_picture(name, number))
        if name == "ssim":
            return png_bytes(grey(self._ssim(number, of)[1], 0.0, 1.0))
        if name == "error":
            error = self._image(of, number) - self._image("reference", number)
            half = 0.1 * max(self._window(number)[1], 1e-30)
            return png_bytes(diverging(error, -half, half))
        return png_bytes(grey(self._image(name, number), *self._window(number)))

    def _raw_picture(self, name: str, number: int) -> np.ndarray:
        part = self.raw.part(number)
        if name == "mask":
            rows, cols = part.kspace.shape[1:]
            return np.broadcast_to(part.mask[0], (rows, cols)).astype(np.uint8) * 255
        if name == "kspace":
            magnitude = np.sqrt((np.abs(np.where(part.mask, part.kspace, 0)) ** 2).sum(0))
            return _decibels(magnitude)
        coils = coil_images(part, self.raw.kspace.fft.norm)
        if name == "maps":
            maps = part.sens_maps if part.sens_maps is not None else self._estimate(part.kspace, part.mask, coils)
            return _sheet([grey(np.abs(plane), 0.0, 1.0) for plane in self._cropped(maps)])
        planes = np.abs(self._cropped(coils))
        high = float(np.percentile(planes, 99.5)) or 1.0
        return _sheet([grey(plane, 0.0, high) for plane in planes])

    def _estimate(self, kspace: np.ndarray, mask: np.ndarray, coils: np.ndarray) -> np.ndarray:
        """Relative maps of a smooth image (the middle of k-space under a Hann window): over its root sum of squares."""
        rows, cols = kspace.shape[1:]
        window = _hann(rows)[:, None] * _hann(cols)[None]
        smooth = np.fft.fftshift(
            np.fft.ifft2(np.fft.ifftshift(np.where(mask, kspace, 0) * window, axes=(-2, -1)), norm="ortho"),
            axes=(-2, -1),
        )
        total = np.sqrt((np.abs(smooth) ** 2).sum(0))
        body = total > 0.05 * total.max() if total.max() else total > 0
        return np.where(body, smooth / np.where(total > 0, total, 1), 0)

    def _cropped(self, planes: np.ndarray) -> np.ndarray:
        """Of coils, the part that is an image, lying as the result does."""
        return np.stack([self._turned(plane) for plane in centre_crop(planes, self.raw.kspace.recon_shape)])

    def _turned(self, plane: np.ndarray) -> np.ndarray:
        return self.series.master.layout("stack").turned(plane)

    @property
    def _images(self) -> list[str]:
        return [name for name in ("zero-filled", "result", "reference") if name in self.pictures]

    def _image(self, name: str, number: int) -> np.ndarray:
        if name == "reference" and self.reference is not None:
            return self._turned(np.asarray(self.reference[number], np.float32))
        layer: Layer | None = self.series.layers.get({"zero-filled": "before", "result": "after"}.get(name, ""))
        if layer is None:
            raise InputError("no such image of this item", found=name[:20], wanted=", ".join(self._images))
        return layer.values("stack", number)

    def _window(self, number: int) -> tuple[float, float]:
        """One window for all images of a slice: of the reference, else of the result."""
        names = [name for name in ("reference", "result", "zero-filled") if name in self._images]
        values = self._image(names[0], number)
        high = float(np.percentile(values[np.isfinite(values)], 99.5))
        return 0.0, high if high > 0 else 1.0

    def _ssim(self, index: int, of: str) -> tuple[float, np.ndarray]:
        """Mean and map of the structural similarity with the reference; the range is the reference's maximum."""
        from skimage.metrics import structural_similarity

        truth, image = self._image("reference", index), self._image(of, index)
        if truth.shape != image.shape or min(truth.shape) < 7:
            raise InputError("reference and image do not fit", found=image.shape, wanted=truth.shape)
        span = float(truth.max()) or 1.0
        # The Gaussian window of the paper, as in every score that medseq prints.
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": span}
        mean, full = structural_similarity(truth.astype(np.float64), image.astype(np.float64), full=True, **how)
        return float(mean), full.astype(np.float32)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.raw.kspace.n:
            raise InputError("no such slice", found=index, wanted=f"0 to {self.raw.kspace.n - 1}")
        return index


def find_reference(folders: list[Path], relpath: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A fully sampled image of the same slices: ``NAME_reference`` or ``NAME``, .npy or NIfTI, or ``image.npy``.

    Args:
        folders: Where to look, the first find counts.
        relpath: Path of the raw data below its input folder.
        shape: ``(slice, row, col)`` that it must have; another is no reference.
    """
    from medseq.io.nifti import open_nifti

    stem = Path(relpath).name.split(".")[0]
    for folder in folders:
        for name in (*(f"{stem}{end}" for end in _REFERENCES), "image.npy"):
            path = folder / name
            if not path.is_file():
                continue
            try:
                if name.endswith(".npy"):
                    array = np.load(path, allow_pickle=False)
                else:
                    reader = open_nifti(path)
                    array = reader.read(0, reader.header.planes)
            except (MedseqError, OSError, ValueError):
                continue
            array = np.abs(array) if array.ndim == 3 else np.abs(array)[None]
            if array.shape == shape:
                return array.astype(np.float32)
    return None


def _decibels(magnitude: np.ndarray, span: float = 80.0) -> np.ndarray:
    """Magnitudes on a logarithmic scale of `span` dB below the largest."""
    peak = float(magnitude.max())
    if peak == 0:
        return np.zeros(magnitude.shape, np.uint8)
    with np.errstate(divide="ignore"):
        level = 20 * np.log10(magnitude / peak)
    return grey(level, -span, 0.0)


def _hann(n: int) -> np.ndarray:
    """A Hann window over the middle `_CENTRE` samples of `n`, zero elsewhere."""
    width = min(_CENTRE, n)
    out = np.zeros(n)
    out[n // 2 - width // 2 : n // 2 - width // 2 + width] = np.hanning(width + 2)[1:-1]
    return out


def _sheet(planes: list[np.ndarray]) -> np.ndarray:
    """Pictures side by side, `_COLUMNS` in a row, with a gap of two pixels."""
    columns = min(_COLUMNS, len(planes))
    lines = -(-len(planes) // columns)
    rows, cols = planes[0].shape
    out = np.zeros((lines * (rows + 2) - 2, columns * (cols + 2) - 2), np.uint8)
    for place, plane in enumerate(planes):
        top, left = (place // columns) * (rows + 2), (place % columns) * (cols + 2)
        out[top : top + rows, left : left + cols] = plane
    return out
