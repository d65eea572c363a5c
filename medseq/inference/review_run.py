"""One run folder under review: what is known of it, and what is handed on as values. No torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseq.errors import OutputError
from medseq.inference.check import LEDGER
from medseq.inference.ledger_schema import OutputRow, RunRow
from medseq.inference.review import ReviewStore

__all__ = ["OutputFile", "RunFolder", "RunInfo", "Study", "find_runs", "outputs_digest"]


@dataclass(frozen=True)
class Study:
    """A blinded reader study: every reader sees the cases in an order of their own, without names of methods.

    Attributes:
        name: Seed of the orders, and what exports call the study.
        blinded: Hide method, key number and other readers' decisions.
    """

    name: str
    blinded: bool = True


@dataclass(frozen=True)
class RunInfo:
    """One run under review.

    Attributes:
        number: Its number, from 0.
        method: Name and version of the model; empty if the run does not say yet.
        live: Items are waiting or in work.
        message: What is wrong with its ledger or its review store, in words; empty if nothing.
        writable: Whether decisions can be recorded.
        bundle: What the report says of the model: intended use, calibration …
    """

    number: int
    name: str
    method: str
    task: str
    modality: str | None
    created_utc: str
    counts: dict[str, int]
    live: bool
    message: str
    writable: bool
    bundle_hash: str = ""
    bundle: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputFile:
    """One output of an item: its role and path, and ``missing``, ``changed``, ``unreadable`` or None."""

    role: str
    path: Path = field(repr=False)
    sha256: str
    problem: str | None


class RunFolder:
    """One folder: its ledger as last seen, its store, its message."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.folder = number, folder
        self.seen: tuple[Any, ...] | None = None
        self.event_row = 0
        self.review_seq = 0
        self.row: RunRow | None = None
        self.store: ReviewStore | None = None
        self.message = ""
        self.store_message = ""
        self.bundle: dict[str, Any] = {}
        self.report_seen: int | None = None

    def stamp(self) -> tuple[Any, ...]:
        """Changes whenever the ledger, its log or the report does."""
        stamps = []
        for name in (LEDGER, f"{LEDGER}-wal", "report.json"):
            try:
                status = (self.folder / name).stat()
                stamps.append((status.st_mtime_ns, status.st_size))
            except OSError:
                stamps.append((0, 0))
        return tuple(stamps)

    def read_bundle(self) -> None:
        """What the report says of the model; a run that goes on has none yet."""
        path = self.folder / "report.json"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self.report_seen:
                self.bundle, self.report_seen = dict(json.loads(path.read_text("utf-8"))["run"]["bundle"]), changed
        except (OSError, ValueError, KeyError, TypeError):
            pass


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among `folders` and directly below them, in their order.

    Raises:
        OutputError: A folder that holds no run.
    """
    found: list[Path] = []
    for folder in folders:
        if (folder / LEDGER).is_file():
            found.append(folder.resolve())
            continue
        below = sorted(path.parent.resolve() for path in folder.glob(f"*/{LEDGER}")) if folder.is_dir() else []
        if not below:
            raise OutputError("no run was recorded here", remedy="give the output folder of medseq predict")
        found += below
    return list(dict.fromkeys(found))


def outputs_digest(rows: Sequence[OutputRow]) -> str:
    """One hash over outputs: of their roles and hashes, in the order of their paths."""
    text = "\n".join(f"{row.role} {row.sha256}" for row in sorted(rows, key=lambda row: row.relpath))
    return hashlib.sha256(text.encode()).hexdigest()
