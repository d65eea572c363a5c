"""Decisions that count as DICOM reports and key objects, one pair for every decision about a series. No torch."""

from pathlib import Path

from medseq.errors import MedseqError
from medseq.inference.review_runs import Runs
from medseq.inference.review_words import reason_words
from medseq.io.dicom_review import ReviewNote, write_key_object, write_structured_report

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
    """
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
                )
                name = f"{item.item_id}-{verdict.seq}"
                write_structured_report(folder / f"{name}-sr.dcm", images, note)
                write_key_object(folder / f"{name}-ko.dcm", images, note)
                written += 1
    return written


def _images(runs: Runs, token: str) -> list[Path]:
    """The DICOM files of a result that are as they were recorded."""
    try:
        files = [file for file in runs.outputs(token) if file.role == "result" and file.path.suffix.lower() == ".dcm"]
    except MedseqError:
        return []
    return [] if any(file.problem for file in files) else [file.path for file in files]
