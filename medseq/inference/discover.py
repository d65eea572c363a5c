"""From an input folder to items: DICOM stacks, NIfTI volumes, what is no input, what is broken. No pixels, no torch.

Every file below the root ends in exactly one item, so that a run can account for all of them. Links are not followed:
one that leaves the root would read what was never given, one that stays inside would read a file twice.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseq.errors import BackendError, InputError, MedseqError
from medseq.inference.ledger_schema import FileRow
from medseq.io.privacy import label
from medseq.io.source import source_warnings

if TYPE_CHECKING:
    from medseq.io.dicom import DicomStack
    from medseq.io.volume import Modality, Units, VolumeReader

__all__ = ["Found", "discover", "input_root", "open_input", "walk"]

_NIFTI = (".nii", ".nii.gz")
_DICOM_MAGIC_AT = 128
_Refusal = Literal["failed", "skipped"]


@dataclass(frozen=True)
class Found:
    """One input.

    Attributes:
        item_id: 16 hexadecimal digits, the same in every run over the same input.
        kind: ``dicom``, ``nifti`` or ``other``.
        label: Opaque name for messages.
        files: Files by path below the root.
        state: ``queued`` (an image), ``failed`` (a broken image) or ``skipped`` (no image).
        reason_code: Stable word for machines, None if queued.
        reason: Sentence for people, without identifiers, None if queued.
        remarks: Code and message of what the grouping found out, such as several stacks in one series.
    """

    item_id: str
    kind: Literal["dicom", "nifti", "other"]
    label: str
    files: tuple[FileRow, ...]
    state: Literal["queued", "failed", "skipped"] = "queued"
    reason_code: str | None = None
    reason: str | None = None
    remarks: tuple[tuple[str, str], ...] = ()


def input_root(source: Path) -> Path:
    """The folder that relative paths start at: the input itself, or the folder of a single input file.

    Raises:
        InputError: The input does not exist.
    """
    if not source.exists():
        raise InputError("the input does not exist", wanted="a folder or a file")
    source = source.resolve()
    return source if source.is_dir() else source.parent


def discover(source: Path) -> Iterator[Found]:
    """Walk `source` (a folder or one file) and yield its items; DICOM last, since a series is known only at the end.

    Raises:
        InputError: The input does not exist.
    """
    root = input_root(source)
    candidates: list[Path] = []
    entries = walk(root) if source.is_dir() else iter([(source.resolve(), None)])
    for path, refusal in entries:
        if refusal is not None:
            yield _refused(root, path, *refusal)
        elif path.name.lower().endswith(_NIFTI):
            yield from _nifti(root, path)
        else:
            candidates.append(path)
    if candidates:
        yield from _dicom(root, candidates)


def walk(root: Path) -> Iterator[tuple[Path, tuple[_Refusal, str, str] | None]]:
    """Files below `root`, depth first and sorted by name, each with None or the reason why it is left out.

    Yields:
        Path and ``(state, reason code, reason)``; a hidden folder or a link is one entry.
    """
    try:
        with os.scandir(root) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        yield root, ("failed", "unreadable", f"the folder cannot be read ({error.strerror})")
        return
    for entry in entries:
        path = Path(entry.path)
        if not _is_text(entry.name):
            yield path, ("failed", "name", "the file's name is not UTF-8; rename it")
        elif entry.name.startswith("."):
            yield path, ("skipped", "hidden", "hidden files and folders are not read")
        elif entry.is_symlink():
            yield path, ("skipped", "link", "links are not followed; give the folder that holds the file itself")
        elif entry.is_dir(follow_symlinks=False):
            yield from walk(path)
        elif entry.is_file(follow_symlinks=False):
            yield path, None
        else:
            yield path, ("skipped", "special", "not a regular file")


def open_input(
    root: Path, item_id: str, kind: str, relpaths: Sequence[str], *, modality: "Modality | None", units: "Units"
) -> "VolumeReader":
    """Open the pixels of a discovered item, in any process.

    Args:
        root: The `input_root`.
        item_id: Which item of its files; one multi-frame file may hold several stacks.
        kind: ``dicom`` or ``nifti``.
        relpaths: Its files below `root`.
        modality: What the caller says a NIfTI shows (the format does not tell).
        units: The units of a NIfTI whose modality the caller gave.

    Raises:
        FormatError: The files cannot be read.
        InputError: They are no longer what was discovered.
    """
    paths = [root / relpath for relpath in relpaths]
    if kind == "nifti":
        from medseq.io.nifti import open_nifti

        return open_nifti(paths[0], modality=modality or "OT", units=units if modality else "1")
    from medseq.io.dicom import group_dicom, open_dicom

    stacks, _, broken = group_dicom(paths)
    for stack in stacks:
        if _stack_id(stack) == item_id:
            return open_dicom(stack)
    if broken:
        raise broken[0].error
    raise InputError("the files changed since they were found", remedy="run again when nothing writes to the input")


def _nifti(root: Path, path: Path) -> Iterator[Found]:
    relpath = _relpath(root, path)
    files = _files(root, [path])
    if files:
        yield Found(_item_id("nifti", [relpath]), "nifti", label(relpath), files)


def _dicom(root: Path, candidates: list[Path]) -> Iterator[Found]:
    from medseq.io.dicom import group_dicom

    try:
        stacks, skipped, broken = group_dicom(candidates)
    except BackendError as error:
        yield from _without_pydicom(root, candidates, error)
        return
    for skip in skipped:
        yield _refused(root, skip.path, "skipped", skip.reason_code, skip.reason)
    for bad in broken:
        yield _broken(root, bad.paths, bad.label, bad.error)
    for stack in stacks:
        remarks = tuple((warning.code, warning.message) for warning in source_warnings(stack.header))
        files = _files(root, stack.files)
        yield Found(_stack_id(stack), "dicom", label(stack.series_uid), files, remarks=remarks)


def _stack_id(stack: "DicomStack") -> str:
    return _item_id("dicom", sorted(stack.sop_uids))


def _without_pydicom(root: Path, candidates: list[Path], error: BackendError) -> Iterator[Found]:
    for path in candidates:
        try:
            with path.open("rb") as stream:
                is_dicom = stream.read(_DICOM_MAGIC_AT + 4)[_DICOM_MAGIC_AT:] == b"DICM"
        except OSError:
            is_dicom = False
        if is_dicom:
            yield _broken(root, (path,), label(_relpath(root, path)), error)
        else:
            yield _refused(root, path, "skipped", "not-dicom", "neither DICOM nor NIfTI")


def _broken(root: Path, paths: Sequence[Path], name: str, error: MedseqError) -> Found:
    relpaths = sorted(_relpath(root, path) for path in paths)
    return Found(_item_id("broken", relpaths), "dicom", name, _files(root, paths), "failed", error.code, str(error))


def _refused(root: Path, path: Path, state: _Refusal, code: str, reason: str) -> Found:
    relpath = _relpath(root, path)
    return Found(_item_id("other", [relpath]), "other", label(relpath), _files(root, [path]), state, code, reason)


def _files(root: Path, paths: Iterable[Path]) -> tuple[FileRow, ...]:
    """Rows of the files that still exist; of a link, the link itself."""
    rows = []
    for path in paths:
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        rows.append(FileRow(_relpath(root, path), status.st_size, status.st_mtime_ns))
    return tuple(rows)


def _relpath(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _item_id(kind: str, names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join([kind, *names]).encode()).hexdigest()[:16]
