"""Tables of the run ledger, version by version, and the rows that leave it as values."""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["MIGRATIONS", "STATES", "VERSION", "EventRow", "FileRow", "ItemRow", "OutputRow", "RunRow", "State"]

State = Literal["queued", "running", "done", "failed", "skipped"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "skipped")

# One script a version; appending one is a migration. PRAGMA user_version counts those applied.
MIGRATIONS = (
    """
    CREATE TABLE run(id INTEGER PRIMARY KEY, bundle_hash TEXT NOT NULL, params_json TEXT NOT NULL,
                     params_hash TEXT NOT NULL, version TEXT NOT NULL, created_utc TEXT NOT NULL);
    CREATE TABLE item(id TEXT PRIMARY KEY, kind TEXT NOT NULL, label TEXT NOT NULL,
                      state TEXT NOT NULL CHECK(state IN ('queued','running','done','failed','skipped')),
                      reason_code TEXT, reason TEXT, attempts INTEGER NOT NULL DEFAULT 0,
                      lease_owner TEXT, lease_until REAL, seconds REAL, peak_mb REAL, input_sha256 TEXT,
                      metrics_json TEXT, flags_json TEXT);
    CREATE TABLE file(item_id TEXT NOT NULL REFERENCES item(id), relpath TEXT NOT NULL, size INTEGER NOT NULL,
                      mtime_ns INTEGER NOT NULL, PRIMARY KEY(item_id, relpath));
    CREATE TABLE output(item_id TEXT NOT NULL REFERENCES item(id), role TEXT NOT NULL, relpath TEXT NOT NULL,
                        sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY(item_id, relpath));
    CREATE TABLE event(ts REAL NOT NULL, item_id TEXT NOT NULL, state TEXT NOT NULL, worker TEXT);
    CREATE INDEX item_state ON item(state);
    CREATE INDEX file_relpath ON file(relpath);
    """,
    # 2: the order of the work, found without sorting what is left; why an item changed its state.
    """
    ALTER TABLE item ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE event ADD COLUMN code TEXT;
    DROP INDEX item_state;
    CREATE INDEX item_next ON item(state, priority DESC);
    CREATE INDEX output_relpath ON output(relpath);
    CREATE INDEX event_item ON event(item_id);
    """,
    # 3: the input folder, so that a reviewer sees what was there before.
    """
    CREATE TABLE origin(root BLOB NOT NULL);
    """,
)
VERSION = len(MIGRATIONS)


@dataclass(frozen=True)
class RunRow:
    """What every output of a folder has in common."""

    bundle_hash: str
    params: dict[str, Any]
    params_hash: str
    version: str
    created_utc: str


@dataclass(frozen=True)
class FileRow:
    """One input file, by its path below the input folder."""

    relpath: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class OutputRow:
    """One written file, by its path below the output folder."""

    role: str
    relpath: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ItemRow:
    """One input and what became of it; `label` and `reason` hold no identifier."""

    id: str
    kind: str
    label: str
    state: State
    reason_code: str | None
    reason: str | None
    attempts: int
    seconds: float | None
    peak_mb: float | None
    input_sha256: str | None
    metrics: dict[str, float]
    flags: list[dict[str, str]]


@dataclass(frozen=True)
class EventRow:
    """One change of state: when (seconds since 1970), to what, by which worker and why."""

    ts: float
    state: State
    worker: str | None
    code: str | None
