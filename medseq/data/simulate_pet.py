"""Simulated PET: projections of an uptake map with the scanner's blur, attenuation and Poisson counts, reconstructed.

    y ~ Poisson(counts share),   share = a A g(x) + b

with the blur g of the scanner's point spread, parallel projections A, the attenuation a = exp(-integral of mu) of
water, and a smooth background b of scattered and random coincidences. Two-dimensional, no time of flight. The object
and the reconstruction share a grid, but not the blur: it stays in the image, as it does on most scanners.

Reference:
    Hudson & Larkin, Accelerated image reconstruction using ordered subsets of projection data, IEEE Trans. Med. Imaging
    13(4), 1994, equation 5 (OSEM); Shepp & Vardi, Maximum likelihood reconstruction for emission tomography, 1982.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from medseq.errors import InputError, ShapeError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["PETScanner", "Projections", "acquire_pet", "reconstruct_pet"]

# Attenuation of water at 511 keV, 1/mm.
MU_WATER = 0.0096

Slice = Float[np.ndarray, "row col"]


@dataclass(frozen=True)
class PETScanner:
    """What the simulated scanner and its protocol are.

    Attributes:
        fwhm_mm: Width of the point spread in the plane.
        counts: Expected true and background coincidences of the slice at the full dose and time.
        background: Share of the counts that is scatter and randoms.
        angles: Projections over 180 degrees.
        method: ``osem``, or filtered back-projection ``fbp`` with a Hann window.
        iterations: Passes of OSEM over all angles.
        subsets: Of OSEM.
        filter_mm: Width of the Gaussian filter after the reconstruction; 0 is none.
    """

    fwhm_mm: float = 5.0
    counts: float = 1e6
    background: float = 0.35
    angles: int = 120
    method: Literal["osem", "fbp"] = "osem"
    iterations: int = 4
    subsets: int = 8
    filter_mm: float = 3.0

    def __post_init__(self) -> None:
        if not (self.counts > 0 and self.fwhm_mm >= 0 and self.filter_mm >= 0 and 0 <= self.background < 1):
            raise InputError("PET scanner parameters are out of range", found=self)
        if self.angles % self.subsets or self.iterations < 1:
            raise InputError("angles must be a multiple of the subsets", found=(self.angles, self.subsets))


@dataclass(frozen=True)
class Projections:
    """What a scan measured, and what is known of it.

    Attributes:
        counts: Coincidences, ``(angle, ray)``, whole numbers.
        attenuation: Share of the photon pairs that leave the body.
        background: Expected scatter and randoms.
        per_suv: Counts that a SUV of 1 along one pixel gives without attenuation.
        pixel_mm: Pixel size.
    """

    counts: Float[np.ndarray, "angle ray"]
    attenuation: Float[np.ndarray, "angle ray"]
    background: Float[np.ndarray, "angle ray"]
    per_suv: float
    pixel_mm: float


def acquire_pet(
    suv: Slice,
    body: Slice,
    pixel_mm: float,
    scanner: PETScanner,
    rng: np.random.Generator,
    *,
    fraction: float = 1.0,
) -> Projections:
    """Scan one slice.

    Args:
        suv: Uptake in SUV, square; what lies outside the inscribed circle is not seen.
        body: Amount of tissue in each pixel, 0 to 1.
        pixel_mm: Pixel size.
        scanner: Scanner and protocol.
        rng: Source of the counts.
        fraction: Of the full counts, in (0, 1].

    Raises:
        ShapeError: The slice is not square, or the two maps differ in size.
        InputError: Negative or missing uptake; a fraction out of range.
    """
    suv, body = (np.asarray(a, dtype=np.float32) for a in (suv, body))
    if suv.ndim != 2 or suv.shape[0] != suv.shape[1] or suv.shape != body.shape:
        raise ShapeError("uptake and body must be one square", found=(suv.shape, body.shape), wanted="(n, n) twice")
    if not (np.isfinite(suv).all() and suv.min() >= 0 and suv.max() > 0):
        raise InputError("uptake must be finite, nowhere negative and somewhere positive", found=float(suv.min()))
    if not 0 < fraction <= 1:
        raise InputError("fraction of the counts is out of range", found=fraction, wanted="0 < fraction <= 1")
    matrix = system_matrix(suv.shape[0], scanner.angles)
    shape = (scanner.angles, suv.shape[0])
    attenuation = np.exp(-MU_WATER * pixel_mm * (matrix @ body.ravel())).reshape(shape)
    true = attenuation * (matrix @ _blur(suv, scanner.fwhm_mm, pixel_mm).ravel()).reshape(shape)
    per_suv = fraction * scanner.counts * (1 - scanner.background) / max(float(true.sum()), 1e-12)
    # Scatter and randoms vary slowly, and reach beyond the body.
    flat = _blur(true, 0.35 * suv.shape[0], 1.0) + 0.2 * true.mean()
    background = flat * (fraction * scanner.counts * scanner.background / float(flat.sum()))
    counts = rng.poisson(per_suv * true + background).astype(np.float32)
    return Projections(counts, attenuation, background.astype(np.float32), per_suv, pixel_mm)


def reconstruct_pet(measured: Projections, scanner: PETScanner) -> Slice:
    """The image of a scan in SUV, ``(row, col)`` float32; outside the inscribed circle 0. FBP has negative values.

    Attenuation and background are corrected with their true values, as a good scanner nearly does.
    """
    side = measured.counts.shape[1]
    image = _osem(measured, scanner) if scanner.method == "osem" else _fbp(measured, scanner)
    return (_blur(image, scanner.filter_mm, measured.pixel_mm) * _circle(side)).astype(np.float32)


@cache
def system_matrix(side: int, angles: int) -> "csr_matrix":
    """Parallel projections of a `side` x `side` image: ``(angles * side, side * side)``, lengths in pixels.

    Each pixel of the inscribed circle gives its value to the two rays next to its centre.
    """
    from scipy.sparse import coo_matrix

    pixels = np.flatnonzero(_circle(side))
    y, x = (part - (side - 1) / 2 for part in np.divmod(pixels, side))
    rows, weights = [], []
    for index, theta in enumerate(np.pi * np.arange(angles) / angles):
        at = x * np.cos(theta) + y * np.sin(theta) + (side - 1) / 2
        left = np.clip(np.floor(at).astype(int), 0, side - 2)
        for ray, weight in ((left, 1 - (at - left)), (left + 1, at - left)):
            rows.append(index * side + ray)
            weights.append(weight)
    row, weight = np.concatenate(rows), np.concatenate(weights).clip(0, 1).astype(np.float32)
    column = np.tile(pixels, 2 * angles)
    return coo_matrix((weight, (row, column)), shape=(angles * side, side * side)).tocsr()


@cache
def _subset(side: int, angles: int, subsets: int, index: int) -> tuple["csr_matrix", "csr_matrix"]:
    """Rows of the system matrix of every `subsets`-th angle, and their transpose."""
    rows = (np.arange(index, angles, subsets)[:, None] * side + np.arange(side)).ravel()
    part = system_matrix(side, angles)[rows]
    return part, part.T.tocsr()


def _osem(measured: Projections, scanner: PETScanner) -> Slice:
    angles, side = measured.counts.shape
    image = _circle(side).astype(np.float32).ravel()
    weight = measured.per_suv * measured.attenuation
    image *= max(float((measured.counts - measured.background).sum()), 1.0) / float(weight.sum()) / side
    order = np.argsort([int(f"{i:08b}"[::-1], 2) for i in range(scanner.subsets)])
    for _ in range(scanner.iterations):
        for index in order:
            forward, back = _subset(side, angles, scanner.subsets, int(index))
            chosen = slice(int(index), None, scanner.subsets)
            factor = weight[chosen].ravel()
            expected = factor * (forward @ image) + measured.background[chosen].ravel()
            ratio = measured.counts[chosen].ravel() / np.maximum(expected, 1e-9)
            image *= (back @ (factor * ratio)) / np.maximum(back @ factor, 1e-9)
    return image.reshape(side, side)


def _fbp(measured: Projections, scanner: PETScanner) -> Slice:
    angles, side = measured.counts.shape
    line = (measured.counts - measured.background) / (measured.per_suv * measured.attenuation)
    size = 2 * side
    frequency = np.fft.rfftfreq(size)
    ramp = 2 * np.abs(np.fft.rfft(_ramp(size)).real) * 0.5 * (1 + np.cos(2 * np.pi * frequency))
    filtered = np.fft.irfft(np.fft.rfft(line, size, axis=1) * ramp, size, axis=1)[:, :side].astype(np.float32)
    back = system_matrix(side, angles).T @ filtered.ravel()
    return back.reshape(side, side) * (np.pi / (2 * angles))


def _ramp(size: int) -> np.ndarray:
    """The band-limited ramp on `size` samples (Kak & Slaney, 1988, chapter 3, equation 61)."""
    at = np.fft.fftfreq(size, 1 / size)
    odd = at % 2 == 1
    taps = np.zeros(size)
    taps[0] = 0.25
    taps[odd] = -1 / (np.pi * at[odd]) ** 2
    return taps


def _blur(image: np.ndarray, fwhm_mm: float, pixel_mm: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, fwhm_mm / pixel_mm / 2.3548) if fwhm_mm else image


@cache
def _circle(side: int) -> np.ndarray:
    axis = np.arange(side) - (side - 1) / 2
    return np.hypot(*np.meshgrid(axis, axis)) <= (side - 1) / 2
