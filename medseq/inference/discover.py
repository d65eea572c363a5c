"""From an input folder to items: images, raw MR data, slides; what is no input, what is broken. No pixels, no torch.

Every file below the root ends in exactly one item, so that a run can account for all of them. Links are not followed:
one that leaves the root would read what was never given, one that stays inside would read a file twice.
"""

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseq.errors import BackendError, InputError, MedseqError
from medseq.inference.choice import Choice
from medseq.inference.discover_kspace import discover_kspace
from medseq.inference.discover_mil import discover_mil
from medseq.inference.found import Found, Refusal, broken_item, file_rows, item_id, refused_item, relative
from medseq.io.privacy import label
from medseq.io.source import source_warnings

if TYPE_CHECKING:
    from medseq.io.dicom import DicomStack
    from medseq.io.volume import Modality, Units, VolumeReader

__all__ = ["discover", "input_root", "open_input", "walk"]

_NIFTI = (".nii", ".nii.gz")
_DICOM_MAGIC_AT = 128


def input_root(source: Path) -> Path:
    """The folder that relative paths start at: the input itself, or the folder of a single input file.

    Raises:
        InputError: The input does not exist.
    """
    if not source.exists():
        raise InputError("the input does not exist", wanted="a folder or a file")
    source = source.resolve()
    return source if source.is_dir() else source.parent


def discover(
    source: Path,
    inputs: str = "volume",
    fft: str | None = None,
    sens_maps: Path | None = None,
    choice: Choice | None = None,
    *,
    links: Collection[Path] = (),
    broken: Mapping[Path, MedseqError] | None = None,
) -> Iterator[Found]:
    """Walk `source` (a folder or one file) and yield its items; DICOM last, since a series is known only at the end.

    Args:
        source: A folder or a file.
        inputs: What the bundle takes: ``volume`` (DICOM, NIfTI), ``kspace``, or ``bag`` and ``slide``, which are one.
        fft: Fourier convention of raw data, where the caller knows it better than the files.
        sens_maps: Sensitivity maps for raw data, a file or a folder: not scans, should they lie in the input.
        choice: Which files the caller wants; default: all.
        links: Links below `source` that stand for what they lead to; all others are refused.
        broken: Archives below it that could not be unpacked, and why (`medseq.inference.input_place`).

    Raises:
        InputError: The input does not exist.
    """
    root, choice = input_root(source), choice or Choice()
    candidates: list[Path] = []
    entries = walk(root, links) if source.is_dir() else iter([(source.resolve(), None)])
    for path, refusal in entries:
        if refusal is not None:
            yield refused_item(root, path, *refusal)
        elif not choice.wants(relative(root, path)):
            yield refused_item(root, path, "skipped", "excluded", "left out by --include or --exclude")
        elif broken and path in broken:
            yield broken_item(root, (path,), label(relative(root, path)), broken[path], "other")
        elif inputs == "volume" and path.name.lower().endswith(_NIFTI):
            yield from _nifti(root, path)
        else:
            candidates.append(path)
    if inputs == "kspace":
        yield from discover_kspace(root, candidates, fft, sens_maps)
    elif inputs in ("bag", "slide"):
        yield from discover_mil(root, candidates)
    elif candidates:
        yield from _dicom(root, candidates)


def walk(root: Path, links: Collection[Path] = ()) -> Iterator[tuple[Path, tuple[Refusal, str, str] | None]]:
    """Files below `root`, depth first and sorted by name, each with None or the reason why it is left out.

    Args:
        root: A folder.
        links: Links that stand for what they lead to; all others are refused.

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
        kind = _kind(path.readlink() if path in links else path)
        if not _is_text(entry.name):
            yield path, ("failed", "name", "the file's name is not UTF-8; rename it")
        elif entry.name.startswith("."):
            yield path, ("skipped", "hidden", "hidden files and folders are not read")
        elif kind == stat.S_IFLNK:
            yield path, ("skipped", "link", "links are not followed; give the folder that holds the file itself")
        elif kind == stat.S_IFDIR:
            yield from walk(path, links)
        elif kind == stat.S_IFREG:
            yield path, None
        else:
            yield path, ("skipped", "special", "not a regular file")


def _kind(path: Path) -> int:
    """Type of a file, of a link the link itself; 0 if it is gone."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except OSError:
        return 0


def open_input(
    root: Path, wanted: str, kind: str, relpaths: Sequence[str], *, modality: "Modality | None", units: "Units"
) -> "VolumeReader":
    """Open the pixels of a discovered item, in any process.

    Args:
        root: The `input_root`.
        wanted: Which item of its files; one multi-frame file may hold several stacks.
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
        if _stack_id(stack) == wanted:
            return open_dicom(stack)
    if broken:
        raise broken[0].error
    raise InputError("the files changed since they were found", remedy="run again when nothing writes to the input")


def _nifti(root: Path, path: Path) -> Iterator[Found]:
    relpath = relative(root, path)
    files = file_rows(root, [path])
    if files:
        yield Found(item_id("nifti", [relpath]), "nifti", label(relpath), files)


def _dicom(root: Path, candidates: list[Path]) -> Iterator[Found]:
    from medseq.io.dicom import split_series

    try:
        groups = split_series(candidates)
    except BackendError as error:
        yield from _without_pydicom(root, candidates, error)
        return
    for paths in groups:
        yield from _series(root, paths)


def _series(root: Path, paths: Sequence[Path]) -> Iterator[Found]:
    """Items of one series; its headers are forgotten after it."""
    from medseq.io.dicom import group_dicom

    stacks, skipped, broken = group_dicom(paths)
    for skip in skipped:
        yield refused_item(root, skip.path, "skipped", skip.reason_code, skip.reason)
    for bad in broken:
        yield broken_item(root, bad.paths, bad.label, bad.error)
    for stack in stacks:
        remarks = tuple((warning.code, warning.message) for warning in source_warnings(stack.header))
        files = file_rows(root, stack.files)
        yield Found(_stack_id(stack), "dicom", label(stack.series_uid), files, remarks=remarks)


def _stack_id(stack: "DicomStack") -> str:
    return item_id("dicom", sorted(stack.sop_uids))


def _without_pydicom(root: Path, candidates: list[Path], error: BackendError) -> Iterator[Found]:
    for path in candidates:
        try:
            with path.open("rb") as stream:
                is_dicom = stream.read(_DICOM_MAGIC_AT + 4)[_DICOM_MAGIC_AT:] == b"DICM"
        except OSError:
            is_dicom = False
        if is_dicom:
            yield broken_item(root, (path,), label(relative(root, path)), error)
        else:
            yield refused_item(root, path, "skipped", "not-dicom", "neither DICOM nor NIfTI")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
