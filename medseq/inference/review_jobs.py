"""Runs that are started from the page: `medseq predict` in the background, watched through its ledger. No torch.

A job is a folder with a record (``job.json``), the log of the process and the run itself (``out``). Only shipped or
admitted bundles run, only over folders below admitted roots or over what was uploaded here, within limits of size. The
page never waits: starting returns at once, and progress is read from the ledger.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from medseq.errors import InputError, MedseqError, OutputError
from medseq.inference.check import LEDGER
from medseq.inference.ledger import Ledger
from medseq.inference.run_folder import write_text
from medseq.inference.zoo import zoo_names
from medseq.io.atomic import written

__all__ = ["Job", "JobLimits", "Jobs", "Progress"]

JobState = Literal["running", "done", "failed", "cancelled", "interrupted"]
_CHUNK = 1 << 20
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".nii", ".nii.gz", ".dcm", ".h5", ".svs", ".tif", ".tiff", ".npy")
_ENDS: dict[int, JobState] = {0: "done", 3: "done", 130: "cancelled"}


@dataclass(frozen=True)
class JobLimits:
    """What one job may take.

    Attributes:
        bytes: Of its input.
        files: Of its input.
        running: Jobs at one time.
        free_bytes: Disk that must stay free.
    """

    bytes: int = 50 << 30
    files: int = 200_000
    running: int = 1
    free_bytes: int = 1 << 30


@dataclass(frozen=True)
class Job:
    """A run that was asked for.

    Attributes:
        job_id: Random; tells nothing.
        bundle: Name of the model.
        user: Who started it.
        source: Where its input lies; never shown.
        state: ``running``, ``done`` (items may have failed: see the run), ``failed``, ``cancelled`` or
            ``interrupted`` (the server or the machine stopped; starting again resumes).
        message: Last words of a job that failed.
    """

    job_id: str
    bundle: str
    user: str
    source: str
    created_utc: str
    state: JobState = "running"
    pid: int = 0
    started: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a job is: items by state, and the share that is settled."""

    counts: dict[str, int]
    share: float


class Jobs:
    """Jobs of one server.

    Args:
        workspace: Folder for jobs and uploads, for this account only.
        roots: Folders whose content may be read; links that lead out of them are not followed.
        bundles: Bundles besides the shipped ones, by name.
        limits: See `JobLimits`.
    """

    def __init__(
        self,
        workspace: Path,
        roots: Sequence[Path] = (),
        *,
        bundles: dict[str, Path] | None = None,
        limits: JobLimits | None = None,
    ) -> None:
        self._workspace, self._limits = workspace.resolve(), limits or JobLimits()
        self.roots = [root.resolve() for root in roots]
        self._bundles = dict(bundles or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        with written("the workspace of the review"):
            self._workspace.mkdir(parents=True, exist_ok=True, mode=0o700)

    def bundles(self) -> list[str]:
        """Names of what can be run."""
        return sorted({*zoo_names(), *self._bundles})

    def folders(self, below: Sequence[str] = ()) -> list[str]:
        """Names of folders below an admitted root: ``below`` is the number of the root and the way down.

        Raises:
            InputError: Not below a root.
        """
        if not below:
            return [str(number) for number in range(len(self.roots))]
        place = self.resolve(below)
        return sorted(entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False))

    def resolve(self, below: Sequence[str]) -> Path:
        """The folder that a number of a root and names of folders lead to.

        Raises:
            InputError: It is none, or leads out of its root.
        """
        if not below or not below[0].isdecimal() or int(below[0]) >= len(self.roots):
            raise InputError("no such folder", wanted="a folder below one that the server may read")
        root = self.roots[int(below[0])]
        place = root.joinpath(*below[1:]).resolve()
        if place != root and root not in place.parents:
            raise InputError("no such folder", wanted="a folder below one that the server may read")
        if not place.is_dir():
            raise InputError("no such folder", found="it is gone")
        return place

    def save_upload(self, name: str, stream: IO[bytes], user: str) -> Path:
        """Keep an uploaded file under a name that tells nothing; returns the folder that can be run over.

        Raises:
            InputError: Another kind of file, or too large.
        """
        suffix = next((end for end in sorted(_SUFFIXES, key=len, reverse=True) if name.lower().endswith(end)), None)
        if suffix is None:
            raise InputError("this kind of file is not taken", wanted=", ".join(_SUFFIXES))
        folder = self._workspace / "uploads" / secrets.token_hex(8)
        with written("the upload"):
            folder.mkdir(parents=True, mode=0o700)
            target, size = folder / f"upload{suffix}", 0
            with target.open("wb") as out:
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    if size > self._limits.bytes:
                        break
                    out.write(chunk)
        if size > self._limits.bytes or size == 0:
            shutil.rmtree(folder, ignore_errors=True)
            found = "nothing" if size == 0 else f"more than {self._limits.bytes >> 20} MB"
            raise InputError("the upload cannot be used", found=found, wanted=f"at most {self._limits.bytes >> 20} MB")
        return target if suffix in (".zip", ".tar", ".tar.gz", ".tgz") else folder

    def start(self, bundle: str, source: Path, user: str, options: Iterable[str] = ()) -> Job:
        """Start a run and return at once.

        Args:
            bundle: A name of `bundles`.
            source: What `resolve` or `save_upload` returned.
            user: Who asks.
            options: More words for `medseq predict`, such as ``--difference``.

        Raises:
            InputError: An unknown bundle, a source that is not admitted, or one that is too large.
            OutputError: Too many jobs at once, or too little space.
        """
        with self._lock:
            self._require_fit(bundle, source)
            job_id = secrets.token_hex(8)
            folder = self._workspace / "jobs" / job_id
            with written("the job"):
                folder.mkdir(parents=True, mode=0o700)
            given = str(self._bundles.get(bundle, bundle))
            command = [sys.executable, "-m", "medseq.cli.main", "predict", given, str(source), str(folder / "out")]
            with (folder / "log.txt").open("wb") as log:
                # A session of its own: stopping the server leaves the run to be watched by the next one.
                process = subprocess.Popen(
                    [*command, "--quiet", *_checked(options)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._processes[job_id] = process
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            job = Job(job_id, bundle, user, str(source), now, pid=process.pid, started=_started(process.pid))
            self._save(job)
        return job

    def list(self) -> list[Job]:
        """All jobs, the newest first, as they are now."""
        folders = sorted((self._workspace / "jobs").glob("*/job.json"))
        found = [self.get(path.parent.name) for path in folders]
        return sorted((job for job in found if job), key=lambda job: job.created_utc, reverse=True)

    def get(self, job_id: str) -> Job | None:
        """One job as it is now; None if there is none of this id."""
        job = self._load(job_id)
        if job is None or job.state != "running":
            return job
        with self._lock:
            process = self._processes.get(job_id)
            code = process.poll() if process is not None else None
            if code is None and (process is not None or _started(job.pid) == job.started != 0.0):
                return job
            state: JobState = "interrupted" if code is None else _ENDS.get(code, "failed")
            ended = Job(**{**asdict(job), "state": state, "message": self._words(job_id) if state == "failed" else ""})
            self._save(ended)
            self._processes.pop(job_id, None)
        return ended

    def progress(self, job_id: str) -> Progress:
        """How far a job is, from its ledger; nothing yet where the ledger cannot be read."""
        try:
            with Ledger(self.out(job_id) / LEDGER, read_only=True) as ledger:
                counts = ledger.counts()
        except MedseqError:
            return Progress({}, 0.0)
        total = sum(counts.values())
        settled = total - counts["queued"] - counts["running"]
        return Progress(counts, settled / total if total else 0.0)

    def cancel(self, job_id: str) -> bool:
        """Ask a job to stop after what it has in work; True if it was running. What is done stays done."""
        job = self.get(job_id)
        if job is None or job.state != "running":
            return False
        # As Ctrl-C: the engine finishes what it writes and leaves the rest queued.
        os.kill(job.pid, signal.SIGINT)
        return True

    def out(self, job_id: str) -> Path:
        """The output folder of a job.

        Raises:
            InputError: No such job.
        """
        if self._load(job_id) is None:
            raise InputError("no such job")
        return self._workspace / "jobs" / job_id / "out"

    # --- inside

    def _require_fit(self, bundle: str, source: Path) -> None:
        if bundle not in self.bundles():
            raise InputError("no such model", wanted=", ".join(self.bundles()))
        place = source.resolve()
        admitted = [*self.roots, self._workspace / "uploads"]
        if not any(root == place or root in place.parents for root in admitted) or not place.exists():
            raise InputError("the server may not read this folder", wanted="one below the admitted roots")
        size, files = _extent(place, self._limits)
        if size > self._limits.bytes or files > self._limits.files:
            raise InputError(
                "the input is too large",
                found=f"more than {size >> 20} MB in {files} files",
                wanted=f"at most {self._limits.bytes >> 20} MB in {self._limits.files} files",
            )
        if sum(job.state == "running" for job in self.list()) >= self._limits.running:
            raise OutputError("another run is working", remedy="wait for it, or cancel it")
        if shutil.disk_usage(self._workspace).free < self._limits.free_bytes:
            raise OutputError("too little space for another run", remedy="free some")

    def _save(self, job: Job) -> None:
        write_text(self._workspace / "jobs" / job.job_id / "job.json", json.dumps(asdict(job)))

    def _load(self, job_id: str) -> Job | None:
        if not (len(job_id) == 16 and all(c in "0123456789abcdef" for c in job_id)):
            return None
        try:
            content: dict[str, Any] = json.loads((self._workspace / "jobs" / job_id / "job.json").read_text("utf-8"))
            return Job(**content)
        except (OSError, ValueError, TypeError):
            return None

    def _words(self, job_id: str) -> str:
        """The last line that the process wrote: medseq's errors are one line and hold no identifier."""
        try:
            text = (self._workspace / "jobs" / job_id / "log.txt").read_text("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("medseq:")]
        return lines[-1].removeprefix("medseq:").strip()[:500] if lines else "the run ended without a word"


def _checked(options: Iterable[str]) -> list[str]:
    """Only switches without values: nothing that names a path."""
    allowed = ("--difference", "--uncertainty", "--resample", "--adapt")
    words = list(options)
    wrong = [word for word in words if word not in allowed]
    if wrong:
        raise InputError("no such option", found=wrong[0][:20], wanted=", ".join(allowed))
    return words


def _extent(place: Path, limits: JobLimits) -> tuple[int, int]:
    """Bytes and files, counted until a limit is passed."""
    if place.is_file():
        return place.stat().st_size, 1
    size = files = 0
    for folder, _, names in os.walk(place):
        for name in names:
            files += 1
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
            if size > limits.bytes or files > limits.files:
                return size, files
    return size, files


def _started(pid: int) -> float:
    """When a process began, 0 if it is gone: a number may have been given to another process since."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return 0.0
