"""Reading a run ledger: rows of its tables as values, without ever holding them all."""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medseq.inference.ledger_schema import STATES, EventRow, FileRow, ItemRow, OutputRow, RunRow, State

__all__ = ["ITEM_COLUMNS", "LedgerRows", "item_row", "marks"]

ITEM_COLUMNS = (
    "id, kind, label, state, reason_code, reason, attempts, seconds, peak_mb, input_sha256, "
    "coalesce(metrics_json, '{}'), coalesce(flags_json, '[]')"
)

_PAGE = 500


class LedgerRows:
    """What an open ledger tells; `medseq.inference.ledger.Ledger` adds what changes it."""

    _connection: sqlite3.Connection

    def run(self) -> RunRow | None:
        """The run of this folder, None before `begin_run`."""
        row = self._one("SELECT bundle_hash, params_json, params_hash, version, created_utc FROM run ORDER BY id DESC")
        return None if row is None else RunRow(row[0], json.loads(row[1]), *row[2:])

    def origin(self) -> Path | None:
        """The input folder, as it was called then; None where an older medseq did not note it."""
        if self._one("SELECT 1 FROM sqlite_master WHERE name='origin'") is None:
            return None
        row = self._one("SELECT root FROM origin")
        return None if row is None else Path(os.fsdecode(row[0]))

    def ids(self, beginning: str) -> list[str]:
        """Ids that begin so."""
        query = "SELECT id FROM item WHERE substr(id, 1, ?)=? ORDER BY id"
        return [row[0] for row in self._connection.execute(query, (len(beginning), beginning))]

    def item(self, item_id: str) -> ItemRow | None:
        """One item."""
        row = self._one(f"SELECT {ITEM_COLUMNS} FROM item WHERE id=?", item_id)
        return None if row is None else item_row(row)

    def items(self, *states: State) -> Iterator[ItemRow]:
        """Items in the order of discovery, one at a time; all states if none is named."""
        where = f"AND state IN ({marks(states)})" if states else ""
        query = f"SELECT rowid, id FROM item WHERE rowid>? {where} ORDER BY rowid LIMIT {_PAGE}"
        last = -1
        # Ids first, some at a time: the caller may change rows while it iterates.
        while rows := self._connection.execute(query, (last, *states)).fetchall():
            last = rows[-1][0]
            for _, item_id in rows:
                item = self.item(item_id)
                if item is not None:
                    yield item

    def placed(self, ids: Sequence[str] | None = None) -> Iterator[tuple[int, ItemRow]]:
        """Items with their place in the order of discovery, in one query; all, or those of `ids`."""
        query = f"SELECT {ITEM_COLUMNS}, rowid FROM item"
        for lo in range(0, 1 if ids is None else len(ids), 500):
            some = None if ids is None else ids[lo : lo + 500]
            where = "" if some is None else f" WHERE id IN ({marks(some)})"
            for row in self._connection.execute(f"{query}{where} ORDER BY rowid", some or ()):
                yield row[-1], item_row(row)

    def last_event(self) -> int:
        """Number of the last change of state, 0 if there is none."""
        return int(self._one("SELECT coalesce(max(rowid), 0) FROM event")[0])

    def changed_since(self, event: int) -> list[str]:
        """Items whose state changed after the event of this number."""
        return [
            row[0] for row in self._connection.execute("SELECT DISTINCT item_id FROM event WHERE rowid>?", (event,))
        ]

    def has_queued(self) -> bool:
        """Whether any item waits to be computed."""
        return self._one("SELECT 1 FROM item WHERE state='queued' LIMIT 1") is not None

    def counts(self) -> dict[str, int]:
        """Number of items in each state."""
        return {
            **dict.fromkeys(STATES, 0),
            **dict(self._connection.execute("SELECT state, count(*) FROM item GROUP BY 1")),
        }

    def files(self, item_id: str) -> list[FileRow]:
        """Input files of an item, in the order they were given."""
        query = "SELECT relpath, size, mtime_ns FROM file WHERE item_id=? ORDER BY rowid"
        return [FileRow(*row) for row in self._connection.execute(query, (item_id,))]

    def outputs(self, item_id: str) -> list[OutputRow]:
        """Output files of an item, by path."""
        query = "SELECT role, relpath, sha256, bytes FROM output WHERE item_id=? ORDER BY relpath"
        return [OutputRow(*row) for row in self._connection.execute(query, (item_id,))]

    def owner(self, relpath: str) -> str | None:
        """The item that an output path belongs to, finished or not."""
        row = self._one("SELECT item_id FROM output WHERE relpath=?", relpath)
        return None if row is None else row[0]

    def events(self, item_id: str) -> list[EventRow]:
        """History of an item."""
        known = {row[1] for row in self._connection.execute("PRAGMA table_info(event)")}
        query = f"SELECT ts, state, worker, {'code' if 'code' in known else 'NULL'} FROM event WHERE item_id=? "
        return [EventRow(*row) for row in self._connection.execute(query + "ORDER BY rowid", (item_id,))]

    def _one(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query, values).fetchone()


def item_row(row: Sequence[Any]) -> ItemRow:
    """A row of `ITEM_COLUMNS` as a value."""
    values = [*row[:10], json.loads(row[10]), json.loads(row[11])]
    return ItemRow(*values)


def marks(values: Sequence[Any]) -> str:
    """Placeholders for so many values."""
    return ",".join("?" * len(values))
