"""The run ledger: one SQLite file that knows, for every input, what became of it. Plain sqlite3; no torch, no engine.

An item goes ``queued -> running -> done | failed``, or is ``skipped`` because it is no input. What is not ``done``
here is not done, whatever lies on disk: outputs are written and renamed first, the row follows. Every change of
state is one transaction together with its line in ``event``.

The column ``file.relpath`` and the table ``origin`` are the only places of a run that hold names of the input; the file
is created readable by its owner only.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from medseq.errors import OutputError
from medseq.inference.ledger_file import connect, damaged, migrate, no_run, require_known_version
from medseq.inference.ledger_rows import ITEM_COLUMNS, LedgerRows, item_row, marks
from medseq.inference.ledger_schema import EventRow, FileRow, ItemRow, OutputRow, RunRow, State

__all__ = ["EventRow", "FileRow", "ItemRow", "Ledger", "OutputRow", "RunRow", "State"]


class Ledger(LedgerRows):
    """An open ledger. One writer at a time; see `medseq.inference.run` for the lock that ensures it.

    Args:
        path: The SQLite file; created if missing, unless `read_only`.
        read_only: Open an existing ledger without changing a byte.

    Raises:
        OutputError: Missing (`read_only`), damaged, not writable, or written by a newer medseq.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path, self.read_only = Path(path), read_only
        if self.path.exists():
            require_known_version(self.path, read_only=read_only)
        elif read_only:
            raise no_run(self.path)
        try:
            self._connection = connect(self.path, read_only=read_only)
            if not read_only:
                migrate(self._connection)
        except sqlite3.Error as error:
            raise damaged(self.path.name, error) from None

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        self._connection.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the run

    def begin_run(self, run: RunRow) -> RunRow:
        """Record the run of a fresh ledger, or return the recorded one if it is the same run.

        Raises:
            OutputError: The folder holds results of another bundle, other parameters or another medseq version.
        """
        known = self.run()
        if known is None:
            with self._transaction() as cursor:
                cursor.execute(
                    "INSERT INTO run(bundle_hash, params_json, params_hash, version, created_utc) VALUES (?,?,?,?,?)",
                    (run.bundle_hash, _json(run.params), run.params_hash, run.version, run.created_utc),
                )
            return run
        for name, unit in (("bundle_hash", "bundle"), ("params_hash", "parameters"), ("version", "medseq version")):
            was, now = getattr(known, name), getattr(run, name)
            if was != now:
                raise OutputError(
                    f"the output folder holds a run with another {unit}",
                    found=was[:12],
                    wanted=now[:12],
                    remedy=_difference(known, run) + "choose another folder, or start a new run there (--new-run)",
                )
        return known

    def note_origin(self, root: Path) -> None:
        """Remember the input folder; like the paths below it, it is for the owner of the ledger only."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM origin")
            cursor.execute("INSERT INTO origin VALUES (?)", (os.fsencode(root.resolve()),))

    # --- discovery

    def add_item(  # noqa: PLR0913  (the columns of an item)
        self,
        item_id: str,
        kind: str,
        label: str,
        files: Sequence[FileRow],
        *,
        state: Literal["queued", "failed", "skipped"] = "queued",
        reason_code: str | None = None,
        reason: str | None = None,
        flags: Sequence[Mapping[str, str]] = (),
        priority: int = 0,
    ) -> State:
        """Record a found input and return the state it is in now; those of higher `priority` are claimed first.

        A known item whose files have the same sizes and times keeps its state; a changed one starts anew. A verdict
        of an earlier discovery (failed or skipped without an attempt) gives way to this one's.
        """
        known = self._one("SELECT state, reason_code, attempts FROM item WHERE id=?", item_id)
        same = known is not None and set(files) == set(self.files(item_id))
        with self._transaction() as cursor:
            cursor.execute("INSERT OR IGNORE INTO seen VALUES (?)", (item_id,))
            if known is not None:
                cursor.execute("UPDATE item SET priority=? WHERE id=? AND priority!=?", (priority, item_id, priority))
            if same and _verdict_holds(known, state, reason_code):
                if known[0] == "done":
                    cursor.execute("UPDATE item SET reason_code=NULL, reason=NULL WHERE id=?", (item_id,))
                return known[0]
            cursor.execute("DELETE FROM file WHERE item_id=?", (item_id,))
            cursor.execute(
                "INSERT INTO item(id, kind, label, state, reason_code, reason, flags_json, priority) "
                "VALUES (?,?,?,?,?,?,?,?) "
                "ON CONFLICT(id) DO UPDATE SET kind=excluded.kind, label=excluded.label, state=excluded.state, "
                "reason_code=excluded.reason_code, reason=excluded.reason, attempts=0, lease_owner=NULL, "
                "lease_until=NULL, seconds=NULL, peak_mb=NULL, input_sha256=NULL, metrics_json=NULL, "
                "flags_json=excluded.flags_json",
                (item_id, kind, label, state, reason_code, reason, _json([dict(flag) for flag in flags]), priority),
            )
            rows = [(item_id, file.relpath, file.size, file.mtime_ns) for file in files]
            cursor.executemany("INSERT INTO file VALUES (?,?,?,?)", rows)
            _event(cursor, item_id, state, None, reason_code)
        return state

    def mark_gone(self) -> int:
        """After a complete discovery: items that it did not meet are skipped; finished ones stay done and say so."""
        where = "id NOT IN (SELECT id FROM seen) AND state != 'running' AND coalesce(reason_code, '') != 'gone'"
        with self._transaction() as cursor:
            gone = [row[0] for row in cursor.execute(f"SELECT id FROM item WHERE {where} AND state != 'done'")]
            cursor.execute(
                f"UPDATE item SET reason_code='gone', reason='its input is no longer in the folder', "
                f"state=CASE state WHEN 'done' THEN 'done' ELSE 'skipped' END WHERE {where}"
            )
            for item_id in gone:
                _event(cursor, item_id, "skipped", None, "gone")
        return len(gone)

    # --- work

    def claim(self, worker: str, lease_s: float, item_id: str | None = None) -> ItemRow | None:
        """Take the next queued item, or one whose lease ran out; None if there is none.

        Args:
            worker: Who computes it.
            lease_s: Seconds from now until others may take it over; see `renew`.
            item_id: Take this one, if it is queued, although it is held (see `hold`).
        """
        now = time.time()
        if item_id is None:
            free = "id NOT IN (SELECT id FROM held)"
            # Two look-ups in the index, instead of a walk over what is done already.
            chosen = (
                f"coalesce((SELECT id FROM item WHERE state='queued' AND {free} ORDER BY priority DESC, rowid LIMIT 1),"
                f"(SELECT id FROM item WHERE state='running' AND lease_until<? AND {free} LIMIT 1))"
            )
            values: tuple[Any, ...] = (now,)
        else:
            chosen, values = "(SELECT id FROM item WHERE state='queued' AND id=?)", (item_id,)
        with self._transaction() as cursor:
            rows = cursor.execute(
                "UPDATE item SET state='running', lease_owner=?, lease_until=?, attempts=attempts+1 "
                f"WHERE id={chosen} RETURNING {ITEM_COLUMNS}",
                (worker, now + lease_s, *values),
            ).fetchall()
            for row in rows:
                _event(cursor, row[0], "running", worker)
        return item_row(rows[0]) if rows else None

    def renew(self, item_ids: Sequence[str], lease_s: float) -> None:
        """Extend the leases of items whose workers are alive."""
        with self._transaction() as cursor:
            until = time.time() + lease_s
            rows = [(until, item_id) for item_id in item_ids]
            cursor.executemany("UPDATE item SET lease_until=? WHERE id=? AND state='running'", rows)

    def hold(self, item_id: str) -> None:
        """Keep an item from being claimed without its name: it is in work (a clock may jump), or waits for a retry."""
        with self._transaction() as cursor:
            cursor.execute("INSERT OR IGNORE INTO held VALUES (?)", (item_id,))

    def let_go(self, item_id: str) -> None:
        """The end of `hold`."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM held WHERE id=?", (item_id,))

    def stage_outputs(self, item_id: str, outputs: Iterable[OutputRow]) -> None:
        """Say which files are about to appear, before they are renamed: leftovers of a kill are then known as ours."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM output WHERE item_id=?", (item_id,))
            rows = [(item_id, row.role, row.relpath, row.sha256, row.bytes) for row in outputs]
            cursor.executemany("INSERT INTO output VALUES (?,?,?,?,?)", rows)

    def finish(
        self,
        item_id: str,
        worker: str,
        *,
        seconds: float,
        peak_mb: float,
        input_sha256: str,
        metrics: Mapping[str, float],
        flags: Sequence[Mapping[str, str]],
    ) -> None:
        """The outputs are in place: the item is done."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE item SET state='done', reason_code=NULL, reason=NULL, lease_owner=NULL, lease_until=NULL, "
                "seconds=?, peak_mb=?, input_sha256=?, metrics_json=?, flags_json=? WHERE id=?",
                (seconds, peak_mb, input_sha256, _json(dict(metrics)), _json([dict(flag) for flag in flags]), item_id),
            )
            _event(cursor, item_id, "done", worker)

    def fail(self, item_id: str, worker: str, code: str, reason: str, *, seconds: float | None = None) -> None:
        """The item cannot be processed; nothing of it was written."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM output WHERE item_id=?", (item_id,))
            cursor.execute(
                "UPDATE item SET state='failed', reason_code=?, reason=?, lease_owner=NULL, lease_until=NULL, "
                "seconds=? WHERE id=?",
                (code, reason, seconds, item_id),
            )
            _event(cursor, item_id, "failed", worker, code)

    def release(self, item_id: str, worker: str, code: str) -> None:
        """A worker gave an item back unfinished: it is queued again, and `code` says why."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE item SET state='queued', lease_owner=NULL, lease_until=NULL WHERE id=? AND state='running'",
                (item_id,),
            )
            _event(cursor, item_id, "queued", worker, code)

    def requeue(self, *, states: Sequence[State] = (), codes: Sequence[str] = (), ids: Sequence[str] = ()) -> int:
        """Queue items again: by state, narrowed by reason codes, or by id. Returns how many.

        Items that discovery refused are left alone: without other files there is nothing to attempt.
        """
        where, values = (f"id IN ({marks(ids)})", list(ids)) if ids else (f"state IN ({marks(states)})", list(states))
        where += " AND attempts > 0"
        if codes:
            where, values = f"{where} AND reason_code IN ({marks(codes)})", [*values, *codes]
        with self._transaction() as cursor:
            rows = cursor.execute(
                "UPDATE item SET state='queued', reason_code=NULL, reason=NULL, lease_owner=NULL, lease_until=NULL "
                f"WHERE {where} RETURNING id",
                values,
            ).fetchall()
            for row in rows:
                _event(cursor, row[0], "queued", None)
        return len(rows)

    def adopt(
        self, item: ItemRow, files: Sequence[FileRow], outputs: Sequence[OutputRow], events: Sequence[EventRow]
    ) -> None:
        """Take over an item of another ledger with its history; one that was in work is queued."""
        state = "queued" if item.state == "running" else item.state
        with self._transaction() as cursor:
            for table, key in (("file", "item_id"), ("output", "item_id"), ("event", "item_id"), ("item", "id")):
                cursor.execute(f"DELETE FROM {table} WHERE {key}=?", (item.id,))
            cursor.execute(
                "INSERT INTO item(id, kind, label, state, reason_code, reason, attempts, seconds, peak_mb, "
                "input_sha256, metrics_json, flags_json) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    *(item.id, item.kind, item.label, state, item.reason_code, item.reason, item.attempts),
                    *(item.seconds, item.peak_mb, item.input_sha256, _json(item.metrics), _json(item.flags)),
                ),
            )
            rows = [(item.id, row.relpath, row.size, row.mtime_ns) for row in files]
            cursor.executemany("INSERT INTO file VALUES (?,?,?,?)", rows)
            results = [(item.id, row.role, row.relpath, row.sha256, row.bytes) for row in outputs]
            cursor.executemany("INSERT INTO output VALUES (?,?,?,?,?)", results)
            history = [(event.ts, item.id, event.state, event.worker, event.code) for event in events]
            cursor.executemany("INSERT INTO event VALUES (?,?,?,?,?)", history)

    # --- the connection

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make everything inside one transaction: all of it is recorded, or nothing."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        try:
            with closing(self._connection.cursor()) as cursor:
                if self._connection.in_transaction:
                    yield cursor
                    return
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                except BaseException:
                    if self._connection.in_transaction:
                        cursor.execute("ROLLBACK")
                    raise
                cursor.execute("COMMIT")
        except sqlite3.Error as error:
            raise damaged(self.path.name, error) from None


def _verdict_holds(known: tuple[str, str | None, int], state: str, reason_code: str | None) -> bool:
    was, was_code, attempts = known
    if was in ("running", "done"):
        return True
    by_discovery = was_code == "gone" or (attempts == 0 and was != "queued")
    return not by_discovery if state == "queued" else (was, was_code) == (state, reason_code)


def _event(cursor: sqlite3.Cursor, item_id: str, state: str, worker: str | None, code: str | None = None) -> None:
    cursor.execute("INSERT INTO event VALUES (?,?,?,?,?)", (time.time(), item_id, state, worker, code))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _difference(known: RunRow, run: RunRow) -> str:
    """Which parameters differ, as the start of a remedy."""
    changed = [key for key in sorted({*known.params, *run.params}) if known.params.get(key) != run.params.get(key)]
    return "".join(f"{key} was {known.params.get(key)!r}, is {run.params.get(key)!r}; " for key in changed)
