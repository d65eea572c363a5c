"""Where the input of a run lies, so that a reviewer sees what was there before. No torch.

A ledger knows its files by their paths below the input folder, and the folder itself, which may have moved since.
Nothing is taken on trust: a file is shown as the input of an item only if its size and time are those of the ledger.
"""

from collections.abc import Sequence
from pathlib import Path

from medseq.errors import InputError
from medseq.inference.ledger_schema import FileRow

__all__ = ["candidate_roots", "find_root", "input_path"]

# A run that was given an archive, or told to remove identifiers, keeps its input here.
_INSIDE = ("deidentified", ".input")


def candidate_roots(out: Path, given: Sequence[Path] = (), noted: Path | None = None) -> list[Path]:
    """Folders that may be the input of a run: those given, the one noted, and where inputs usually lie.

    Args:
        out: The run's output folder.
        given: What the caller names; each may be the input of this run, or a folder that holds it under its name.
        noted: What the ledger says.
    """
    found = [path for folder in given for path in (folder, folder / out.name)]
    found += [noted] if noted is not None else []
    found += [out / name for name in _INSIDE]
    found += [out.parent / "input", out.parent.parent / "input" / out.name, out.parent.parent / "input"]
    return list(dict.fromkeys(path.resolve() for path in found if path.is_dir()))


def find_root(roots: Sequence[Path], files: Sequence[FileRow]) -> Path:
    """The folder below which all files of an item lie, as they were.

    Raises:
        InputError: They are gone, or changed since the run; the message says which.
    """
    changed = 0
    for root in roots:
        states = [_state(root, row) for row in files]
        if files and all(state == "same" for state in states):
            return root
        changed = max(changed, sum(state == "changed" for state in states))
    if changed:
        raise InputError(
            "the input was changed since the run",
            found=f"{changed} of {len(files)} files differ in size or time",
            remedy="run again over the input as it is now, then review",
        )
    raise InputError(
        "the input of this item is not at hand",
        found=f"{len(files)} files, none in its place",
        remedy="name the input folder: medseq review OUT --input FOLDER",
    )


def input_path(root: Path, relpath: str) -> Path:
    """A file below the input folder; a ledger that leads outside is refused.

    Raises:
        InputError: The path leads outside.
    """
    path = (root / relpath).resolve()
    if root.resolve() not in path.parents:
        raise InputError("the ledger names a file outside of the input folder", remedy="do not review this run")
    return path


def _state(root: Path, row: FileRow) -> str:
    try:
        status = input_path(root, row.relpath).stat()
    except OSError:
        return "gone"
    return "same" if (status.st_size, status.st_mtime_ns) == (row.size, row.mtime_ns) else "changed"
