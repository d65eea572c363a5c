"""Where on a slide the tissue is, from a small overview that is read with bounded memory.

Saturation above Otsu's threshold, cleaned by rules in mm². Ink of pens is taken out; folds are told, not taken out.
Both are rules of thumb on colour and are named as such in the QC (`medseq.io.tissue_qc`).
"""

import math
from dataclasses import dataclass, field

import numpy as np

from medseq.errors import FormatError, InputError
from medseq.io.slide_file import SlideFile
from medseq.io.slide_resample import level_scale, read_scaled

__all__ = ["Overview", "Tissue", "TissueRules", "find_tissue", "read_overview"]

# A block of a level that is read at once is at most this wide and high.
_BLOCK = 2048
_MAX_OVERVIEW_PIXELS = 12_000_000
# Otsu always finds two classes, also in an empty slide (noise) or one full of tissue (pale and dark tissue): its
# threshold counts only between these, in units of 255.
_SATURATION_LIMITS = (12.0, 45.0)
_OVERVIEW_MPP = 8.0


@dataclass(frozen=True)
class TissueRules:
    """What counts as tissue.

    Attributes:
        mpp: Resolution of the overview, um/px.
        min_tissue_mm2: Smaller pieces are dust.
        min_hole_mm2: Smaller holes belong to the tissue.
        max_bad_share: More unreadable parts than this share are an error.
    """

    mpp: float = _OVERVIEW_MPP
    min_tissue_mm2: float = 0.05
    min_hole_mm2: float = 0.02
    max_bad_share: float = 0.05


@dataclass(frozen=True)
class Overview:
    """A slide at low resolution.

    Attributes:
        rgb: ``(row, col, 3)`` uint8.
        scale: Pixels of level 0 in one pixel, ``(x, y)``.
        mpp: Microns per pixel, ``(x, y)``.
        bad_share: Share of the blocks that could not be read; they are white.
    """

    rgb: np.ndarray = field(repr=False)
    scale: tuple[float, float]
    mpp: tuple[float, float]
    bad_share: float = 0.0

    @property
    def pixel_mm2(self) -> float:
        """Area of one pixel."""
        return self.mpp[0] * self.mpp[1] * 1e-6


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide on the grid of its overview.

    Attributes:
        mask: ``(row, col)`` bool: tissue without ink.
        pen: ``(row, col)`` bool: ink of pens.
        fold: ``(row, col)`` bool, within `mask`: tissue that lies double.
        threshold: Saturation (0 to 255) above which a pixel is tissue.
        overview: What it was found on.
    """

    mask: np.ndarray = field(repr=False)
    pen: np.ndarray = field(repr=False)
    fold: np.ndarray = field(repr=False)
    threshold: float
    overview: Overview

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.overview.pixel_mm2


def read_overview(slide: SlideFile, rules: TissueRules | None = None) -> Overview:
    """The whole slide at low resolution, block by block, so that also a flat file is never in memory as a whole.

    The resolution is that of `rules`, or coarser where the overview would have more than 12 million pixels.

    Raises:
        InputError: The size of a pixel is not known.
        FormatError: More of the slide cannot be read than `rules` allow.
    """
    rules = rules or TissueRules()
    mpp = slide.require_mpp()
    width, height = slide.dims[0]
    scale = max(rules.mpp / min(mpp), math.sqrt(width * height / _MAX_OVERVIEW_PIXELS), 1.0)
    cols, rows = max(round(width / scale), 1), max(round(height / scale), 1)
    scales = width / cols, height / rows
    rgb = np.full((rows, cols, 3), 255, np.uint8)
    finest = max(factor for level in range(slide.levels) if (factor := level_scale(slide, level)[0]) <= scale * 1.01)
    step = max(int(_BLOCK * finest / scale), 1)
    blocks = [(row, col) for row in range(0, rows, step) for col in range(0, cols, step)]
    bad = 0
    for row, col in blocks:
        h, w = min(step, rows - row), min(step, cols - col)
        try:
            rgb[row : row + h, col : col + w] = read_scaled(slide, col * scales[0], row * scales[1], scales, w, h)
        except FormatError:
            bad += 1
    if bad > rules.max_bad_share * len(blocks):
        raise FormatError(
            "too much of the slide cannot be read",
            where=slide.label,
            found=f"{bad} of {len(blocks)} parts",
            wanted=f"at most {rules.max_bad_share:.0%}",
            remedy="copy the file again: it is damaged or truncated",
        )
    return Overview(rgb, scales, (mpp[0] * scales[0], mpp[1] * scales[1]), bad / len(blocks))


def find_tissue(overview: Overview, rules: TissueRules | None = None) -> Tissue:
    """Tissue, ink and folds of an overview.

    Raises:
        InputError: Rules that make no sense.

    Reference:
        Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9(1), 1979.
    """
    rules = rules or TissueRules()
    if not (rules.mpp > 0 and rules.min_tissue_mm2 >= 0 and rules.min_hole_mm2 >= 0):
        raise InputError("rules of tissue must be positive", found=rules)
    from scipy.ndimage import median_filter

    colours = median_filter(overview.rgb, size=(3, 3, 1))
    # Largest minus smallest colour: not divided by the largest, or noise would saturate what is black.
    saturation = colours.max(axis=-1) - colours.min(axis=-1)
    threshold = float(np.clip(_otsu(saturation), *_SATURATION_LIMITS))
    pen = _without_small(_ink(colours), rules.min_hole_mm2, overview.pixel_mm2)
    mask = (saturation > threshold) & ~pen
    mask = _without_small(mask, rules.min_tissue_mm2, overview.pixel_mm2)
    mask = ~_without_small(~mask, rules.min_hole_mm2, overview.pixel_mm2) & ~pen
    return Tissue(mask, pen, _folds(colours) & mask, threshold, overview)


def _otsu(values: np.ndarray) -> float:
    """The threshold between two classes of uint8 values that makes their means differ most."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.argmax(np.nan_to_num(between)))


def _without_small(mask: np.ndarray, min_mm2: float, pixel_mm2: float) -> np.ndarray:
    """A mask without its pieces below a size (neighbours along sides and corners)."""
    from scipy.ndimage import label

    pieces, _ = label(mask, np.ones((3, 3), bool))
    sizes = np.bincount(pieces.ravel())
    keep = sizes * pixel_mm2 >= min_mm2
    keep[0] = False
    return keep[pieces]


def _ink(colours: np.ndarray) -> np.ndarray:
    """Green, blue and black ink. Red ink cannot be told from eosin by its colour and counts as tissue."""
    hue, saturation, value = _hsv(colours)
    # Haematoxylin is violet, above 235 degrees; DAB and eosin lie below 60 and above 290.
    coloured = (hue >= 80) & (hue <= 225) & (saturation > 0.35) & (value > 0.15)
    black = (value < 0.3) & (saturation * value < 0.1)
    return coloured | black


def _folds(colours: np.ndarray) -> np.ndarray:
    """Pixels that are more saturated than bright: tissue that lies double. Keratin and dense nuclei look alike.

    Reference:
        Bautista & Yagi, Improving the visualization and detection of tissue folds in whole slide images through color
        enhancement, J Pathol Inform 1:25 (2010): the difference of saturation and luminance.
    """
    _, saturation, value = _hsv(colours)
    return saturation - value > 0.15


def _hsv(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value from 0 to 1."""
    red, green, blue = (colours[..., channel].astype(np.float32) / 255 for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    safe = np.where(chroma > 0, chroma, 1)
    sector = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return 60 * sector, chroma / np.where(value > 0, value, 1), value
