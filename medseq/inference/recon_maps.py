"""Sensitivity maps that the caller names: one file for every scan, or a folder with a file for each. No torch.

In a folder the maps of ``scan.h5`` are ``scan.*`` or ``scan_sens.*``. The ledger knows maps by their content: another
file is another run, the same file in another place is not.
"""

import hashlib
from pathlib import Path

from medseq.errors import InputError
from medseq.io.privacy import path_label

__all__ = ["maps_digest", "maps_files", "maps_of"]

_SUFFIXES = (".npy", ".npz", ".cfl", ".h5", ".hdf5", ".mat")


def maps_files(source: Path) -> list[Path]:
    """Every file that `source` names, with what belongs to them (``.hdr``, sidecars), sorted.

    Raises:
        InputError: There is none.
    """
    if source.is_dir():
        main = [path for path in sorted(source.iterdir()) if path.is_file() and path.suffix.lower() in _SUFFIXES]
    else:
        path = source.with_name(f"{source.name}.cfl") if not source.suffix else source
        main = [path] if path.is_file() else []
    if not main:
        raise InputError(
            "no sensitivity maps at the place named",
            where="sens_maps",
            found="a folder without any" if source.is_dir() else "no such file",
            wanted=f"a file, or a folder of files: {', '.join(_SUFFIXES)}",
        )
    beside = [path.with_suffix(suffix) for path in main for suffix in (".hdr", ".yaml", ".yml", ".json")]
    return sorted({*main, *(path for path in beside if path.is_file())})


def maps_digest(source: Path) -> str:
    """sha256 over the content of all maps; in a folder their names count, too."""
    digest = hashlib.sha256()
    for path in maps_files(source):
        if source.is_dir():
            digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def maps_of(source: Path, scan: Path) -> Path:
    """The file of maps for one scan.

    Raises:
        InputError: The folder holds none for it, or several.
    """
    files = [path for path in maps_files(source) if path.suffix.lower() in _SUFFIXES]
    if not source.is_dir():
        return files[0]
    names = (scan.stem, f"{scan.stem}_sens")
    found = [path for path in files if path.stem in names]
    if len(found) != 1:
        raise InputError(
            "a scan needs one file of sensitivity maps",
            where=path_label(scan),
            found=f"{len(found)} of its name among {len(files)}",
            wanted="NAME or NAME_sens, with the suffix of an array, for the scan NAME",
            remedy="rename the maps, or name one file for all scans",
        )
    return found[0]
