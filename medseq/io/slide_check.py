"""What a slide is before work is spent on it: levels, resolution, colours, and whether its pixels can be read."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseq.errors import FormatError, InputError, MedseqError
from medseq.io.privacy import path_label
from medseq.io.slide_file import SlideFile
from medseq.io.slide_mpp import Mpp, missing_mpp
from medseq.io.slide_open import open_slide
from medseq.io.slide_tiff import TiffSlideFile

__all__ = ["Scan", "SlideCheck", "check_slide"]

Scan = Literal["none", "sample", "all"]
_BLOCK = 512
_SAMPLE = 64
# Above this, a tile at low resolution costs the decoding of many at full.
_FLAT_PIXELS = 20_000_000
_MAX_STEP = 4.5


@dataclass(frozen=True)
class SlideCheck:
    """Findings on one slide.

    Attributes:
        label: Stands for the file.
        is_usable: It can be tiled as it is.
        problems: Why not, and what to do.
        remarks: What is good to know.
        format: Kind of file; None if it cannot be opened, as all that follows.
        dims: ``(width, height)`` of every level.
        downsamples: Of every level.
        mpp: ``(x, y)`` um per pixel of level 0.
        mpp_source: ``file`` or ``user``.
        objective_power: Magnification of the objective.
        icc: What became of the colour profile.
        scanned: Blocks of 512 x 512 pixels that were read, over all levels.
        bad: How many of them could not be read.
    """

    label: str
    is_usable: bool
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    format: str | None = None
    dims: tuple[tuple[int, int], ...] = ()
    downsamples: tuple[float, ...] = ()
    mpp: Mpp | None = None
    mpp_source: str | None = None
    objective_power: float | None = None
    icc: str | None = None
    scanned: int = 0
    bad: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def check_slide(path: Path, mpp: float | None = None, scan: Scan = "sample", max_bad_share: float = 0.05) -> SlideCheck:
    """Look at a slide; what is wrong with it is in the answer, not raised.

    Args:
        path: The slide.
        mpp: Microns per pixel that the caller would give.
        scan: Read nothing, 64 blocks spread over the levels, or every pixel once.
        max_bad_share: More unreadable blocks than this share make the slide unusable.

    Raises:
        BackendError: The library for slides is not installed.
        InputError: `mpp` is no resolution of a microscope.
    """
    try:
        slide = open_slide(path, mpp)
    except FormatError as error:
        return SlideCheck(path_label(path), False, (str(error).removeprefix(f"{error.where}: "),))
    with slide:
        problems, remarks = _findings(slide)
        scanned, bad = _scan(slide, scan)
        if bad:
            share = f"{bad} of {scanned} blocks cannot be read"
            (problems if bad > max_bad_share * scanned else remarks).append(share)
        return SlideCheck(
            slide.label,
            not problems,
            tuple(problems),
            tuple(remarks),
            slide.format,
            slide.dims,
            tuple(round(factor, 3) for factor in slide.downsamples),
            slide.mpp,
            slide.mpp_source,
            slide.objective_power,
            slide.icc,
            scanned,
            bad,
        )


def _findings(slide: SlideFile) -> tuple[list[str], list[str]]:
    problems, remarks = [], []
    if slide.mpp is None:
        problems.append(f"no resolution: {missing_mpp(slide.objective_power)}")
    else:
        try:
            slide.require_mpp()
        except InputError as error:
            problems.append(f"{error.what}; {error.remedy}")
    steps = [fine / coarse for fine, coarse in zip(slide.downsamples[1:], slide.downsamples, strict=False)]
    pixels = slide.dims[-1][0] * slide.dims[-1][1]
    if pixels > _FLAT_PIXELS:
        remarks.append("no small level: the overview is read from full-size pixels, which takes a while")
    elif steps and max(steps) > _MAX_STEP:
        remarks.append(f"a step of {max(steps):.3g} between two levels: tiles in between are read from the finer one")
    if slide.icc == "unreadable":
        remarks.append("the colour profile cannot be read: colours are used as stored")
    if isinstance(slide, TiffSlideFile) and slide.missing_share:
        problems.append(f"truncated: {slide.missing_share:.1%} of level 0 lies beyond the end of the file")
    if slide.mpp is not None and slide.objective_power is not None:
        usual = 10 / slide.objective_power
        if not 0.5 < slide.mpp[0] / usual < 2:
            remarks.append(f"{slide.mpp[0]:g} um/px is unusual for a {slide.objective_power:g}x objective")
    return problems, remarks


def _scan(slide: SlideFile, scan: Scan) -> tuple[int, int]:
    """Blocks read, and those that could not be."""
    if scan == "none":
        return 0, 0
    counts = [(-(-width // _BLOCK), -(-height // _BLOCK)) for width, height in slide.dims]
    total = sum(cols * rows for cols, rows in counts)
    picks = range(total)
    if scan == "sample" and total > _SAMPLE:
        picks = np.unique(np.linspace(0, total - 1, _SAMPLE).round().astype(int)).tolist()
    bad = 0
    ends = np.cumsum([cols * rows for cols, rows in counts])
    for pick in picks:
        level = int(np.searchsorted(ends, pick, side="right"))
        cols, rows = counts[level]
        row, col = divmod(pick - int(ends[level] - cols * rows), cols)
        bad += not _is_readable(slide, level, col * _BLOCK, row * _BLOCK)
    return len(picks), bad


def _is_readable(slide: SlideFile, level: int, left: int, top: int) -> bool:
    width, height = slide.dims[level]
    x0, y0 = round(left * slide.dims[0][0] / width), round(top * slide.dims[0][1] / height)
    try:
        slide.region(x0, y0, level, min(_BLOCK, width - left), min(_BLOCK, height - top))
    except MedseqError:
        return False
    return True
