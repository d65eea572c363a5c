"""From files to items of raw MR data: one item an acquisition, with its companions. Opens headers only, no torch.

A file may hold several acquisitions (averages, contrasts, phases, repetitions); a `.cfl` lies beside its `.hdr`, its
maps and its sidecar. Whatever belongs to an item is named by its reader.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseq.errors import InputError, MedseqError
from medseq.inference.found import Found, broken_item, file_rows, item_id, refused_item, relative
from medseq.inference.h5_guard import require_openable
from medseq.inference.recon_maps import maps_files, maps_of
from medseq.io.privacy import label

if TYPE_CHECKING:
    from medseq.io.kspace import KSpaceReader

__all__ = ["discover_kspace", "open_kspace_item", "reader_label"]


def discover_kspace(
    root: Path, paths: Sequence[Path], fft: str | None, sens_maps: Path | None = None
) -> Iterator[Found]:
    """Items of raw data among `paths`, and what the other files are.

    Args:
        root: See `medseq.inference.discover.input_root`.
        paths: Regular files below it.
        fft: Fourier convention that the caller asks for, or None.
        sens_maps: File or folder of sensitivity maps, or None.
    """
    from medseq.io.kspace_open import kspace_companions, kspace_files, open_kspace_items

    main: list[Path] = []
    maps = set() if sens_maps is None else {path.resolve() for path in maps_files(sens_maps)}
    given = {path for path in paths if maps and path.resolve() in maps}
    for path in [path for path in paths if path in given]:
        yield refused_item(root, path, "skipped", "sens-maps", "sensitivity maps for other files, as the caller said")
    paths = [path for path in paths if path not in given]
    for path in paths:
        try:
            main += kspace_files([path])
        except MedseqError as error:
            yield _broken(root, path, error)
    try:
        main = kspace_files(main)
    except MedseqError:
        pass  # a sidecar that cannot be read: the file it belongs to says so below
    companions: set[Path] = set()
    for path in main:
        try:
            require_openable(path, "kspace", fft)
            readers = open_kspace_items(path, fft=fft)
        except MedseqError as error:
            yield _broken(root, path, error)
            continue
        extra = {Path(file) for reader in readers for file in reader.source.files} | set(kspace_companions(path))
        companions |= extra
        yield from _items(root, path, readers, sorted(extra - {path}))
    for path in paths:
        if path not in main and path not in companions:
            yield refused_item(root, path, "skipped", "not-kspace", "no raw MR data")


def open_kspace_item(
    root: Path,
    wanted: str,
    relpaths: Sequence[str],
    *,
    fft: str | None = None,
    virtual_coils: int | None = None,
    sens_maps: Path | None = None,
) -> "KSpaceReader":
    """Open a discovered item again, in any process.

    Args:
        root: The input root.
        wanted: Id of the item.
        relpaths: Its files, the raw data first.
        fft: See `discover_kspace`.
        virtual_coils: Compress to at most this many coils.
        sens_maps: File or folder of sensitivity maps to use instead of its own.

    Raises:
        FormatError: The file cannot be read.
        ShapeError: The maps do not fit.
        InputError: It no longer holds what was discovered; there are no maps for it.
    """
    from medseq.io.kspace_open import open_kspace_items

    path = root / relpaths[0]
    sens = None if sens_maps is None else maps_of(sens_maps, path)
    for number, reader in enumerate(open_kspace_items(path, fft=fft, sens=sens, virtual_coils=virtual_coils)):
        if _id(root, path, number) == wanted:
            return reader
    raise InputError("the files changed since they were found", remedy="run again when nothing writes to the input")


def reader_label(reader: "KSpaceReader") -> str:
    """Which acquisition of its file it is, in words such as ``contrast-1``; empty if it is the only one."""
    return str(getattr(reader, "label", ""))


def _items(root: Path, path: Path, readers: "Sequence[KSpaceReader]", extra: list[Path]) -> Iterator[Found]:
    for number, reader in enumerate(readers):
        remarks = tuple((notice.code, notice.message) for notice in getattr(reader, "notices", ()))
        name = " ".join([label(relative(root, path)), reader_label(reader)]).strip()
        yield Found(_id(root, path, number), "kspace", name, file_rows(root, [path, *extra]), remarks=remarks)


def _broken(root: Path, path: Path, error: MedseqError) -> Found:
    return broken_item(root, [path], label(relative(root, path)), error, "kspace")


def _id(root: Path, path: Path, number: int) -> str:
    return item_id("kspace", [relative(root, path), str(number)] if number else [relative(root, path)])
