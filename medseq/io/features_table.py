"""Small bags in one text file, as the classical multiple-instance data sets come: a row an instance, no coordinates.

    label of the bag, id of the bag, feature, feature, …

Labels are numbers, ids are any text; a first row of names is skipped. Rows of a bag need not follow each other. The
whole file is in memory: it is for thousands of instances (UCSB breast: 2002 of 708 features), not for slides.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from medseq.errors import FormatError
from medseq.io.features import Bag, require_finite
from medseq.io.kspace_stored import readable
from medseq.io.privacy import path_label

__all__ = ["BagTable", "read_bag_csv"]

_BYTES = 2 << 30
_MAX_LABEL = 1 << 31


class BagTable(NamedTuple):
    """The bags of a file.

    Attributes:
        bags: In the order of their first rows.
        labels: ``(bags,)`` int64.
    """

    bags: list[Bag]
    labels: np.ndarray


def read_bag_csv(path: Path) -> BagTable:
    """All bags of a file.

    Raises:
        FormatError: No rows, rows of different lengths, cells that are no numbers, NaN, a bag with two labels, or a
            label that is no whole number; the message gives the row.
    """
    where = path_label(path)
    with readable(where):
        if path.stat().st_size > _BYTES:
            raise FormatError("the table is too large for this format", where=where, remedy="store the bags as HDF5")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise FormatError("not a text file", where=where, wanted="label, bag, features …") from None
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and not _is_number(rows[0][1].partition(",")[0]):
        del rows[0]
    if not rows:
        raise FormatError("the table holds no instances", where=where, found="0 rows", wanted="label, bag, features …")
    cells = [line.split(",", 2) for _, line in rows]
    short = next((number for (number, _), row in zip(rows, cells, strict=True) if len(row) < 3), None)
    if short is not None:
        raise FormatError("a row is too short", where=f"{where}: row {short}", wanted="label, bag, features …")
    features = _numbers([row[2] for row in cells], [number for number, _ in rows], where)
    require_finite(features, where, rows=np.array([number for number, _ in rows]))
    return _grouped(cells, features, [number for number, _ in rows], where)


def _grouped(cells: list[list[str]], features: np.ndarray, numbers: list[int], where: str) -> BagTable:
    members: dict[str, list[int]] = {}
    labels: dict[str, float] = {}
    for place, (text, name, _) in enumerate(cells):
        label, name = _label(text, f"{where}: row {numbers[place]}"), name.strip()
        if not name:
            raise FormatError("the bag has no id", where=f"{where}: row {numbers[place]}")
        if labels.setdefault(name, label) != label:
            raise FormatError(
                "a bag has two labels",
                where=f"{where}: row {numbers[place]}",
                found=f"{labels[name]} and {label}",
                wanted="one label a bag",
            )
        members.setdefault(name, []).append(place)
    bags = [Bag(features[places], slide_id=name, patient_id=name) for name, places in members.items()]
    return BagTable(bags, np.array(list(labels.values()), np.int64))


def _label(text: str, where: str) -> int:
    if not _is_number(text) or not float(text).is_integer() or abs(float(text)) > _MAX_LABEL:
        raise FormatError("the label is no whole number", where=where, remedy="number the classes from 0")
    return int(float(text))


def _numbers(rows: list[str], numbers: list[int], where: str) -> np.ndarray:
    """Feature cells as ``(n, d)`` float32; a bad row is found and named."""
    try:
        with np.errstate(over="ignore"):
            found = np.loadtxt(rows, delimiter=",", dtype=np.float64, comments=None, ndmin=2).astype(np.float32)
        # A row of blanks is none to numpy.
        if len(found) == len(rows):
            return found
    except ValueError:
        pass
    width = rows[0].count(",")
    for row, number in zip(rows, numbers, strict=True):
        cells = row.split(",")
        if len(cells) != width + 1:
            raise FormatError(
                "rows have different lengths",
                where=f"{where}: row {number}",
                found=f"{len(cells)} features",
                wanted=f"{width + 1}",
            )
        bad = next((place for place, cell in enumerate(cells) if not _is_number(cell)), None)
        if bad is not None:
            raise FormatError("a cell is no number", where=f"{where}: row {number}, column {bad + 3}")
    raise FormatError("the cells are no numbers", where=where)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
