"""Case tables in the layout of CLAM and MambaMIL: which slides there are, of whom, and what is known of each. No torch.

    classification   dir (optional), case_id, slide_id, label
    survival         case_id, slide_id, censorship (1 = censored), survival_months

Other columns are ignored. A slide id may carry the suffix of its slide file (``.svs``), which is removed as a suffix.
Where each slide's bag lies is looked for in CLAM's and TRIDENT's folders. What is refused is named by its row and a
label, never by the id itself (`medseq.io.privacy`).
"""

import csv
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from medseq.errors import ManifestError
from medseq.io.features_open import BAG_SUFFIXES
from medseq.io.kspace_stored import readable
from medseq.io.privacy import label, path_label

__all__ = ["CaseTable", "SlideRow", "Target", "bag_paths", "read_case_table", "read_cells", "slide_name"]

Target = Literal["classification", "survival"]
_NEEDED: dict[str, tuple[str, ...]] = {
    "classification": ("case_id", "slide_id", "label"),
    "survival": ("case_id", "slide_id", "censorship", "survival_months"),
}
_SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".tiff", ".tif", ".dcm", ".vms", ".czi")
_EMPTY = {"", "nan", "na", "n/a", "none", "null"}
# CLAM keeps tensors and HDF5 apart; HDF5 comes first, since it has the coordinates.
_FOLDERS = ("", "h5_files", "pt_files")
_SHOWN = 5


class SlideRow(NamedTuple):
    """One slide.

    Attributes:
        slide_id: Its pseudonym, without the suffix of a slide file.
        case_id: Pseudonym of the patient.
        row: Its line in the table.
        label: Class index; None for survival.
        event: Whether the event was seen; None unless survival.
        months: Follow-up; None unless survival.
        folder: Folder of its bag, as the table says, or None.
    """

    slide_id: str
    case_id: str
    row: int
    label: int | None = None
    event: bool | None = None
    months: float | None = None
    folder: str | None = None


class CaseTable(NamedTuple):
    """The slides of a table.

    Attributes:
        where: What messages call it.
        slides: In its order.
        classes: Names of the classes, by index; empty for survival.
    """

    where: str
    slides: list[SlideRow]
    classes: list[str]

    def cases(self) -> dict[str, list[SlideRow]]:
        """The slides of each patient, patients in the order of their first slides."""
        cases: dict[str, list[SlideRow]] = {}
        for slide in self.slides:
            cases.setdefault(slide.case_id, []).append(slide)
        return cases


def read_case_table(
    path: str | os.PathLike,
    target: Target = "classification",
    *,
    classes: Sequence[str] | None = None,
    per_slide: bool = False,
) -> CaseTable:
    """The slides of a table, with what is known of them.

    Args:
        path: The CSV file.
        target: What is to be learnt.
        classes: Names of the classes in the order of their indices; default: those of the table, numbers by size and
            words by the alphabet.
        per_slide: Slides of one patient may have different labels.

    Raises:
        ManifestError: A column or a cell is missing, a slide is listed twice, a label is not among `classes`, a patient
            has two outcomes, an id is no plain name.
    """
    path = Path(path)
    header, rows = read_cells(path)
    where = path_label(path)
    missing = [name for name in _NEEDED[target] if name not in header]
    if missing:
        raise ManifestError(
            "a column is missing",
            where=where,
            found=", ".join(name for name in header if name) or "none",
            wanted=", ".join(_NEEDED[target]),
            remedy="survival needs censorship and survival_months, classification a label",
        )
    if not rows:
        raise ManifestError("the table lists no slides", where=where)
    cells = [({name: row[header.index(name)].strip() for name in header if name}, line) for line, row in rows]
    names = _classes([cell["label"] for cell, _ in cells], classes) if target == "classification" else []
    slides = [_slide(cell, target, names, f"{where}: row {line}", line) for cell, line in cells]
    table = CaseTable(where, slides, names)
    _require_unique(table)
    if target == "survival" or not per_slide:
        _require_one_outcome(table)
    return table


def bag_paths(table: CaseTable, folder: str | os.PathLike | None = None) -> dict[str, Path]:
    """Where the bag of each slide lies.

    Args:
        table: Its slides.
        folder: Folder of the bags, or of CLAM's ``h5_files`` and ``pt_files``; default: the table's column ``dir``.

    Returns:
        Paths by slide id.

    Raises:
        ManifestError: Slides without a bag, of which the first are named; or neither folder nor column.
    """
    found: dict[str, Path] = {}
    lost: list[SlideRow] = []
    for slide in table.slides:
        base = folder if folder is not None else slide.folder
        if base is None:
            raise ManifestError(
                "nothing says where the bags are", where=table.where, remedy="give the folder, or a column dir"
            )
        path = _find(Path(base), slide.slide_id)
        if path is None:
            lost.append(slide)
        else:
            found[slide.slide_id] = path
    if lost:
        raise ManifestError(
            "slides without a bag",
            where=table.where,
            found=f"{len(lost)} of {len(table.slides)}: {_named(lost)}",
            wanted="<slide_id> with one of " + ", ".join(BAG_SUFFIXES),
            remedy="extract their features, or take their rows out of the table",
        )
    return found


def read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of a CSV file's columns, and its rows with their lines; rows are as long as the header.

    Raises:
        ManifestError: No such file, not text, no header, a column twice, or a row longer than the header.
    """
    where = path_label(path)
    if not path.is_file():
        raise ManifestError("no such table", where=where)
    with readable(where):
        try:
            text = path.read_text(encoding="utf-8-sig")
            lines = list(csv.reader(text.splitlines()))
        except (UnicodeDecodeError, csv.Error):
            raise ManifestError("not a CSV file", where=where) from None
    header = [name.strip() for name in lines[0]] if lines else []
    named = [name for name in header if name]
    if not named or len(set(named)) < len(named):
        raise ManifestError(
            "the first row names the columns, each once", where=where, found=", ".join(header) or "nothing"
        )
    rows = []
    for line, row in enumerate(lines[1:], 2):
        if len(row) > len(header):
            raise ManifestError(
                "a row is longer than the header", where=f"{where}: row {line}", found=len(row), wanted=len(header)
            )
        if any(cell.strip() for cell in row):
            rows.append((line, row + [""] * (len(header) - len(row))))
    return header, rows


def slide_name(text: str, where: str) -> str:
    """A slide id without the suffix of a slide file.

    Raises:
        ManifestError: Nothing, or no plain name: it would lead out of the folder of the bags.
    """
    name = text.strip()
    suffix = next((suffix for suffix in _SLIDE_SUFFIXES if name.lower().endswith(suffix)), "")
    name = name[: len(name) - len(suffix)]
    if name.lower() in _EMPTY:
        raise ManifestError("an id is missing", where=where)
    if name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise ManifestError("an id leads out of its folder", where=where, wanted="a plain name, without / or \\")
    return name


def _slide(cell: dict[str, str], target: Target, names: list[str], where: str, line: int) -> SlideRow:
    slide_id, case_id = slide_name(cell["slide_id"], where), slide_name(cell["case_id"], where)
    folder = cell.get("dir") or None
    if folder is not None and ".." in re.split(r"[/\\]", folder):
        raise ManifestError("a path leaves its folder", where=where, wanted="no '..'")
    if target == "classification":
        return SlideRow(slide_id, case_id, line, label=_label(cell["label"], names, where), folder=folder)
    censored, months = _number(cell["censorship"]), _number(cell["survival_months"])
    if censored not in (0, 1):
        raise ManifestError(
            "censorship is 0 or 1", where=where, found=cell["censorship"] or "nothing", wanted="1 = censored, 0 = event"
        )
    if months is None or months < 0:
        raise ManifestError(
            "survival_months is no time", where=where, found=cell["survival_months"] or "nothing", wanted="0 or more"
        )
    return SlideRow(slide_id, case_id, line, event=censored == 0, months=months, folder=folder)


def _classes(labels: list[str], wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        return [str(name) for name in wanted]
    found = {text for text in labels if text.lower() not in _EMPTY}
    numbers = {text: _number(text) for text in found}
    if all(number is not None for number in numbers.values()):
        return sorted(found, key=lambda text: numbers[text] or 0.0)
    return sorted(found)


def _label(text: str, names: list[str], where: str) -> int:
    if text.lower() in _EMPTY:
        raise ManifestError("the label is missing", where=where, wanted=", ".join(names))
    # A spreadsheet may have made 1.0 of 1.
    found = next((name for name in (text, text.removesuffix(".0")) if name in names), None)
    if found is None:
        raise ManifestError("the label is no class", where=where, found=text, wanted=", ".join(names))
    return names.index(found)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _require_unique(table: CaseTable) -> None:
    seen: dict[str, int] = {}
    for slide in table.slides:
        first = seen.setdefault(slide.slide_id, slide.row)
        if first != slide.row:
            raise ManifestError(
                "a slide is listed twice",
                where=table.where,
                found=f"slide {label(slide.slide_id)} in rows {first} and {slide.row}",
                wanted="one row a slide",
            )


def _require_one_outcome(table: CaseTable) -> None:
    for case_id, slides in table.cases().items():
        outcomes = {(slide.label, slide.event, slide.months) for slide in slides}
        if len(outcomes) > 1:
            rows = ", ".join(str(slide.row) for slide in slides[:_SHOWN])
            raise ManifestError(
                "the slides of a patient disagree",
                where=table.where,
                found=f"patient {label(case_id)}, rows {rows}",
                wanted="one outcome a patient",
                remedy="correct the table, or train on single slides",
            )


def _find(folder: Path, slide_id: str) -> Path | None:
    """The bag of a slide, under its name with or without the suffix of its slide file."""
    for inner in _FOLDERS:
        for suffix in BAG_SUFFIXES:
            for name in (slide_id, *(slide_id + ending for ending in _SLIDE_SUFFIXES)):
                path = folder / inner / f"{name}{suffix}"
                if path.exists():
                    return path
    return None


def _named(slides: list[SlideRow]) -> str:
    shown = ", ".join(f"row {slide.row} ({label(slide.slide_id)})" for slide in slides[:_SHOWN])
    return shown + (", …" if len(slides) > _SHOWN else "")
