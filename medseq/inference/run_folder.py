"""The output folder of a run: apart from the input, writable, held by one run at a time, and cleared for a new run."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medseq.errors import OutputError
from medseq.inference.check import LEDGER
from medseq.inference.ledger import Ledger
from medseq.inference.outputs import WORK
from medseq.io.atomic import clear, discard, publish, written

__all__ = ["PAUSED", "archive", "lock", "prepared", "remove_empty", "require_apart", "write_parts", "write_text"]

_PREVIOUS, _LOCK = "previous", ".run.lock"
# While this file is there, no item is begun (`medseq run pause`).
PAUSED = ".paused"


def require_apart(source: Path, out: Path) -> None:
    """Refuse an output folder inside the input: results would be inputs of the next run."""
    inside = source.resolve() in (out.resolve(), *out.resolve().parents)
    if inside:
        raise OutputError("the output folder lies inside the input", remedy="choose a folder beside the input")
    if out.exists() and not out.is_dir():
        raise OutputError("the output is a file", wanted="a folder")


@contextmanager
def prepared(out: Path) -> Iterator[None]:
    """Make sure that the output can be written, before any work; a folder that stays empty is removed again."""
    created = [path for path in (out, *out.parents) if not path.exists()]
    try:
        with written("the output folder"):
            out.mkdir(parents=True, exist_ok=True)
            probe = out / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        yield
    finally:
        for path in created:
            if path.is_dir() and {entry.name for entry in path.iterdir()} <= {_LOCK}:
                (path / _LOCK).unlink(missing_ok=True)
                path.rmdir()


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """One run at a time in a folder; the kernel gives the lock back when a process dies, however it dies."""
    with (out / _LOCK).open("wb") as stream:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    "another run is working in the output folder", remedy="wait for it, or choose another folder"
                ) from None
        # Nobody else is here: what lies in staging is from a run that was killed.
        shutil.rmtree(out / WORK, ignore_errors=True)
        yield


def archive(out: Path) -> None:
    """Move an earlier run to ``previous/<n>``, its ledger last: a kill in between is finished by the next call."""
    if not (out / LEDGER).exists():
        return
    numbers = [int(path.name) for path in (out / _PREVIOUS).glob("*") if path.name.isdigit()]
    complete = [number for number in numbers if (out / _PREVIOUS / str(number) / LEDGER).exists()]
    target = out / _PREVIOUS / str(max(complete, default=0) + 1)
    with Ledger(out / LEDGER) as ledger, written("the earlier run"):
        for item in ledger.items():
            for row in ledger.outputs(item.id):
                if (out / row.relpath).exists():
                    (target / row.relpath).parent.mkdir(parents=True, exist_ok=True)
                    (out / row.relpath).rename(target / row.relpath)
                    remove_empty(out, (out / row.relpath).parent)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("report.json", "report.html", "report"):
            if (out / name).exists():
                (out / name).rename(target / name)
    with written("the earlier run"):
        (out / LEDGER).rename(target / LEDGER)


def remove_empty(out: Path, folder: Path) -> None:
    """Remove a folder and its parents below `out`, as far as they are empty."""
    while folder != out and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def write_text(path: Path, text: str) -> None:
    """Replace a text file at once, or leave the old one; see `write_parts`."""
    write_parts(path, [text])


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Replace a text file at once, or leave the old one; its parts are written one by one, and never held together.

    Raises:
        RetryableError: No space.
        OutputError: Not writable.
    """
    partial = clear(path)
    try:
        with written("the report"), partial.open("w", encoding="utf-8") as stream:
            stream.writelines(parts)
            stream.flush()
            os.fsync(stream.fileno())
        publish(partial, path)
    finally:
        discard(partial)
