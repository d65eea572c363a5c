"""Degradations with physical parameters: each is a pure function of (image, parameters, `torch.Generator`).

Low-dose CT is simulated by noise insertion in the projection domain (parallel beam):

    degraded = image + FBP(noise sinogram),    noise ~ N(0, added variance of each ray)

Filtered back-projection is linear, so this equals image + FBP(noisy sinogram) - FBP(clean sinogram): the projector
itself leaves no trace that a network could learn to undo, and dose 1 returns the image bit for bit. With the photons
per ray I0, the line integral p and the dose fraction d, the variance that dose d adds to the present scan is

    (1/d - 1) exp(p) / I0  +  (1/d^2 - 1) sd_e^2 exp(2p) / I0^2        (photon and electronic noise)

Reference:
    Yu et al., Development and validation of a practical lower-dose-simulation tool, J. Comput. Assist. Tomogr. 36(4),
    2012 (noise insertion); Gudbjartsson & Patz, The Rician distribution of noisy MRI data, Magn. Reson. Med. 34, 1995.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from medseq.errors import InputError, ShapeError

__all__ = ["CTScanner", "add_projection_noise", "gaussian_noise", "line_integrals", "low_dose_ct", "rician_noise"]

Kernel = Literal["ramp", "shepp-logan", "cosine", "hamming", "hann"]


@dataclass(frozen=True)
class CTScanner:
    """What the simulated scanner is.

    Attributes:
        photons: I0, photons per ray at dose 1.
        mu_water: Attenuation of water in 1/mm; 0.0193 is water at 70 keV, about the mean energy at 120 kVp.
        electronic_sd: Standard deviation of the detector's electronic noise, in photons.
        kernel: Reconstruction filter: ``ramp`` is the sharpest, ``hann`` the smoothest.
        angles: Projections over 180 degrees; None takes as many as the padded image has columns.
    """

    photons: float = 2e5
    mu_water: float = 0.0193
    electronic_sd: float = 5.0
    kernel: Kernel = "hann"
    angles: int | None = None

    def __post_init__(self) -> None:
        if not (self.photons > 0 and self.mu_water > 0 and self.electronic_sd >= 0):
            raise InputError("CT scanner parameters must be positive", found=self)

    def theta(self, side: int) -> np.ndarray:
        """Projection angles in degrees for an image of `side` columns."""
        return np.linspace(0.0, 180.0, self.angles or side, endpoint=False)


def line_integrals(
    image_hu: Float[np.ndarray, "row col"], spacing_mm: float, scanner: CTScanner
) -> Float[np.ndarray, "ray angle"]:
    """Attenuation along every ray of a parallel-beam scan; dimensionless.

    The image is padded with air into the square that holds its rotations.

    Args:
        image_hu: One slice in Hounsfield units.
        spacing_mm: Pixel size; pixels are square.
        scanner: Geometry and water attenuation.
    """
    from skimage.transform import radon

    padded = _pad(_check(image_hu), -1000.0)
    attenuation = scanner.mu_water * np.maximum(1.0 + padded / 1000.0, 0.0)
    return radon(attenuation, scanner.theta(padded.shape[1]), circle=True).astype(np.float32) * spacing_mm


def add_projection_noise(
    image_hu: Float[np.ndarray, "row col"],
    integrals: Float[np.ndarray, "ray angle"],
    spacing_mm: float,
    dose: float,
    generator: torch.Generator,
    scanner: CTScanner,
) -> Float[np.ndarray, "row col"]:
    """The slice at a fraction of its dose, given its `line_integrals`.

    Raises:
        InputError: `dose` is not in (0, 1].
    """
    from skimage.transform import iradon

    if not 0 < dose <= 1:
        raise InputError("dose is out of range", found=dose, wanted="0 < dose <= 1 (1 = the dose of the scan at hand)")
    image_hu = _check(image_hu)
    if dose == 1:
        return image_hu.copy()
    # Beyond 25 no photon arrives, and the exponential would overflow behind metal.
    weakening = np.exp(np.minimum(integrals, 25.0)) / scanner.photons
    variance = (1 / dose - 1) * weakening + (1 / dose**2 - 1) * (scanner.electronic_sd * weakening) ** 2
    noise = np.sqrt(variance) * torch.randn(integrals.shape, generator=generator).numpy()
    back = iradon(noise / spacing_mm, scanner.theta(integrals.shape[1]), filter_name=scanner.kernel, circle=True)
    top, left = ((side - size) // 2 for side, size in zip(back.shape, image_hu.shape, strict=True))
    crop = back[top : top + image_hu.shape[0], left : left + image_hu.shape[1]]
    return image_hu + (crop * (1000.0 / scanner.mu_water)).astype(np.float32)


def low_dose_ct(
    image_hu: Float[np.ndarray, "row col"],
    spacing_mm: float,
    dose: float,
    generator: torch.Generator,
    scanner: CTScanner | None = None,
) -> Float[np.ndarray, "row col"]:
    """The same slice at a fraction of its dose: simulated by noise insertion in the projection domain.

    Args:
        image_hu: One slice in Hounsfield units.
        spacing_mm: Pixel size; pixels are square.
        dose: Fraction of the dose of the scan at hand, 0 < dose <= 1; 1 returns the slice bit for bit.
        generator: Source of the noise; the same state gives the same image.
        scanner: Photons, kernel and so on; the defaults of `CTScanner` if None.

    Returns:
        Slice in Hounsfield units, float32.

    Raises:
        InputError: `dose` is out of range, or the image is not finite.
    """
    scanner = scanner or CTScanner()
    image_hu = _check(image_hu)
    if dose == 1:
        return image_hu.copy()
    integrals = line_integrals(image_hu, spacing_mm, scanner)
    return add_projection_noise(image_hu, integrals, spacing_mm, dose, generator, scanner)


def rician_noise(
    image: Float[np.ndarray, "*shape"], sd: float, generator: torch.Generator
) -> Float[np.ndarray, "*shape"]:
    """Magnitude of the image with complex Gaussian noise: ``|x + n1 + i n2|``, n1, n2 ~ N(0, sd^2).

    Args:
        image: Magnitude image, any shape, arbitrary units.
        sd: Standard deviation of each noise component, in the image's units; 0 returns the image bit for bit.
        generator: Source of the noise.
    """
    if sd < 0:
        raise InputError("noise standard deviation is negative", found=sd)
    if sd == 0:
        return np.array(image, dtype=np.float32)
    real, imaginary = torch.randn((2, *np.shape(image)), generator=generator).numpy() * np.float32(sd)
    return np.hypot(np.asarray(image, dtype=np.float32) + real, imaginary)


def gaussian_noise(
    image: Float[np.ndarray, "*shape"], sd: float, generator: torch.Generator
) -> Float[np.ndarray, "*shape"]:
    """The image plus white Gaussian noise of standard deviation `sd`, in the image's units."""
    if sd < 0:
        raise InputError("noise standard deviation is negative", found=sd)
    image = np.asarray(image, dtype=np.float32)
    return image + torch.randn(image.shape, generator=generator).numpy() * np.float32(sd)


def _check(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 2 or not image.size:
        raise ShapeError("a single slice is needed", found=image.shape, wanted="(row, col)")
    if not np.isfinite(image).all():
        raise InputError("image has values that are not finite", found=int((~np.isfinite(image)).sum()))
    return image


def _pad(image: np.ndarray, value: float) -> np.ndarray:
    side = int(np.ceil(np.hypot(*image.shape))) + 2
    pads = [((side - size) // 2, side - size - (side - size) // 2) for size in image.shape]
    return np.pad(image, pads, constant_values=value)
