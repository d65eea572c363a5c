"""One slide to one bag: tissue, tiles, features, as a stream that can be killed at any moment and continued.

    OUT/<name>.h5           the bag, complete or not there (`medseq.io.bag_write`)
    OUT/<name>.h5.part      what a killed run left; the next one continues it
    OUT/qc/<name>.png       the overview with the tissue outlined, also of a slide without tissue
    OUT/qc/<name>.json      QC, tile counts, encoder and settings of the bag

Tiles are encoded in batches that begin at multiples of the batch size in the slide's grid, in every run: a continued
run hands the encoder the very batches that an undisturbed one does, and its features are the same to the bit. Memory
holds one batch of tiles, the overview and the coordinates.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseq import __version__
from medseq.errors import FormatError, OutputError
from medseq.inference.encoders import PatchEncoder
from medseq.inference.extract_settings import ExtractSettings, settings_hash
from medseq.inference.extract_stain import fit_stain
from medseq.inference.run_folder import write_text
from medseq.io.atomic import discard, written
from medseq.io.bag_write import BagWriter
from medseq.io.slide_file import SlideFile
from medseq.io.slide_open import open_slide
from medseq.io.tiles import TileGrid, read_tiles, tile_grid
from medseq.io.tissue import find_tissue, read_overview
from medseq.io.tissue_qc import qc_picture, require_tissue, tissue_qc, write_png

__all__ = ["ExtractRecord", "SlideProgress", "extract_slide"]

# Called with (finished tiles, all tiles) at the start and after each batch.
SlideProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExtractRecord:
    """What was made of one slide.

    Attributes:
        bag: Where its features are.
        tiles: Rows of the bag.
        bad_tiles: Tiles that could not be read; they have no row.
        is_new: False if the bag was there already, of the same slide and settings.
        about: The content of ``qc/<name>.json``.
    """

    bag: Path
    tiles: int
    bad_tiles: int
    is_new: bool
    about: dict[str, Any] = field(repr=False)


def extract_slide(
    path: Path,
    out: Path,
    encoder: PatchEncoder,
    settings: ExtractSettings | None = None,
    *,
    name: str,
    patient_id: str | None = None,
    overwrite: bool = False,
    progress: SlideProgress | None = None,
) -> ExtractRecord:
    """Write the bag of a slide, or continue one that a killed run began; a finished one is not made again.

    Args:
        path: The slide.
        out: Output folder.
        encoder: What turns tiles into features.
        settings: All other choices.
        name: Pseudonym of the slide, and the name of its files.
        patient_id: Pseudonym of the patient; default: the slide's.
        overwrite: Throw away what other settings left under this name.
        progress: See `SlideProgress`.

    Raises:
        InputError: No resolution, no tissue, no tile with enough of it, or no stains to normalise.
        FormatError: Not a slide, damaged, or more tiles unreadable than `settings` allow.
        OutputError: A bag of other settings is there.
        RetryableError: Another process writes this bag; a full disk.
    """
    settings = settings or ExtractSettings()
    bag, record_path = out / f"{name}.h5", out / "qc" / f"{name}.json"
    with open_slide(path, settings.slide_mpp, icc=settings.icc) as slide:
        slide.require_mpp()
        key = settings_hash(slide, encoder.info, settings)
        known = None if overwrite else _finished(bag, record_path, key)
        part = bag.with_name(f"{bag.name}.part")
        if known is not None:
            # A process that died between publishing the bag and removing its log.
            with written("the log of a finished bag"):
                discard(part)
            return ExtractRecord(bag, known["tiles"], known["bad_tiles"], False, known)
        if overwrite:
            with written("the earlier bag"):
                discard(bag)
                discard(part)
        tissue = find_tissue(read_overview(slide, settings.tissue), settings.tissue)
        write_png(out / "qc" / f"{name}.png", qc_picture(tissue))
        grid = tile_grid(
            slide,
            tissue,
            mpp=settings.mpp_target,
            size=settings.tile,
            overlap=settings.overlap,
            min_tissue=settings.min_tissue,
        )
        require_tissue(tissue, grid, slide.label)
        about = _about(slide, grid, encoder, settings, key)
        about["qc"] = asdict(tissue_qc(slide, tissue))
        writer = _writer(bag, slide, grid, encoder, settings, key, name, patient_id)
        try:
            bad = _stream(slide, grid, encoder, settings, writer, progress)
            about.update(tiles=writer.done, bad_tiles=bad)
            # Before the bag: a bag without its record would look like someone else's.
            write_text(record_path, json.dumps(about, indent=1))
            writer.commit()
        finally:
            # What was encoded stays for the next run, also when too many tiles failed: a share may have been away.
            writer.close()
    return ExtractRecord(bag, about["tiles"], bad, True, about)


def _stream(
    slide: SlideFile,
    grid: TileGrid,
    encoder: PatchEncoder,
    settings: ExtractSettings,
    writer: BagWriter,
    progress: SlideProgress | None,
) -> int:
    """Encode what is not there yet; returns the number of tiles that could not be read, of all runs together."""
    start = _resume_at(grid, writer, settings.batch)
    bad = min(start, len(grid)) - writer.done
    normalise = fit_stain(slide, grid, settings.stain)
    tell = progress or (lambda done, total: None)
    tell(min(start, len(grid)), len(grid))
    for first in range(start, len(grid), settings.batch):
        last = min(first + settings.batch, len(grid))
        pixels, rows = [], []
        for tile in _some_tiles(slide, grid, first, last):
            if tile.pixels is None:
                bad += 1
                continue
            pixels.append(normalise(tile.pixels))
            rows.append(tile.index)
        if bad > settings.max_bad_share * len(grid):
            # Not at the end: a share that went away would be asked for every tile.
            raise FormatError(
                "too many tiles cannot be read",
                where=slide.label,
                found=f"{bad} of the first {last}",
                wanted=f"at most {settings.max_bad_share:.0%} of {len(grid)}",
                remedy="copy the slide again, or allow more with --max-bad-tiles",
            )
        if rows:
            writer.append(encoder.encode(np.stack(pixels)), grid.coords[rows])
        tell(last, len(grid))
    return bad


def _some_tiles(slide: SlideFile, grid: TileGrid, first: int, last: int) -> Iterator[Any]:
    tiles = read_tiles(slide, grid, first)
    return (tile for tile, _ in zip(tiles, range(last - first), strict=False))


def _resume_at(grid: TileGrid, writer: BagWriter, batch: int) -> int:
    """Number of the first tile of the first batch that is not in the bag.

    An append holds a whole batch, so the last row there tells which batch was the last.
    """
    if not writer.done:
        return 0
    x, y = writer.coords()[-1]
    found = np.flatnonzero((grid.coords == (x, y)).all(axis=1))
    if len(found) != 1:
        raise OutputError(
            "the unfinished bag holds other tiles",
            remedy="begin it again with --overwrite",
        )
    return (int(found[0]) // batch + 1) * batch


def _writer(
    bag: Path,
    slide: SlideFile,
    grid: TileGrid,
    encoder: PatchEncoder,
    settings: ExtractSettings,
    key: str,
    name: str,
    patient_id: str | None,
) -> BagWriter:
    level0_mpp = float(np.mean(slide.require_mpp()))
    return BagWriter(
        bag,
        encoder.info.dim,
        encoder=encoder.info.name,
        mpp=settings.mpp_target,
        patch_size_level0=grid.patch_size_level0,
        slide_id=name,
        patient_id=patient_id or name,
        attributes={
            "patch_size": settings.tile,
            "level0_mpp": level0_mpp,
            # Of TRIDENT's readers: magnification is 10 / mpp.
            "level0_magnification": 10 / level0_mpp,
            "target_magnification": 10 / settings.mpp_target,
            "step_level0": grid.step_level0,
            "overlap": settings.overlap,
            "stain": settings.stain or "none",
            "icc": slide.icc,
            "encoder_sha256": encoder.info.weights_sha256 or "none",
            "settings": key,
        },
    )


def _about(
    slide: SlideFile, grid: TileGrid, encoder: PatchEncoder, settings: ExtractSettings, key: str
) -> dict[str, Any]:
    info = encoder.info
    remarks = []
    if info.mpp is not None and abs(info.mpp / settings.mpp_target - 1) > 0.1:
        remarks.append(f"the encoder was made for {info.mpp:g} um/px, the tiles have {settings.mpp_target:g}")
    if slide.icc == "unreadable":
        remarks.append("the colour profile cannot be read: colours are as stored")
    return {
        "schema": 1,
        "medseq": __version__,
        "settings_hash": key,
        "slide": {
            "format": slide.format,
            "dims": slide.dims,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "objective_power": slide.objective_power,
            "icc": slide.icc,
        },
        "grid": {"tiles": len(grid), "patch_size_level0": grid.patch_size_level0, "step_level0": grid.step_level0},
        "encoder": asdict(info),
        "settings": settings.as_dict(),
        "remarks": remarks,
    }


def _finished(bag: Path, record_path: Path, key: str) -> dict[str, Any] | None:
    """The record of a bag that is there and was made the same way.

    Raises:
        OutputError: It was made another way, or nobody knows how.
    """
    if not bag.exists():
        return None
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        found = record["settings_hash"], int(record["tiles"]), int(record["bad_tiles"])
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found is None or found[0] != key:
        raise OutputError(
            "a bag of this name is there already",
            found="no record of how it was made" if found is None else "another slide, encoder or settings",
            remedy="choose another folder, or replace it with --overwrite",
        )
    return record
