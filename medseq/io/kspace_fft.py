"""Which Fourier convention k-space follows, seen from where its energy lies; and how to change it, exactly.

Three are met in files. With ``n // 2`` the middle of an axis:

- ``centre``: zero frequency and image origin in the middle (fastMRI, ISMRMRD, BART);
- ``corner``: both at index 0, so the image is the plain inverse FFT;
- Calgary-Campinas mixes them: zero frequency in the middle, image by the plain inverse FFT. The centred FFT shows its
  image wrapped round by half a field of view; a factor of -1 on every other sample repairs that.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from medseq.errors import InputError
from medseq.io.kspace import FFTConvention, KSpaceReader, KSpaceSlice
from medseq.io.source import SourceWarning

__all__ = [
    "Centred",
    "centred",
    "checked_origin",
    "dc_origin",
    "fft_axis",
    "ifft_axis",
    "image_wrapped",
    "modulated",
    "origin_name",
    "rss_image",
    "to_centre",
]

Origin = Literal["centre", "corner"]
_AXES = (-2, -1)
# Half the samples around the zero frequency hold most of the energy of any anatomy; the other end holds noise.
_CLEAR = 4.0


def origin_name(name: str) -> Origin:
    """``centre`` or ``corner``; ``centred`` and ``center`` are taken for the first."""
    known: dict[str, Origin] = {"centre": "centre", "center": "centre", "centred": "centre", "centered": "centre"}
    known["corner"] = "corner"
    if name not in known:
        raise InputError("unknown Fourier convention", found=name, wanted="centre or corner")
    return known[name]


def fft_axis(image: np.ndarray, axis: int) -> np.ndarray:
    """Centred unitary FFT along one axis, complex64."""
    shifted = np.fft.ifftshift(image, axes=axis)
    return np.fft.fftshift(np.fft.fft(shifted, axis=axis, norm="ortho"), axes=axis).astype(np.complex64)


def ifft_axis(kspace: np.ndarray, axis: int) -> np.ndarray:
    """Inverse of `fft_axis`."""
    shifted = np.fft.ifftshift(kspace, axes=axis)
    return np.fft.fftshift(np.fft.ifft(shifted, axis=axis, norm="ortho"), axes=axis).astype(np.complex64)


def rss_image(kspace: np.ndarray, origin: Origin = "centre") -> np.ndarray:
    """Root sum of squares of the coil images of k-space ``(coil, row, col)``: ``(row, col)`` float32, unitary FFT."""
    if origin == "corner":
        images = np.fft.ifft2(kspace, norm="ortho")
    else:
        images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=_AXES), norm="ortho"), axes=_AXES)
    return np.sqrt((np.abs(images) ** 2).sum(axis=0)).astype(np.float32)


def dc_origin(kspace: np.ndarray) -> tuple[Origin | None, float]:
    """Where the zero frequency lies, by energy.

    Args:
        kspace: ``(coil, row, col)``.

    Returns:
        ``centre`` or ``corner``, or None where the energy does not tell (noise, next to nothing measured, an axis too
        short); and the ratio of the energy within an eighth of the size around the centre to that around the corner.
    """
    energy = (np.abs(kspace.astype(np.complex64)) ** 2).sum(axis=0)
    middle, corner = _near_middle(energy), _near_middle(np.fft.fftshift(energy))
    if not middle + corner > 0:
        return None, 1.0
    ratio = float(middle / corner) if corner > 0 else float("inf")
    if ratio >= _CLEAR:
        return "centre", ratio
    return ("corner", ratio) if ratio <= 1 / _CLEAR else (None, ratio)


def image_wrapped(kspace: np.ndarray, origin: Origin) -> bool | None:
    """Whether the image of k-space comes out wrapped round by half a field of view: air inside, anatomy outside.

    Returns:
        None where the anatomy fills the field of view, so that nothing can be said.
    """
    image = rss_image(kspace, origin)
    image = image * image
    inside, outside = _near_middle(image), _near_middle(np.fft.fftshift(image))
    if outside > _CLEAR * inside:
        return True
    return False if inside > _CLEAR * outside else None


def _near_middle(energy: np.ndarray) -> float:
    rows, cols = energy.shape
    half_row, half_col = max(1, rows // 8), max(1, cols // 8)
    row, col = rows // 2, cols // 2
    box = energy[max(0, row - half_row) : row + half_row + 1, max(0, col - half_col) : col + half_col + 1]
    return float(box.sum(dtype=np.float64))


def modulated(kspace: np.ndarray, inverse: bool = False) -> np.ndarray:
    """K-space whose centred image is rolled by half a field of view: from Calgary's convention to ``centre``.

    For an even size the factor is exactly +1 or -1; for odd sizes it is the phase of a shift by ``n // 2``.
    """
    rows, cols = kspace.shape[-2:]
    phase = _ramp(rows)[:, None] * _ramp(cols)[None, :]
    return (kspace * (phase.conj() if inverse else phase)).astype(np.complex64)


def _ramp(n: int) -> np.ndarray:
    """Phase over centred frequencies that moves image index 0 to ``n // 2`` of the centred image.

    The plain inverse FFT puts the origin at 0, the centred one at ``n // 2``: the plain image, seen as a centred one,
    is moved by ``n // 2``, and ``exp(+2 pi i k (n // 2) / n)`` moves it back.
    """
    k = np.arange(n) - n // 2
    turns = (k * (n // 2)) % n
    if n % 2 == 0:
        return np.where(turns == 0, 1.0, -1.0).astype(np.complex64)
    return np.exp(2j * np.pi * turns / n).astype(np.complex64)


def to_centre(part: KSpaceSlice, fft: FFTConvention) -> KSpaceSlice:
    """A slice in the convention ``centre``: same image, same sampling, other order and phase of the samples.

    The norm is a matter of scale alone and is left as it is.
    """
    if fft.origin == "centre":
        return part
    mask = np.fft.fftshift(part.mask, axes=_AXES if part.mask.shape[1] > 1 else -1)
    return replace(part, kspace=modulated(np.fft.fftshift(part.kspace, axes=_AXES)), mask=mask)


class Centred:
    """A `KSpaceReader` over another whose slices are all in the convention ``centre``."""

    def __init__(self, reader: KSpaceReader):
        self._reader = reader
        self.n, self.recon_shape, self.fov_mm = reader.n, reader.recon_shape, reader.fov_mm
        self.phase_axis, self.affine, self.source = reader.phase_axis, reader.affine, reader.source
        self.label: str = getattr(reader, "label", "")
        self.fft = FFTConvention("centre", reader.fft.norm)

    @property
    def notices(self) -> list[SourceWarning]:
        """Remarks of the reader underneath."""
        return getattr(self._reader, "notices", [])

    def read(self, i: int) -> KSpaceSlice:
        """See `KSpaceReader.read`."""
        return to_centre(self._reader.read(i), self._reader.fft)


def centred(reader: KSpaceReader) -> KSpaceReader:
    """The reader itself if its convention is ``centre`` already, else one that converts every slice, exactly."""
    return reader if reader.fft.origin == "centre" else Centred(reader)


def checked_origin(asked: Origin | None, assumed: Origin, kspace: np.ndarray) -> tuple[Origin, list[SourceWarning]]:
    """The origin to use, and what to say about it.

    Args:
        asked: What the caller wants; obeyed, with a warning if the energy contradicts.
        assumed: What the format says; gives way to clear energy elsewhere, with a warning.
        kspace: One slice that has signal.
    """
    seen, ratio = dc_origin(kspace)
    wanted = asked or assumed
    if seen is None or seen == wanted:
        return wanted, []
    energy = f"{max(ratio, 1 / ratio) if ratio else float('inf'):.3g} times as much energy lies around the {seen}"
    if asked is not None:
        text = f"{energy}: the convention '{asked}' was asked for but looks wrong; pass fft={seen}"
    else:
        text = f"{energy}: the convention is taken to be '{seen}', not '{assumed}'; pass fft={assumed} if it is not"
    return (asked or seen), [SourceWarning("fft-convention", text)]
