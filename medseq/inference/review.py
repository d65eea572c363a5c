"""The review store: an append-only SQLite file of who saw what, and what they decided. Plain sqlite3; no torch.

Every row carries an HMAC over itself and over the code of the row before it, with a key that lies elsewhere
(`medseq.inference.review_key`). A row that was changed, removed or put in between breaks the chain; rows cut off at
the end are missed against the head, which every export prints: ``<seq>:<code>``.

Several processes may append at once: a writer takes the file's lock, reads the last row and adds its own. The number
of a row decides the order; clocks of two reviewers may differ.

Reference:
    Bellare and Yee, Forward integrity for secure audit logs, UCSD 1997 (chaining); RFC 2104 (HMAC).
"""

import hashlib
import hmac
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medseq import __version__
from medseq.errors import InputError, OutputError
from medseq.inference.ledger_file import is_network
from medseq.inference.review_schema import COLUMNS, REVOCABLE, SCHEMA, VERSION, Event, Record, ReviewState
from medseq.inference.review_state import state_of, undone

__all__ = ["STORE", "Event", "ReviewState", "ReviewStore", "Verification"]

STORE = "review.sqlite"
_GENESIS = "0" * 64
_BUSY_S = 30
_SELECT = f"SELECT {COLUMNS} FROM event"


@dataclass(frozen=True)
class Verification:
    """What `ReviewStore.verify` found.

    Attributes:
        rows: Rows that were read.
        head: ``<seq>:<code>`` of the last row; of an empty store ``0:`` and zeros.
        problems: In words, each with the number of its row; empty if nothing was tampered with.
    """

    rows: int
    head: str
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the chain is whole."""
        return not self.problems


class ReviewStore:
    """An open review store; threads may share it, processes open their own.

    Args:
        path: The SQLite file, ``review.sqlite``; created if missing, unless `read_only`.
        key: Secret of the chain, at least 16 bytes; see `medseq.inference.review_key.audit_key`.
        read_only: Change nothing. A missing file is an empty store.

    Raises:
        OutputError: Damaged, not writable, of another key, or written by a newer medseq; nothing was changed.
        InputError: The key is too short.
    """

    def __init__(self, path: str | os.PathLike[str], key: bytes, *, read_only: bool = False) -> None:
        if len(key) < 16:
            raise InputError("the audit key is too short", found=f"{len(key)} bytes", wanted="at least 16")
        self.path, self.read_only, self._key = Path(path), read_only, key
        self._lock = threading.RLock()
        if self.path.exists():
            _require_known_version(self.path)
        with _in_words(self.path.name):
            self._connection = self._connect()
            self._require_key()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "ReviewStore":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- writing

    def append(self, event: Event, *, only_if: Callable[[list[Record]], bool] | None = None) -> int | None:
        """Add an event and return its number, which is on the disk then.

        Args:
            event: What happened.
            only_if: Asked with the history of the item while nobody else can write; if False nothing is added and
                None is returned.

        Raises:
            InputError: An undo of what is not there, not one's own, or already taken back.
            OutputError: The file cannot be written.
        """
        with self._writing() as cursor:
            if event.kind == "undo":
                self._require_revocable(cursor, event)
            if only_if is not None:
                rows = cursor.execute(f"{_SELECT} WHERE item_id=? ORDER BY seq", (event.item_id,))
                if not only_if([Record.from_row(row) for row in rows]):
                    return None
            last = cursor.execute("SELECT seq, mac FROM event ORDER BY seq DESC LIMIT 1").fetchone()
            seq, previous = (last[0] + 1, last[1]) if last else (1, _GENESIS)
            stamped = replace(event, ts_utc=event.ts_utc or _now())
            record = Record(seq, stamped, __version__, previous, "")
            record = replace(record, mac=self._mac(record.row()))
            cursor.execute(f"INSERT INTO event({COLUMNS}) VALUES ({','.join('?' * 18)})", record.row())
        return seq

    def undo(self, item_id: str, reviewer: str, role: str = "reviewer") -> int | None:
        """Take back this reviewer's last decision, annotation or assignment on an item; None if there is none.

        Returns:
            Number of the event that was taken back.
        """
        records = self.history(item_id)
        gone = undone(records)
        for record in reversed(records):
            if record.event.reviewer == reviewer and record.event.kind in REVOCABLE and record.seq not in gone:
                self.append(Event(reviewer, item_id, "undo", role=role, target=record.seq))
                return record.seq
        return None

    # --- reading

    def state(self, item_id: str, output_sha256: str | None = None) -> ReviewState:
        """Where the review of an item stands; with the present hash of its outputs, stale verdicts say so."""
        return state_of(item_id, self.history(item_id), output_sha256)

    def states(self, item_ids: Iterable[str]) -> dict[str, ReviewState]:
        """The states of many items, in one pass over the store."""
        wanted = dict.fromkeys(item_ids)
        events: dict[str, list[Record]] = {item_id: [] for item_id in wanted}
        for record in self.records():
            if record.event.item_id in events:
                events[record.event.item_id].append(record)
        return {item_id: state_of(item_id, records) for item_id, records in events.items()}

    def history(self, item_id: str) -> list[Record]:
        """Every event about an item, undone ones included, in order."""
        return self._select(f"{_SELECT} WHERE item_id=? ORDER BY seq", item_id)

    def records(self, after: int = 0) -> list[Record]:
        """Every event with a number above `after`, in order."""
        return self._select(f"{_SELECT} WHERE seq>? ORDER BY seq", after)

    def last_seq(self) -> int:
        """Number of the last event, 0 if there is none."""
        with self._lock, _in_words(self.path.name):
            return int(self._connection.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0])

    def head(self) -> str:
        """``<seq>:<code>`` of the last row, for a note kept elsewhere."""
        with self._lock, _in_words(self.path.name):
            row = self._connection.execute("SELECT seq, mac FROM event ORDER BY seq DESC LIMIT 1").fetchone()
        return f"{row[0]}:{row[1]}" if row else f"0:{_GENESIS}"

    def verify(self, head: str | None = None) -> Verification:
        """Read the whole chain again.

        Args:
            head: ``<seq>:<code>`` as an earlier export printed it: the store must still hold that row.

        Raises:
            InputError: A head that is none.
        """
        noted = _parsed_head(head)
        problems: list[str] = []
        expected, previous, rows, seen = 1, _GENESIS, 0, noted is not None and noted == (0, _GENESIS)
        with (
            self._lock,
            _in_words(self.path.name),
            closing(self._connection.execute(f"{_SELECT} ORDER BY seq")) as all_,
        ):
            for row in all_:
                rows += 1
                if row[0] != expected:
                    problems.append(f"row {expected}: missing")
                if row[-2] != previous:
                    problems.append(f"row {row[0]}: does not follow the row before it")
                if not hmac.compare_digest(str(row[-1]), self._mac((*row[:-1], ""))):
                    problems.append(f"row {row[0]}: its content is not what was written")
                seen = seen or noted == (row[0], row[-1])
                expected, previous = row[0] + 1, str(row[-1])
        if noted is not None and not seen:
            problems.append(f"row {noted[0]}: the noted head is not in the store, rows were cut off or rewritten")
        return Verification(rows, f"{expected - 1}:{previous}", tuple(problems))

    def export(self, fmt: Literal["csv", "json"]) -> str:
        """Every event as text, with the head; see `medseq.inference.review_export` for the other formats.

        Raises:
            InputError: Another format.
        """
        from medseq.inference.review_export import events_csv, events_json

        if fmt not in ("csv", "json"):
            raise InputError("no such export", found=fmt, wanted="csv or json")
        records, head = self.records(), self.head()
        return events_csv(records, head) if fmt == "csv" else events_json(records, head)

    # --- inside

    def _select(self, query: str, *values: Any) -> list[Record]:
        with self._lock, _in_words(self.path.name):
            return [Record.from_row(row) for row in self._connection.execute(query, values)]

    def _mac(self, row: tuple[Any, ...]) -> str:
        """Code of a row of `COLUMNS`; its last value is left out."""
        text = json.dumps(row[:-1], ensure_ascii=False, separators=(",", ":"))
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def _require_revocable(self, cursor: sqlite3.Cursor, event: Event) -> None:
        query = "SELECT reviewer, kind, item_id FROM effective WHERE seq=?"
        found = cursor.execute(query, (event.target,)).fetchone()
        if found is None or found[1] not in REVOCABLE or found[2] != event.item_id:
            raise InputError("there is nothing to take back", where=f"event {event.target}")
        if found[0] != event.reviewer:
            raise InputError("only its own author takes an event back", where=f"event {event.target}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        if self.read_only:
            raise OutputError("the review was opened for reading only", where=self.path.name)
        with self._lock, _in_words(self.path.name), closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        options: dict[str, Any] = {"timeout": _BUSY_S, "isolation_level": None, "check_same_thread": False}
        if self.read_only:
            if self.path.exists():
                connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, **options)
                if connection.execute("PRAGMA user_version").fetchone()[0]:
                    return connection
                # Another process is about to make its tables.
                connection.close()
            connection = sqlite3.connect(":memory:", **options)
            connection.executescript(SCHEMA)
            return connection
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self.path, **options)
        if not is_network(self.path.parent):
            connection.execute("PRAGMA journal_mode=WAL")
        # A decision that was confirmed survives a power cut.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            _create(connection, self._key_check())
        return connection

    def _key_check(self) -> str:
        """Tells keys apart without telling them."""
        return hmac.new(self._key, b"medseq review store", hashlib.sha256).hexdigest()[:16]

    def _require_key(self) -> None:
        found = self._connection.execute("SELECT value FROM meta WHERE name='key'").fetchone()
        if found is not None and not hmac.compare_digest(found[0], self._key_check()):
            raise OutputError(
                "the review was begun with another audit key",
                where=self.path.name,
                remedy="give that key (MEDSEQ_AUDIT_KEY); nothing was changed",
            )


def _create(connection: sqlite3.Connection, key_check: str) -> None:
    try:
        # The key's mark goes in with the tables: a store without it was tampered with.
        connection.executescript(SCHEMA.replace("PRAGMA user_version", _MARK.format(key_check) + "PRAGMA user_version"))
    except sqlite3.OperationalError:
        # Another process created the tables in the meantime.
        connection.execute("ROLLBACK") if connection.in_transaction else None
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            raise


_MARK = "INSERT INTO meta VALUES ('key', '{}');\n"


def _require_known_version(path: Path) -> None:
    """Refuse what a newer medseq wrote, before a byte is changed."""
    with _in_words(path.name), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise OutputError(
            "the review was recorded by a newer medseq",
            where=path.name,
            found=f"version {found}",
            wanted=f"{VERSION} at most",
            remedy="update medseq; nothing was changed",
        )


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        what, remedy = "the review store cannot be read", "restore it from a copy; nothing was changed"
        if "locked" in text or "busy" in text:
            what, remedy = "the review store is held by another process", "try again"
        elif any(word in text for word in ("readonly", "unable to open", "full")):
            what, remedy = "the review store cannot be written", "check space and permissions of the folder"
        raise OutputError(what, where=name, found=text, remedy=remedy) from None


def _parsed_head(head: str | None) -> tuple[int, str] | None:
    if head is None:
        return None
    number, _, code = head.strip().partition(":")
    if not number.isdigit() or len(code) != 64:
        raise InputError("not a head of a review", found=head[:80], wanted="<number>:<64 hexadecimal digits>")
    return int(number), code.lower()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
