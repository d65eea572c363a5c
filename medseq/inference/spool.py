"""The gateway's memory: folders that change hands by renaming, so that a killed gateway forgets nothing.

    SPOOL/incoming/<study>/<series>/<image>.dcm    what the receiver writes
    SPOOL/work/<job>/                              claimed: in/, routed/<route>/, results/<route>/, job.json
    SPOOL/done/<job>/   SPOOL/dead/<job>/          finished; given up, with the reason in job.json

A job is one study as far as it had arrived; images that come later make another job. `job.json` holds no identifiers.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medseq.errors import FormatError, InputError
from medseq.io.atomic import clear, publish_bytes, written
from medseq.io.plain_text import plain_json

__all__ = ["Job", "Spool"]

_STATES = ("work", "done", "dead")
_NAME = re.compile(r"[0-9a-f]{20}-\d{6}$")


@dataclass
class Job:
    """One study on its way.

    Attributes:
        name: Folder name.
        folder: Where it lies now.
        attempts: Attempts that failed for a reason that may pass.
        next_try: Not before this time (seconds since 1970).
        finished: When it was done or given up.
        reason: Why it was given up, or what was skipped.
        decisions: Folder of the series, route or None, and why; one a series.
        pushed: Images that were sent.
    """

    name: str
    folder: Path = field(repr=False)
    attempts: int = 0
    next_try: float = 0.0
    finished: float = 0.0
    reason: str = ""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    pushed: int = 0

    def save(self) -> None:
        """Write `job.json` at once or not at all."""
        values = {key: value for key, value in asdict(self).items() if key != "folder"}
        publish_bytes(clear(self.folder / "job.json"), self.folder / "job.json", json.dumps(values, indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> "Job":
        """The job in a folder; a fresh one if its file was never written.

        Raises:
            FormatError: The file makes no sense.
        """
        path = folder / "job.json"
        if not path.exists():
            return cls(folder.name, folder)
        try:
            values = plain_json(path.read_bytes())
            return cls(**{**values, "folder": folder, "name": folder.name})
        except (ValueError, TypeError):
            raise FormatError("job.json makes no sense", where=folder.name, remedy="move the folder away") from None


class Spool:
    """The folders.

    Args:
        root: Where they are, or will be.
    """

    def __init__(self, root: Path):
        self.root, self.incoming = Path(root), Path(root) / "incoming"
        self.lock = threading.Lock()
        with written("the spool folder"):
            for name in ("incoming", *_STATES):
                (self.root / name).mkdir(parents=True, exist_ok=True)

    def waiting(self) -> dict[str, float]:
        """Study -> time of its last image."""
        return {folder.name: _last_change(folder) for folder in _folders(self.incoming)}

    def claim(self, study: str) -> Job:
        """Take a study out of the receiver's hands."""
        with self.lock, written("the spool folder"):
            taken = [folder.name for state in _STATES for folder in _folders(self.root / state)]
            number = 1 + max((int(name[21:]) for name in taken if name[:20] == study), default=0)
            folder = self.root / "work" / f"{study}-{number:06d}"
            folder.mkdir()
            os.rename(self.incoming / study, folder / "in")
        job = Job(folder.name, folder)
        job.save()
        return job

    def jobs(self, state: str) -> list[Job]:
        """Jobs in ``work``, ``done`` or ``dead``."""
        return [Job.load(folder) for folder in _folders(self.root / state)]

    def move(self, job: Job, state: str) -> None:
        """Give a job another state; its file is written first."""
        job.save()
        target = self.root / state / job.name
        with written("the spool folder"):
            os.rename(job.folder, target)
        job.folder = target

    def retry(self, names: list[str] | None = None) -> list[str]:
        """Put dead jobs back to work; all of them, or those named.

        Raises:
            InputError: A name that is none of a dead job.
        """
        dead = {job.name: job for job in self.jobs("dead")}
        unknown = sorted(set(names or ()) - set(dead))
        if unknown or any(not _NAME.match(name) for name in names or ()):
            raise InputError("no such dead job", found=", ".join(unknown), wanted=", ".join(dead) or "none is dead")
        chosen = [dead[name] for name in names] if names else list(dead.values())
        for job in chosen:
            job.attempts, job.next_try, job.finished, job.reason = 0, 0.0, 0.0, ""
            self.move(job, "work")
        return [job.name for job in chosen]

    def purge(self, before: float) -> int:
        """Delete done jobs, images and results, that finished before a time; returns how many."""
        old = [job for job in self.jobs("done") if job.finished < before]
        for job in old:
            with written("the spool folder"):
                shutil.rmtree(job.folder)
        return len(old)

    def free_bytes(self) -> int:
        """Space left on the disk."""
        return shutil.disk_usage(self.root).free


def _folders(path: Path) -> Iterator[Path]:
    yield from (entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def _last_change(folder: Path) -> float:
    """Newest time of the study's and its series' folders: each image that arrives changes one."""
    times = []
    for path in (folder, *_folders(folder)):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=0.0)
