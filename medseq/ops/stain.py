"""Stains of brightfield microscopy: optical density, colour deconvolution, and normalisation of their colours.

Images are ``(row, col, 3)`` uint8 RGB, or any ``(…, 3)`` set of pixels. Optical density is ``-ln(I / 255)`` with I at
least 1; stain vectors are rows of length 1 in it, haematoxylin first. What a slide is brought to is one fixed reference
of plain numbers, so that features of different slides and days are comparable.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from medseq.errors import InputError, ShapeError

__all__ = [
    "HED",
    "REFERENCE_LAB",
    "REFERENCE_STAINS",
    "LabStatistics",
    "StainStatistics",
    "deconvolve",
    "lab_statistics",
    "normalise_macenko",
    "normalise_reinhard",
    "optical_density",
    "stain_statistics",
]

_OD = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
# Of haematoxylin, eosin and DAB: Ruifrok & Johnston (below), table 1 and their later macro, normalised.
_HED_ROWS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED = (_HED_ROWS / np.linalg.norm(_HED_ROWS, axis=1, keepdims=True)).astype(np.float32)
_FROM_HED = np.linalg.inv(HED.astype(np.float64)).astype(np.float32)
# Pixels with less density than this are glass (Macenko et al., section 2.1).
_GLASS = 0.15
# Length of the density below which its direction is noise. Macenko's code asks every colour for 0.15 instead, which
# leaves out pale eosin, hardly red or blue at all, and turns its vector towards haematoxylin by up to 8 degrees.
_PALE = 0.3
# Spread below which there is one colour only.
_ONE_COLOUR = 1e-6
_MIN_PIXELS = 100


@dataclass(frozen=True)
class StainStatistics:
    """How haematoxylin and eosin look on one slide.

    Attributes:
        stains: Their vectors in optical density, two rows of three.
        strongest: 99th percentile of the amount of each.
    """

    stains: tuple[tuple[float, float, float], tuple[float, float, float]]
    strongest: tuple[float, float]


@dataclass(frozen=True)
class LabStatistics:
    """Mean and standard deviation of stained pixels in Ruderman's l-alpha-beta space (natural logarithms)."""

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


# Measured with `stain_statistics` and `lab_statistics` on the H&E image target_image.png of tiatoolbox 2.1.3.
REFERENCE_STAINS = StainStatistics(((0.5275, 0.7525, 0.3944), (0.1422, 0.8331, 0.5346)), (2.9390, 1.0848))
REFERENCE_LAB = LabStatistics((-1.3033, -0.1390, 0.0608), (0.5724, 0.1054, 0.0205))

# Reinhard et al., equations 4 (RGB to LMS, of their corrected table) and 6 (log LMS to l-alpha-beta).
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB = np.diag(1 / np.sqrt([3.0, 6.0, 2.0])) @ np.array([[1.0, 1, 1], [1, 1, -2], [1, -1, 0]])
_FROM_LMS, _FROM_LAB = np.linalg.inv(_LMS), np.linalg.inv(_LAB)


def optical_density(rgb: UInt8[np.ndarray, "*pixel 3"]) -> Float[np.ndarray, "*pixel 3"]:
    """``-ln(I / 255)``, float32; 0 where nothing was absorbed."""
    _require_rgb(rgb)
    return _OD[rgb]


def deconvolve(rgb: UInt8[np.ndarray, "*pixel 3"]) -> Float[np.ndarray, "*pixel 3"]:
    """Amounts of haematoxylin, eosin and DAB in each pixel, by the fixed vectors `HED`; noise makes some negative.

    Reference:
        Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol
        23 (2001), Eq. 5.
    """
    return optical_density(rgb) @ _FROM_HED


def stain_statistics(rgb: UInt8[np.ndarray, "*pixel 3"], percentile: float = 1.0) -> StainStatistics:
    """The two stain vectors of H&E pixels, and how strong each stain is.

    Args:
        rgb: Pixels of one slide: of many tiles rather than of one, which may hold one stain only.
        percentile: Share of the extreme directions that is taken for noise.

    Raises:
        InputError: Hardly any stained pixels, or only one colour.

    Reference:
        Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009, section 2.
    """
    density = _stained(optical_density(rgb).reshape(-1, 3)).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(density.T))
    if values[1] < _ONE_COLOUR:
        raise InputError("stains cannot be told apart", found="pixels of one colour", wanted="H&E")
    # The plane of the two largest; its first axis points to where the pixels are.
    plane = vectors[:, [2, 1]] * np.where(vectors[:, [2, 1]].sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(*(density @ plane).T[::-1])
    extremes = np.percentile(angles, (percentile, 100 - percentile))
    stains = (plane @ np.array([np.cos(extremes), np.sin(extremes)])).T
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    # Haematoxylin takes more of the red light.
    stains = stains[np.argsort(-stains[:, 0])]
    strongest = np.percentile(density @ np.linalg.pinv(stains), 99, axis=0)
    if not (np.isfinite(strongest).all() and (strongest > 0).all()):
        raise InputError("stains cannot be told apart", found="pixels of one colour", wanted="H&E")
    first, second = (tuple(float(value) for value in row) for row in stains)
    return StainStatistics((first, second), (float(strongest[0]), float(strongest[1])))  # type: ignore[arg-type]


def normalise_macenko(
    rgb: UInt8[np.ndarray, "row col 3"], source: StainStatistics, reference: StainStatistics = REFERENCE_STAINS
) -> UInt8[np.ndarray, "row col 3"]:
    """An image of a slide with the colours of the reference.

    Args:
        rgb: Image.
        source: How the slide looks (`stain_statistics`).
        reference: How it should look.

    Reference:
        Macenko et al., ISBI 2009, section 3.
    """
    to_amounts = np.linalg.pinv(np.array(source.stains)) * (np.array(reference.strongest) / np.array(source.strongest))
    # Both steps are linear in optical density: one 3 x 3 matrix.
    density = optical_density(rgb) @ (to_amounts @ np.array(reference.stains)).astype(np.float32)
    return _as_uint8(255 * np.exp(-density))


def lab_statistics(rgb: UInt8[np.ndarray, "*pixel 3"]) -> LabStatistics:
    """Mean and spread of the stained pixels' colours.

    Raises:
        InputError: Hardly any stained pixels.
    """
    pixels = rgb.reshape(-1, 3)
    _require_rgb(pixels)
    keep = (_OD[pixels] >= _GLASS).any(axis=1)
    _require_stained(int(keep.sum()))
    lab = _to_lab(pixels[keep])
    mean, sd = lab.mean(axis=0), lab.std(axis=0)
    return LabStatistics(tuple(map(float, mean)), tuple(map(float, sd)))  # type: ignore[arg-type]


def normalise_reinhard(
    rgb: UInt8[np.ndarray, "row col 3"], source: LabStatistics, reference: LabStatistics = REFERENCE_LAB
) -> UInt8[np.ndarray, "row col 3"]:
    """An image of a slide with mean and spread of colours of the reference; glass stays as it is.

    Args:
        rgb: Image.
        source: Colours of the slide's stained pixels (`lab_statistics`).
        reference: Colours it should have.

    Raises:
        InputError: A slide of one colour.

    Reference:
        Reinhard et al., Color transfer between images, IEEE CG&A 21(5), 2001, Eq. 10.
    """
    if min(source.sd) < _ONE_COLOUR:
        raise InputError("stains cannot be told apart", found="pixels of one colour", wanted="H&E")
    lab = (_to_lab(rgb) - source.mean) * (np.array(reference.sd) / source.sd) + reference.mean
    changed = 255 * (np.exp(lab @ _FROM_LAB.T) @ _FROM_LMS.T)
    # Shifted like tissue, glass would take on a colour; from once to twice its density the two are blended.
    weight = np.clip(_OD[rgb].max(axis=-1, keepdims=True) / _GLASS - 1, 0, 1)
    return _as_uint8(rgb + weight * (np.clip(changed, 0, 255) - rgb))


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    linear = np.maximum(rgb.astype(np.float64), 1) / 255
    return np.log(linear @ _LMS.T) @ _LAB.T


def _stained(density: np.ndarray) -> np.ndarray:
    kept = density[np.linalg.norm(density, axis=1) >= _PALE]
    _require_stained(len(kept))
    return kept


def _require_stained(count: int) -> None:
    if count < _MIN_PIXELS:
        raise InputError("hardly any stained pixels", found=count, wanted=f"at least {_MIN_PIXELS}")


def _require_rgb(rgb: np.ndarray) -> None:
    if rgb.dtype != np.uint8 or rgb.shape[-1:] != (3,):
        raise ShapeError("not an RGB image", found=f"{rgb.dtype} {rgb.shape}", wanted="uint8 (…, 3)")


def _as_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
