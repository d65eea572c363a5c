"""Who is trained on, who stops the training, who is tested: splits by patient. No torch.

    CLAM, MambaMIL   a CSV with columns train, val, test (val or test may be missing), one id a cell, columns of
                     different lengths: slide ids for classification, case ids for survival
    CLAM "bool"      slide ids in the first column, True or False under train, val and test
    manifest         a role a subject, see `medseq.io.manifest`

A patient in two parts is refused, whatever the file says: the score would be of people that were trained on.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from medseq.errors import ManifestError
from medseq.io.atomic import clear, fsync, publish, written
from medseq.io.bag_table import CaseTable, SlideRow, read_cells, slide_name
from medseq.io.manifest import ManifestFile, Role
from medseq.io.privacy import label, path_label

__all__ = ["ROLES", "Split", "read_split_csv", "split_by_manifest", "write_split_csv"]

ROLES: tuple[Role, ...] = get_args(Role)
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}


class Split(NamedTuple):
    """Slide ids of each part.

    Attributes:
        train: To learn from.
        val: To stop at, and to fit thresholds to.
        test: To report.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def part(self, role: Role) -> tuple[str, ...]:
        """The slide ids of a role."""
        return getattr(self, role)

    def slides(self, table: CaseTable, role: Role) -> list[SlideRow]:
        """The slides of a role, in the order of the table."""
        wanted = set(self.part(role))
        return [slide for slide in table.slides if slide.slide_id in wanted]


def read_split_csv(path: str | os.PathLike, table: CaseTable) -> Split:
    """A split in CLAM's layout; slides of the table that it does not name are left out.

    Args:
        path: The file.
        table: Knows the slides and whose they are. A case id stands for all slides of the case.

    Raises:
        ManifestError: No such columns, an id that is not in the table, slide and case ids mixed, an id twice, no
            training part, or a patient in two parts.
    """
    path = Path(path)
    where = path_label(path)
    header, rows = read_cells(path)
    columns = {role: header.index(role) for role in ROLES if role in header}
    if "train" not in columns or len(columns) < 2:
        raise ManifestError(
            "no split in this file",
            where=where,
            found=", ".join(name for name in header if name),
            wanted="columns train, val, test; one of the last two may be missing",
        )
    cells = [
        (line, {role: row[place].strip() for role, place in columns.items()}, row[0].strip()) for line, row in rows
    ]
    if all(value.lower() in _TRUTH for _, row, _ in cells for value in row.values()) and header[0] not in ROLES:
        entries = [(role, name, line) for line, row, name in cells for role in row if _TRUTH[row[role].lower()]]
    else:
        entries = [(role, row[role], line) for line, row, _ in cells for role in row if row[role]]
    return _resolved(entries, table, where)


def split_by_manifest(files: Sequence[ManifestFile], table: CaseTable) -> tuple[Split, dict[str, Path]]:
    """The split of a manifest whose files are bags, named by their slide ids.

    Args:
        files: See `medseq.io.manifest.read_manifest`, which refuses a subject in two parts.
        table: Knows the slides and whose they are.

    Returns:
        The split and the path of each slide's bag.

    Raises:
        ManifestError: A file of a slide that is not in the table, two files of a slide, a patient in two parts.
    """
    where = "the manifest"
    paths: dict[str, Path] = {}
    entries: list[tuple[Role, str, int]] = []
    for number, file in enumerate(files):
        name = slide_name(file.path.stem, f"{where}: entry {number}")
        if name in paths:
            raise ManifestError("two files of a slide", where=where, found=f"slide {label(name)}")
        paths[name] = file.path
        entries.append((file.role, name, number))
    return _resolved(entries, table, where, "entry"), paths


def write_split_csv(path: str | os.PathLike, split: Split) -> Path:
    """Write a split in CLAM's layout; it appears whole or not at all.

    Raises:
        OutputError: The folder cannot be written.
        RetryableError: A full disk.
    """
    target, text = Path(path), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *ROLES])
    for number in range(max(map(len, split))):
        writer.writerow([number, *(ids[number] if number < len(ids) else "" for ids in split)])
    partial = clear(target)
    with written("the split"):
        partial.write_text(text.getvalue(), encoding="utf-8")
        fsync(partial)
    publish(partial, target)
    return target


def _resolved(lines: Iterable[tuple[Role, str, int]], table: CaseTable, where: str, unit: str = "row") -> Split:
    """Ids of slides or of cases as slides, every patient in one part."""
    known = {slide.slide_id: [slide] for slide in table.slides}
    cases = table.cases()
    entries = [(role, name, f"{where}: {unit} {line}") for role, name, line in lines]
    # Survival splits list cases, classification splits list slides; a file lists one kind.
    counts = [sum(_known(name, ids, at) is not None for _, name, at in entries) for ids in (known, cases)]
    index, other = (known, cases) if counts[0] >= counts[1] else (cases, known)
    seen: dict[str, Role] = {}
    parts: dict[Role, list[SlideRow]] = {role: [] for role in ROLES}
    for role, name, at in entries:
        found = _known(name, index, at)
        if found is None:
            mixed = _known(name, other, at) is not None
            raise ManifestError(
                "slide ids and case ids are mixed" if mixed else "an id is not in the table",
                where=at,
                found=f"{label(name)} under {role}",
                wanted="slide ids of the table, or case ids of the table",
            )
        if found in seen:
            twice = f"{label(found)} under {seen[found]} and {role}"
            raise ManifestError("an id is listed twice", where=at, found=twice)
        seen[found] = role
        parts[role] += index[found]
    _require_apart(parts, where)
    train, val, test = (tuple(slide.slide_id for slide in parts[role]) for role in ROLES)
    return Split(train, val, test)


def _known(name: str, index: dict[str, list[SlideRow]], where: str) -> str | None:
    """The id under which the table has it: without a slide's suffix, or without the .0 of a spreadsheet."""
    name = slide_name(name, where)
    return next((form for form in (name, name.removesuffix(".0")) if form in index), None)


def _require_apart(parts: dict[Role, list[SlideRow]], where: str) -> None:
    if not parts["train"]:
        raise ManifestError("the training part is empty", where=where)
    roles: dict[str, Role] = {}
    for role, slides in parts.items():
        for slide in slides:
            if roles.setdefault(slide.case_id, role) != role:
                raise ManifestError(
                    "a patient is in two parts of the split",
                    where=where,
                    found=f"patient {label(slide.case_id)} in {roles[slide.case_id]} and {role}",
                    wanted="all slides of a patient in one part",
                    remedy="split by patient: the score would be of people that were trained on",
                )
