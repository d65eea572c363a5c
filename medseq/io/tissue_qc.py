"""Quality control of a slide: tissue area, focus, ink and folds as numbers, and a picture to look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medseq.errors import InputError
from medseq.io.atomic import clear, discard, fsync, publish, written
from medseq.io.slide_file import SlideFile
from medseq.io.tiles import TileGrid, read_tiles, tile_grid
from medseq.io.tissue import Tissue

__all__ = ["TissueQC", "focus_score", "qc_picture", "require_tissue", "tissue_qc", "write_png"]

_OUTLINE, _PEN, _FOLD = (0, 150, 0), (255, 140, 0), (0, 90, 255)
# Variance of the Laplacian of grey values (0 to 255) at 0.5 um/px. Sharp H&E has hundreds; below this, nuclei have
# no edges.
BLURRED = 20.0
_FOCUS_MPP, _FOCUS_TILE, _FOCUS_SAMPLE = 0.5, 256, 48


@dataclass(frozen=True)
class TissueQC:
    """Numbers of one slide.

    Attributes:
        tissue_mm2: Area of the tissue.
        tissue_share: Share of the slide that is tissue.
        threshold: Saturation (0 to 255) above which a pixel is tissue.
        overview_mpp: Microns per pixel of the overview.
        focus_median: Median of `focus_score` over a sample of tiles; None without tissue.
        blurred_share: Share of these tiles below `BLURRED`; None without tissue.
        focus_mpp: Microns per pixel at which focus was judged.
        pen_share: Area of green, blue and black ink over the area of the slide.
        fold_share: Share of the tissue that looks folded.
        unreadable_share: Share of the overview and of the focus tiles that could not be read, the larger.
    """

    tissue_mm2: float
    tissue_share: float
    threshold: float
    overview_mpp: float
    focus_median: float | None
    blurred_share: float | None
    focus_mpp: float
    pen_share: float
    fold_share: float
    unreadable_share: float


def tissue_qc(slide: SlideFile, tissue: Tissue) -> TissueQC:
    """Measure a slide; focus on up to 48 tiles spread evenly over the tissue."""
    # Slides coarser than 0.5 um/px are judged as they are.
    focus_mpp = max(_FOCUS_MPP, *slide.require_mpp())
    grid = tile_grid(slide, tissue, mpp=focus_mpp, size=_FOCUS_TILE, min_tissue=0.25)
    scores, unread = _focus_sample(slide, grid)
    area = float(tissue.mask.sum())
    return TissueQC(
        tissue_mm2=tissue.area_mm2,
        tissue_share=area / tissue.mask.size,
        threshold=tissue.threshold,
        overview_mpp=max(tissue.overview.mpp),
        focus_median=float(np.median(scores)) if scores else None,
        blurred_share=float(np.mean(np.array(scores) < BLURRED)) if scores else None,
        focus_mpp=focus_mpp,
        pen_share=float(tissue.pen.mean()),
        fold_share=float(tissue.fold.sum() / area) if area else 0.0,
        unreadable_share=max(tissue.overview.bad_share, unread),
    )


def focus_score(rgb: np.ndarray) -> float:
    """Variance of the Laplacian of the grey values of a tile ``(row, col, 3)`` uint8.

    Reference:
        Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy: a comparative study, ICPR 2000, LAPV.
    """
    # Luma of ITU-R BT.601.
    grey = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    return float(laplacian.var(dtype=np.float64))


def qc_picture(tissue: Tissue, max_side: int = 1024) -> np.ndarray:
    """The overview with the tissue outlined in green, ink in orange and folds in blue: ``(row, col, 3)`` uint8."""
    rows, cols = tissue.mask.shape
    factor = max_side / max(rows, cols)
    # A small overview is enlarged by at most 4: an outline of one pixel must be seen.
    factor = min(factor, 4.0)
    size = max(round(cols * factor), 1), max(round(rows * factor), 1)
    picture = np.array(Image.fromarray(tissue.overview.rgb).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
    for mask, colour, filled in ((tissue.fold, _FOLD, True), (tissue.pen, _PEN, True), (tissue.mask, _OUTLINE, False)):
        shown = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        edge = shown & ~_eroded(shown, 2)
        picture[edge] = colour
        if filled:
            picture[shown] = (picture[shown] // 2 + np.array(colour) // 2).astype(np.uint8)
    return picture


def require_tissue(tissue: Tissue, grid: TileGrid, where: str) -> None:
    """Refuse a slide on which nothing was found.

    Raises:
        InputError: No tissue, or no tile with enough of it.
    """
    if not tissue.mask.any():
        raise InputError(
            "no tissue was found",
            where=where,
            found=f"nothing above saturation {tissue.threshold:.0f} of 255 and the least area",
            remedy="look at the QC picture; a faint stain needs another --min-tissue-mm2 or a bag made elsewhere",
        )
    if not len(grid):
        raise InputError(
            "no tile holds enough tissue",
            where=where,
            found=f"{tissue.area_mm2:.3g} mm2 of tissue in pieces smaller than a tile",
            remedy="look at the QC picture; lower --min-tissue or take smaller tiles",
        )


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write a picture whole or not at all, without metadata.

    Raises:
        OutputError: Not writable.
        RetryableError: No space.
    """
    partial = clear(path)
    try:
        with written("the picture"):
            Image.fromarray(rgb).save(partial, format="PNG")
            fsync(partial)
        publish(partial, path)
    finally:
        discard(partial)


def _focus_sample(slide: SlideFile, grid: TileGrid) -> tuple[list[float], float]:
    """Scores of tiles spread evenly over the grid, and the share that could not be read."""
    if not len(grid):
        return [], 0.0
    picks = np.unique(np.linspace(0, len(grid) - 1, _FOCUS_SAMPLE).round().astype(int))
    scores = []
    for pick in picks:
        tile = next(read_tiles(slide, grid, int(pick)))
        if tile.pixels is not None:
            scores.append(focus_score(tile.pixels))
    return scores, 1 - len(scores) / len(picks)


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return binary_erosion(mask, iterations=times, border_value=0)
