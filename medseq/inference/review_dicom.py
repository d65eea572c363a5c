"""Decisions that count as DICOM reports and key objects, one pair for every decision about a series. No torch."""

from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import MedseqError
from medseq.inference.review_geometry import Geometry, require_plane
from medseq.inference.review_runs import Runs
from medseq.inference.review_schema import ReviewState
from medseq.inference.review_words import reason_words
from medseq.io.dicom import group_dicom, require_pydicom
from medseq.io.dicom_review import Region, ReviewNote, write_key_object, write_structured_report

__all__ = ["export_reports"]


def export_reports(runs: Runs, folder: Path) -> int:
    """Write ``<item>-<event>-sr.dcm`` and ``-ko.dcm``; items that are no DICOM series have none.

    Args:
        runs: The runs.
        folder: Where to; created if missing.

    Returns:
        Decisions that were written.

    Raises:
        FormatError: A reviewed image that cannot be read.
        BackendError: pydicom is not installed.
    """
    require_pydicom()
    written = 0
    for info, store in runs.stores():
        codes = {record.seq: record.mac for record in store.records()}
        for item in runs.items_of(info.number):
            state = runs.state(item.token)
            verdicts = [*state.verdicts.values(), *([state.adjudication] if state.adjudication else [])]
            images = _images(runs, item.token) if verdicts else []
            for verdict in verdicts if images else []:
                note = ReviewNote(
                    reviewer=verdict.reviewer,
                    decision=verdict.decision,
                    ts_utc=verdict.ts_utc,
                    event=f"{verdict.seq}:{codes[verdict.seq]}",
                    score=verdict.score,
                    reason=reason_words(verdict.reason_code),
                    comment=verdict.comment or "",
                    model=info.method,
                    regions=_regions(state, verdict.reviewer, images),
                )
                name = f"{item.item_id}-{verdict.seq}"
                write_structured_report(folder / f"{name}-sr.dcm", images, note)
                write_key_object(folder / f"{name}-ko.dcm", images, note)
                written += 1
    return written


def _regions(state: ReviewState, reviewer: str, images: list[Path]) -> tuple[Region, ...]:
    """What a reviewer marked, as places in the patient: points, and boxes by their four corners.

    A mark says ``plane``, ``slice`` and ``corners``, columns and rows on the screen counted from voxel centres
    (`Geometry.screen_affine`). Marks that cannot be placed, of slides or of volumes with uneven slices, are left out.
    """
    marks = [mark for mark in state.annotations if mark.get("reviewer") == reviewer and mark.get("corners")]
    stacks = group_dicom(images)[0] if marks else []
    if len(stacks) != 1 or stacks[0].header.affine is None:
        return ()
    geometry = Geometry(stacks[0].header)
    return tuple(region for mark in marks if (region := _region(geometry, mark)) is not None)


def _region(geometry: Geometry, mark: dict[str, Any]) -> Region | None:
    try:
        matrix = geometry.screen_affine(require_plane(str(mark["plane"])))
        corners = np.asarray(mark["corners"], dtype=np.float64).reshape(-1, 2)
        through = float(mark["slice"])
    except (KeyError, ValueError, TypeError):
        return None
    if len(corners) == 2:
        (x0, y0), (x1, y1) = corners
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if not np.isfinite(corners).all() or len(corners) not in (1, 4):
        return None
    places = np.column_stack([corners, np.full(len(corners), through), np.ones(len(corners))])
    return Region((places @ matrix.T)[:, :3], f"mark of event {mark['seq']}")


def _images(runs: Runs, token: str) -> list[Path]:
    """The DICOM files of a result that are as they were recorded."""
    try:
        files = [file for file in runs.outputs(token) if file.role == "result" and file.path.suffix.lower() == ".dcm"]
    except MedseqError:
        return []
    return [] if any(file.problem for file in files) else [file.path for file in files]
