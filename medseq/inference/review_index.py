"""All items of all runs in one table in memory, so that a page of the worklist is one query. Plain sqlite3; no torch.

The ledgers and review stores stay what they are; this copy is brought up to date from what was added to them.
"""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from medseq.errors import InputError
from medseq.inference.ledger_schema import ItemRow
from medseq.inference.review_numbers import key_number, task_of, uncertainty
from medseq.inference.review_schema import ReviewState

__all__ = ["SORTS", "Filter", "WorkItem", "WorkIndex"]

_LEVELS = {"info": 1, "warn": 2, "fail": 3}
SORTS = {
    "found": "run",
    "label": "label",
    "state": "state",
    "task": "task",
    "modality": "modality",
    "key": "key_value",
    "uncertainty": "uncertainty",
    "flags": "worst",
    "status": "status",
    "assignee": "assignee",
    "score": "score",
    "seconds": "seconds",
    "method": "method",
    "study": "study_order.rank",
}
_SCHEMA = """
CREATE TABLE work(
    token TEXT PRIMARY KEY, run INTEGER NOT NULL, item_id TEXT NOT NULL, place INTEGER NOT NULL, label TEXT NOT NULL,
    kind TEXT NOT NULL, task TEXT NOT NULL, modality TEXT, method TEXT, state TEXT NOT NULL, reason_code TEXT,
    reason TEXT, seconds REAL, key_value REAL, key_text TEXT, uncertainty REAL, worst INTEGER NOT NULL,
    metrics TEXT NOT NULL, flags TEXT NOT NULL, words TEXT NOT NULL, names TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'unreviewed', assignee TEXT, score REAL, push TEXT, stale INTEGER NOT NULL DEFAULT 0,
    readers INTEGER NOT NULL DEFAULT 0, UNIQUE(run, item_id));
CREATE TABLE verdict(token TEXT NOT NULL, reviewer TEXT NOT NULL, decision TEXT NOT NULL, score INTEGER,
                     PRIMARY KEY(token, reviewer));
CREATE TABLE study_order(reader TEXT NOT NULL, token TEXT NOT NULL, rank INTEGER NOT NULL, PRIMARY KEY(reader, token))
    WITHOUT ROWID;
CREATE INDEX work_state ON work(state, place);
CREATE INDEX work_place ON work(place);
"""
_COLUMNS = (
    "work.token, run, item_id, label, kind, task, modality, method, state, reason_code, reason, seconds, key_value, "
    "key_text, uncertainty, metrics, flags, status, assignee, work.score, push, stale, readers"
)
_FIXED = ("token", "run", "item_id", "place", "label")
_CHANGING = (
    *("kind", "task", "modality", "method", "state", "reason_code", "reason", "seconds", "key_value", "key_text"),
    *("uncertainty", "worst", "metrics", "flags", "words", "names"),
)
# What the review says of an item stays when the run changes it.
_PUT = (
    f"INSERT INTO work({', '.join(_FIXED + _CHANGING)}) VALUES ({','.join('?' * len(_FIXED + _CHANGING))}) "
    f"ON CONFLICT(token) DO UPDATE SET {', '.join(f'{name}=excluded.{name}' for name in _CHANGING)}"
)


@dataclass(frozen=True)
class WorkItem:
    """One line of the worklist.

    Attributes:
        token: Opaque id for addresses; tells neither path nor person.
        run: Number of its run among those under review.
        key_value: The number that matters for its task; `key_text` says it in words.
        uncertainty: Mean spread of the result, where the run computed it.
        status: Of the review; see `medseq.inference.review_schema.ReviewState`. In a blinded study: one's own.
        mine: The decision of the reader who asks.
        readers: How many have decided.
        stale: A decision was about outputs that have changed since.
    """

    token: str
    run: int
    item_id: str
    label: str
    kind: str
    task: str
    modality: str | None
    method: str | None
    state: str
    reason_code: str | None
    reason: str | None
    seconds: float | None
    key_value: float | None
    key_text: str | None
    uncertainty: float | None
    metrics: dict[str, float]
    flags: list[dict[str, str]]
    status: str
    assignee: str | None
    score: float | None
    push: str | None
    stale: bool
    readers: int
    mine: str | None = None


@dataclass(frozen=True)
class Filter:
    """What a page shows; None and empty mean everything.

    Attributes:
        search: Words that label, id, method, reason and flags are searched for; all must be found.
        state: Of the run: ``done``, ``failed`` …
        task: ``restore``, ``recon``, ``mil``.
        decision: Status of the review.
        assignee: Whose; ``""`` for nobody's.
        run: Number of a run.
        reviewer: Who asks; `WorkItem.mine` is theirs.
        own_only: Status and filter go by the reader's own decision (blinded study).
    """

    search: str = ""
    state: str | None = None
    task: str | None = None
    decision: str | None = None
    assignee: str | None = None
    run: int | None = None
    reviewer: str = ""
    own_only: bool = False
    study_seed: str = field(default="", repr=False)

    def where(self) -> tuple[str, list[Any]]:
        """Condition and values."""
        status = "coalesce(verdict.decision, 'unreviewed')" if self.own_only else "status"
        asked = {"state": self.state, "task": self.task, status: self.decision, "run": self.run}
        parts = [f"{column}=?" for column, value in asked.items() if value is not None]
        values: list[Any] = [value for value in asked.values() if value is not None]
        if self.assignee is not None:
            parts.append("coalesce(assignee, '')=?")
            values.append(self.assignee)
        for word in self.search.lower().split():
            # In a blinded study only what is shown can be found.
            parts.append(f"{'names' if self.own_only else 'words'} LIKE ? ESCAPE '!'")
            values.append("%" + word.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%")
        return " AND ".join(parts) or "1", values


class WorkIndex:
    """The table; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._connection.executescript(_SCHEMA)

    def put_items(
        self, run: int, items: Iterable[tuple[str, int, ItemRow]], *, method: str, modality: str | None, hint: str
    ) -> None:
        """Add or replace items of a run, each with its token and its place in the ledger."""
        with self._lock:
            self._connection.execute("BEGIN")
            for token, place, item in items:
                self._connection.execute(_PUT, _item_values(token, run, place, item, method, modality, hint))
            self._connection.execute("COMMIT")

    def put_states(self, states: Iterable[tuple[str, ReviewState]]) -> None:
        """Where the review of items stands."""
        with self._lock:
            self._connection.execute("BEGIN")
            for token, state in states:
                values = (state.status, state.assignee, state.score, state.push, state.is_stale, len(state.verdicts))
                self._connection.execute(
                    "UPDATE work SET status=?, assignee=?, score=?, push=?, stale=?, readers=? WHERE token=?",
                    (*values, token),
                )
                self._connection.execute("DELETE FROM verdict WHERE token=?", (token,))
                rows = [(token, v.reviewer, v.decision, v.score) for v in state.verdicts.values()]
                self._connection.executemany("INSERT INTO verdict VALUES (?,?,?,?)", rows)
            self._connection.execute("COMMIT")

    def page(self, wanted: Filter, sort: str, offset: int, limit: int) -> tuple[list[WorkItem], int]:
        """Items that fit, and how many there are in all.

        Args:
            wanted: What to show.
            sort: A word of `SORTS`, with ``-`` in front for the largest first.
            offset: Items to leave out.
            limit: Items of a page.

        Raises:
            InputError: An unknown order.
        """
        name = sort.removeprefix("-")
        if name not in SORTS:
            raise InputError("no such order", found=name, wanted=", ".join(SORTS))
        where, values = wanted.where()
        order = f"{SORTS[name]} IS NULL, {SORTS[name]} {'DESC' if sort.startswith('-') else 'ASC'}, run, place"
        join = "FROM work LEFT JOIN verdict ON verdict.token=work.token AND verdict.reviewer=?"
        known: tuple[str, ...] = (wanted.reviewer,)
        if name == "study":
            reader = f"{wanted.study_seed}\n{wanted.reviewer}"
            join += " LEFT JOIN study_order ON study_order.token=work.token AND study_order.reader=?"
            known += (reader,)
        with self._lock:
            if name == "study":
                self._order_study(reader)
            count = f"SELECT count(*) {join} WHERE {where}"
            total = self._connection.execute(count, (*known, *values)).fetchone()[0]
            query = f"SELECT {_COLUMNS}, verdict.decision {join} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
            # A reader who jumps beyond the end sees the last page, not nothing.
            offset = max(0, min(offset, (total - 1) // limit * limit if total else 0))
            rows = self._connection.execute(query, (*known, *values, limit, offset)).fetchall()
        return [_work_item(row) for row in rows], int(total)

    def _order_study(self, reader: str) -> None:
        """Give every item that has none its place in the order of a reader."""
        counts = "SELECT (SELECT count(*) FROM work), (SELECT count(*) FROM study_order WHERE reader=?)"
        if len(set(self._connection.execute(counts, (reader,)).fetchone())) == 1:
            return
        fresh = "SELECT token FROM work WHERE token NOT IN (SELECT token FROM study_order WHERE reader=?)"
        tokens = [row[0] for row in self._connection.execute(fresh, (reader,))]
        rows = [(reader, token, _study_rank(reader, token)) for token in tokens]
        self._connection.executemany("INSERT INTO study_order VALUES (?,?,?)", rows)

    def item(self, token: str, reviewer: str = "") -> WorkItem | None:
        """One item; None for an unknown token."""
        query = f"SELECT {_COLUMNS}, verdict.decision FROM work LEFT JOIN verdict ON verdict.token=work.token "
        with self._lock:
            row = self._connection.execute(query + "AND reviewer=? WHERE work.token=?", (reviewer, token)).fetchone()
        return None if row is None else _work_item(row)

    def counts(self, column: str, reviewer: str | None = None) -> dict[str, int]:
        """Items by ``state``, ``task``, ``modality``, ``status`` or ``assignee``; of `reviewer` by own decision."""
        if column not in ("state", "task", "modality", "status", "assignee", "run", "push"):
            raise InputError("no such column", found=column)
        query = f"SELECT coalesce({column}, ''), count(*) FROM work GROUP BY 1"
        values: tuple[str, ...] = ()
        if reviewer is not None:
            query = (
                "SELECT coalesce(verdict.decision, 'unreviewed'), count(*) FROM work LEFT JOIN verdict "
                "ON verdict.token=work.token AND reviewer=? WHERE state='done' GROUP BY 1"
            )
            values = (reviewer,)
        with self._lock:
            return dict(self._connection.execute(query, values).fetchall())

    def counts_of(self, run: int) -> dict[str, int]:
        """Items of one run by state."""
        with self._lock:
            query = "SELECT state, count(*) FROM work WHERE run=? GROUP BY 1"
            return dict(self._connection.execute(query, (run,)).fetchall())

    def tokens(self, run: int) -> dict[str, str]:
        """Token by item id of one run."""
        with self._lock:
            return dict(self._connection.execute("SELECT item_id, token FROM work WHERE run=?", (run,)).fetchall())


def _study_rank(reader: str, token: str) -> int:
    """A place in an order that looks random, is the same every time, and another one for every reader."""
    return int.from_bytes(hashlib.sha256(f"{reader}\n{token}".encode()).digest()[:7], "big")


def _item_values(
    token: str, run: int, place: int, item: ItemRow, method: str, modality: str | None, hint: str
) -> tuple[Any, ...]:
    task = task_of(item.kind, hint)
    number, text = key_number(task, item.metrics)
    worst = max((_LEVELS.get(flag.get("level", ""), 0) for flag in item.flags), default=0)
    flags = " ".join(f"{flag.get('code', '')} {flag.get('message', '')}" for flag in item.flags)
    names = " ".join([item.label, item.id, token, item.kind, item.state]).lower()
    words = " ".join([names, method, item.reason or "", text or "", flags]).lower()
    return (
        *(token, run, item.id, place, item.label, item.kind, task, modality, method, item.state, item.reason_code),
        *(item.reason, item.seconds, number, text, uncertainty(item.metrics), worst, json.dumps(item.metrics)),
        *(json.dumps(item.flags), words, names),
    )


def _work_item(row: tuple[Any, ...]) -> WorkItem:
    values = list(row)
    values[15], values[16], values[21] = json.loads(values[15]), json.loads(values[16]), bool(values[21])
    return WorkItem(*values)
