"""Many slides to bags, unattended: one bad slide never stops the others, and a run that was killed continues.

OUT/extract.json says what became of every slide. Names of files are those of the slides (``names="source"``), as tables
of labels have them, or hashes (``names="id"``) where a name may be a patient's.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medseq import __version__
from medseq.errors import BackendError, InputError, MedseqError
from medseq.inference.encoders import PatchEncoder
from medseq.inference.extract import extract_slide
from medseq.inference.extract_settings import ExtractSettings
from medseq.inference.run_folder import lock, prepared, require_apart, write_text
from medseq.inference.worker import describe_failure
from medseq.io.privacy import path_label
from medseq.io.slide_find import find_slides, slide_name

__all__ = ["ExtractSummary", "Names", "SlideOutcome", "bag_names", "extract_folder"]

logger = logging.getLogger(__name__)

# Called with (finished tiles, all tiles of the slide, "slide 2 of 5").
Progress = Callable[[int, int, str], None]
Names = Literal["source", "id"]


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide.

    Attributes:
        label: Stands for its file.
        name: Name of its bag.
        state: ``done`` or ``failed``.
        reason_code: Of a failure.
        reason: Of a failure, for people; without identifiers.
        tiles: Rows of its bag.
        bad_tiles: Tiles that could not be read.
        is_new: Made by this call.
        remarks: What is good to know.
    """

    label: str
    name: str
    state: Literal["done", "failed"]
    reason_code: str | None = None
    reason: str | None = None
    tiles: int = 0
    bad_tiles: int = 0
    is_new: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtractSummary:
    """What `extract_folder` did.

    Attributes:
        outcomes: One a slide, in the order of their paths.
        exit_code: 0 all done, 2 nothing found, 3 some failed.
    """

    outcomes: tuple[SlideOutcome, ...] = field(repr=False)
    exit_code: int

    @property
    def counts(self) -> dict[str, int]:
        """Slides by state."""
        return dict(Counter(outcome.state for outcome in self.outcomes))


def extract_folder(
    input: str | Path,
    output: str | Path,
    encoder: PatchEncoder,
    settings: ExtractSettings | None = None,
    *,
    names: Names = "source",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExtractSummary:
    """Write a bag of features for every slide of a folder (or for the one file).

    Args:
        input: A slide, or a folder of slides.
        output: Folder for the bags; never inside `input`.
        encoder: What turns tiles into features (`medseq.inference.encoders.load_encoder`).
        settings: Resolution, tiles, stain and the rest.
        names: ``source`` names bags like their slides, ``id`` by a hash.
        overwrite: Replace bags of other settings.
        progress: See `Progress`.

    Raises:
        InputError: No such input, or tiles that the encoder does not take.
        OutputError: `output` cannot be written, lies inside `input`, or another run is working there.
        BackendError: A library is missing.
    """
    source, out = Path(input), Path(output)
    settings = settings or ExtractSettings()
    _require_fit(encoder, settings)
    slides = find_slides(source)
    root = source if source.is_dir() else source.parent
    if source.is_dir():
        require_apart(source, out)
    if not slides:
        return ExtractSummary((), 2)
    called = bag_names(slides, root, names)
    outcomes = []
    with prepared(out), lock(out):
        for number, (path, name) in enumerate(zip(slides, called, strict=True), 1):
            text = f"slide {number} of {len(slides)}"
            outcome = _one(path, out, encoder, settings, name, called.count(name), overwrite, progress, text)
            logger.info("%s: %s %s", outcome.label, outcome.state, outcome.reason or f"{outcome.tiles} tiles")
            outcomes.append(outcome)
            # After every slide: a killed run leaves a table of what it did.
            _write_summary(out, encoder, settings, outcomes, len(slides))
    failed = any(outcome.state == "failed" for outcome in outcomes)
    return ExtractSummary(tuple(outcomes), 3 if failed else 0)


def _one(  # noqa: PLR0913  (one call, for the only place that catches)
    path: Path,
    out: Path,
    encoder: PatchEncoder,
    settings: ExtractSettings,
    name: str,
    namesakes: int,
    overwrite: bool,
    progress: Progress | None,
    text: str,
) -> SlideOutcome:
    label = path_label(path)
    tell = None if progress is None else lambda done, total: progress(done, total, text)
    try:
        if namesakes > 1:
            raise InputError("several slides have the same name", found=namesakes, remedy="use --names id")
        record = extract_slide(path, out, encoder, settings, name=name, overwrite=overwrite, progress=tell)
    except BackendError:
        # Missing for one, missing for all.
        raise
    except (MedseqError, OSError, MemoryError) as error:
        code, reason = describe_failure(error)
        return SlideOutcome(label, name, "failed", code, reason.removeprefix(f"{label}: "))
    remarks = tuple(record.about["remarks"])
    return SlideOutcome(label, name, "done", None, None, record.tiles, record.bad_tiles, record.is_new, remarks)


def bag_names(slides: Sequence[Path], root: Path, names: Names) -> list[str]:
    """What the outputs of slides are called; the same name twice means that they cannot be told apart."""
    if names == "source":
        return [slide_name(path) for path in slides]
    relative = [path.relative_to(root).as_posix().encode("utf-8", "surrogateescape") for path in slides]
    return [hashlib.sha256(b"slide" + text).hexdigest()[:16] for text in relative]


def _require_fit(encoder: PatchEncoder, settings: ExtractSettings) -> None:
    side = encoder.info.tile_size
    if side is not None and side != settings.tile:
        raise InputError(
            "tiles do not fit the encoder",
            where=encoder.info.name,
            found=f"tiles of {settings.tile}",
            wanted=f"tiles of {side}",
            remedy=f"use --tile {side}",
        )


def _write_summary(
    out: Path, encoder: PatchEncoder, settings: ExtractSettings, outcomes: Sequence[SlideOutcome], total: int
) -> None:
    content: dict[str, Any] = {
        "schema": 1,
        "medseq": __version__,
        "research_use_only": True,
        "written_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "slides": total,
        "encoder": asdict(encoder.info),
        "settings": settings.as_dict(),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    write_text(out / "extract.json", json.dumps(content, indent=1))
