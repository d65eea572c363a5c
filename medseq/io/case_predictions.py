"""Predictions of a cross-validation, one row a patient and repetition, as a CSV file. No torch.

classes    repeat, fold, patient, label, call, p0, p1, …
survival   repeat, fold, patient, time_bin, event, months, risk
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medseq.errors import FormatError
from medseq.io.atomic import clear, fsync, publish, written
from medseq.io.privacy import path_label

__all__ = ["CasePredictions", "joined", "read_predictions", "write_predictions"]

_CLASSES = ["repeat", "fold", "patient", "label", "call"]
_SURVIVAL = ["repeat", "fold", "patient", "time_bin", "event", "months", "risk"]


class CasePredictions(NamedTuple):
    """What models said of patients they had not seen.

    repeat, fold: Which model; ``(row,)`` int.
    patient: Pseudonyms.
    label: Class, or time bin of that fold's training part.
    probability: ``(row, class)``, at the temperature of the fold's validation part; None for survival.
    call: Class by that part's threshold; None for survival.
    risk, event, months: Of survival; else None.
    """

    repeat: np.ndarray
    fold: np.ndarray
    patient: list[str]
    label: np.ndarray
    probability: np.ndarray | None = None
    call: np.ndarray | None = None
    risk: np.ndarray | None = None
    event: np.ndarray | None = None
    months: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "CasePredictions":
        """Some of the rows."""
        kept: dict[str, Any] = {
            name: None if part is None else part[rows] for name, part in self._asdict().items() if name != "patient"
        }
        return self._replace(patient=[self.patient[i] for i in rows], **kept)


def joined(parts: Sequence[CasePredictions]) -> CasePredictions:
    """All rows of several files of one kind."""
    names = [name for name in CasePredictions._fields if name != "patient" and getattr(parts[0], name) is not None]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return parts[0]._replace(patient=[name for part in parts for name in part.patient], **columns)


def write_predictions(path: Path, predictions: CasePredictions) -> Path:
    """Write the file; it appears whole or not at all. Numbers are written so that they are read back exactly.

    Raises:
        OutputError: The folder cannot be written.
        RetryableError: A full disk.
    """
    p, text = predictions, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    front = [p.repeat.tolist(), p.fold.tolist(), p.patient, p.label.tolist()]
    if p.probability is not None and p.call is not None:
        writer.writerow([*_CLASSES, *(f"p{k}" for k in range(p.probability.shape[1]))])
        columns = [*front, p.call.tolist(), *p.probability.T.tolist()]
    else:
        assert p.event is not None
        assert p.months is not None
        assert p.risk is not None
        writer.writerow(_SURVIVAL)
        columns = [*front, p.event.astype(int).tolist(), p.months.tolist(), p.risk.tolist()]
    writer.writerows(zip(*columns, strict=True))
    partial = clear(path)
    with written("the predictions"):
        partial.write_text(text.getvalue(), encoding="utf-8")
        fsync(partial)
    publish(partial, path)
    return path


def read_predictions(path: Path) -> CasePredictions:
    """Read what `write_predictions` wrote.

    Raises:
        FormatError: No such file, other columns, no rows, or a cell that is no finite number.
    """
    where = path_label(path)
    try:
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError, ValueError, csv.Error):
        raise FormatError("the predictions cannot be read", where=where) from None
    classes = header[: len(_CLASSES)] == _CLASSES and len(header) >= len(_CLASSES) + 2
    if not (classes or header == _SURVIVAL) or not rows or any(len(row) != len(header) for row in rows):
        raise FormatError(
            "not a file of predictions", where=where, found=f"{len(rows)} rows", wanted=", ".join(_CLASSES)
        )
    try:
        numbers = np.array([[float(cell) for cell in (*row[:2], *row[3:])] for row in rows])
    except ValueError:
        raise FormatError("a cell is no number", where=where) from None
    if not np.isfinite(numbers).all():
        raise FormatError("a number is not finite", where=where)
    repeat, fold, label = numbers[:, :3].T.astype(int)
    patient = [row[2] for row in rows]
    if classes:
        return CasePredictions(repeat, fold, patient, label, numbers[:, 4:], numbers[:, 3].astype(int))
    event, months, risk = numbers[:, 3:].T
    return CasePredictions(repeat, fold, patient, label, None, None, risk, event.astype(bool), months)
