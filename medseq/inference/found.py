"""What discovery says of one input: its item, or why it is none. No pixels, no torch."""

import hashlib
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseq.errors import MedseqError
from medseq.inference.ledger_schema import FileRow
from medseq.inference.unpack import FOLDER
from medseq.io.privacy import label

__all__ = ["Found", "Refusal", "broken_item", "file_rows", "item_id", "refused_item", "relative"]

Refusal = Literal["failed", "skipped"]
Kind = Literal["dicom", "nifti", "kspace", "bag", "slide", "other"]


@dataclass(frozen=True)
class Found:
    """One input.

    Attributes:
        item_id: 16 hexadecimal digits, the same in every run over the same input.
        kind: ``dicom``, ``nifti``, ``kspace``, ``bag``, ``slide`` or ``other``.
        label: Opaque name for messages.
        files: Files by path below the root.
        state: ``queued`` (an image), ``failed`` (a broken image) or ``skipped`` (no image).
        reason_code: Stable word for machines, None if queued.
        reason: Sentence for people, without identifiers, None if queued.
        remarks: Code and message of what the grouping found out, such as several stacks in one series.
    """

    item_id: str
    kind: Kind
    label: str
    files: tuple[FileRow, ...]
    state: Literal["queued", "failed", "skipped"] = "queued"
    reason_code: str | None = None
    reason: str | None = None
    remarks: tuple[tuple[str, str], ...] = ()


def broken_item(root: Path, paths: Sequence[Path], name: str, error: MedseqError, kind: Kind = "dicom") -> Found:
    """An input that should be an image and cannot be read."""
    relpaths = sorted(relative(root, path) for path in paths)
    return Found(item_id("broken", relpaths), kind, name, file_rows(root, paths), "failed", error.code, str(error))


def refused_item(root: Path, path: Path, state: Refusal, code: str, reason: str) -> Found:
    """A file that is left out, and why."""
    relpath = relative(root, path)
    return Found(item_id("other", [relpath]), "other", label(relpath), file_rows(root, [path]), state, code, reason)


def file_rows(root: Path, paths: Iterable[Path]) -> tuple[FileRow, ...]:
    """Rows of the files that still exist; of a link, the link itself."""
    rows = []
    for path in paths:
        try:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) and root.name == FOLDER and path.parent == path.parent.resolve():
                # Not the input's own link: it stands for a file beside an unpacked archive.
                status = path.readlink().lstat()
        except FileNotFoundError:
            continue
        rows.append(FileRow(relative(root, path), status.st_size, status.st_mtime_ns))
    return tuple(rows)


def relative(root: Path, path: Path) -> str:
    """Path below the root, with slashes; bytes that are no text are escaped."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def item_id(kind: str, names: Sequence[str]) -> str:
    """16 hexadecimal digits of what makes an input the same input."""
    return hashlib.sha256("\n".join([kind, *names]).encode()).hexdigest()[:16]
