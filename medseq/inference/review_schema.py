"""Tables of the review store, and the events and verdicts that go in and out of it as values. No torch.

Rows are only ever added: triggers refuse every change. Whoever takes the triggers away is found out by the chain of
message authentication codes (`medseq.inference.review.ReviewStore.verify`).
"""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from medseq.errors import InputError

__all__ = [
    "COLUMNS",
    "DECISIONS",
    "KINDS",
    "SCHEMA",
    "VERSION",
    "Decision",
    "Event",
    "EventKind",
    "Record",
    "ReviewState",
    "Status",
    "Verdict",
]

EventKind = Literal["open", "close", "decide", "annotate", "adjudicate", "assign", "push", "undo"]
KINDS: tuple[str, ...] = get_args(EventKind)
Decision = Literal["accept", "reject", "second-look"]
DECISIONS: tuple[str, ...] = get_args(Decision)
Status = Literal["unreviewed", "accept", "reject", "second-look", "disagreement"]
# Who may do what; `system` is the worker that sends accepted series. Readers may take a case, or give it back.
PERMITTED: dict[str, tuple[str, ...]] = {
    "reviewer": ("open", "close", "decide", "annotate", "assign", "undo"),
    "adjudicator": ("open", "close", "decide", "annotate", "assign", "undo", "adjudicate"),
    "admin": ("open", "close", "decide", "annotate", "assign", "undo", "adjudicate"),
    "system": ("push",),
}
# What an undo may take back.
REVOCABLE = ("decide", "annotate", "adjudicate", "assign")
VERSION = 1
_MAX_TEXT = 10_000

COLUMNS = (
    "seq, ts_utc, reviewer, role, item_id, output_sha256, bundle_hash, kind, decision, reason_code, score, comment, "
    "geometry_json, view_json, target, app_version, prev_mac, mac"
)
_KINDS_SQL = ",".join(f"'{kind}'" for kind in KINDS)
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE event(
    seq INTEGER PRIMARY KEY, ts_utc TEXT NOT NULL, reviewer TEXT NOT NULL, role TEXT NOT NULL, item_id TEXT NOT NULL,
    output_sha256 TEXT NOT NULL, bundle_hash TEXT NOT NULL, kind TEXT NOT NULL CHECK(kind IN ({_KINDS_SQL})),
    decision TEXT, reason_code TEXT, score INTEGER CHECK(score BETWEEN 1 AND 5), comment TEXT, geometry_json TEXT,
    view_json TEXT, target INTEGER REFERENCES event(seq), app_version TEXT NOT NULL, prev_mac TEXT NOT NULL,
    mac TEXT NOT NULL);
CREATE INDEX event_item ON event(item_id, seq);
CREATE INDEX event_target ON event(target);
CREATE VIEW effective AS SELECT * FROM event AS e
    WHERE kind != 'undo' AND NOT EXISTS (SELECT 1 FROM event AS u WHERE u.kind = 'undo' AND u.target = e.seq);
CREATE TRIGGER event_never_changes BEFORE UPDATE ON event BEGIN SELECT raise(ABORT, 'append-only'); END;
CREATE TRIGGER event_never_goes BEFORE DELETE ON event BEGIN SELECT raise(ABORT, 'append-only'); END;
CREATE TRIGGER meta_never_changes BEFORE UPDATE ON meta BEGIN SELECT raise(ABORT, 'append-only'); END;
CREATE TRIGGER meta_never_goes BEFORE DELETE ON meta BEGIN SELECT raise(ABORT, 'append-only'); END;
PRAGMA user_version={VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class Event:
    """One thing that a reviewer did. What the store adds (number, time, code) is in `Record`.

    Attributes:
        reviewer: Who; a name of the sign-in, never a patient's.
        item_id: Which item of the run.
        kind: ``open`` and ``close`` a case, ``decide``, ``annotate``, ``adjudicate``, ``assign``, ``push``, ``undo``.
        role: ``reviewer``, ``adjudicator``, ``admin`` or ``system``; see `PERMITTED`.
        output_sha256: Hash over the outputs that were shown.
        bundle_hash: Hash of the model that made them.
        decision: ``accept``, ``reject`` or ``second-look``; for ``assign`` the assignee, for ``push`` its state.
        reason_code: Stable word; see `medseq.inference.review_words`.
        score: 1 to 5, or None.
        comment: Free text.
        geometry: Points and boxes in image coordinates, JSON-ready.
        view: What was on the screen: window, plane, slice, zoom; JSON-ready.
        target: For ``undo`` the number of the event that is taken back.
        ts_utc: When, ISO 8601 in UTC; default: now. Clocks may differ: the number of the event decides, not the time.
    """

    reviewer: str
    item_id: str
    kind: EventKind
    role: str = "reviewer"
    output_sha256: str = ""
    bundle_hash: str = ""
    decision: str | None = None
    reason_code: str | None = None
    score: int | None = None
    comment: str | None = None
    geometry: list[dict[str, Any]] | None = None
    view: dict[str, Any] | None = None
    target: int | None = None
    ts_utc: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError("no such kind of event", found=self.kind, wanted=", ".join(KINDS))
        if self.kind not in PERMITTED.get(self.role, ()):
            raise InputError(
                "this role may not do that", found=f"{self.role}: {self.kind}", remedy="ask an adjudicator"
            )
        if self.kind == "assign" and self.role != "admin" and self.decision not in ("", None, self.reviewer):
            raise InputError("only an admin gives cases to others", found=self.role)
        if not self.reviewer or not self.item_id:
            raise InputError("an event needs a reviewer and an item", found="none")
        if self.kind in ("decide", "adjudicate") and self.decision not in DECISIONS:
            raise InputError("no such decision", found=self.decision, wanted=", ".join(DECISIONS))
        if self.score is not None and not 1 <= self.score <= 5:
            raise InputError("the score is out of range", found=self.score, wanted="1 to 5")
        if (self.kind == "undo") != (self.target is not None):
            raise InputError("an undo, and nothing else, names the event it takes back", found=self.kind)
        if self.comment is not None and len(self.comment) > _MAX_TEXT:
            raise InputError("the comment is too long", found=len(self.comment), wanted=f"at most {_MAX_TEXT}")


@dataclass(frozen=True)
class Record:
    """An event as it is stored: `event` and what the store added to it."""

    seq: int
    event: Event
    app_version: str
    prev_mac: str
    mac: str

    def row(self) -> tuple[Any, ...]:
        """Values of `COLUMNS`."""
        e = self.event
        return (
            *(self.seq, e.ts_utc, e.reviewer, e.role, e.item_id, e.output_sha256, e.bundle_hash, e.kind, e.decision),
            *(e.reason_code, e.score, e.comment, _json(e.geometry), _json(e.view), e.target, self.app_version),
            *(self.prev_mac, self.mac),
        )

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> "Record":
        """From values of `COLUMNS`; whoever wrote the row, so nothing is checked."""
        event = object.__new__(Event)
        names = ("reviewer", "role", "item_id", "output_sha256", "bundle_hash", "kind", "decision", "reason_code")
        values: dict[str, Any] = dict(zip(names, row[2:10], strict=True))
        values |= {"ts_utc": row[1], "score": row[10], "comment": row[11], "target": row[14]}
        values |= {"geometry": _parsed(row[12]), "view": _parsed(row[13])}
        for name, value in values.items():
            object.__setattr__(event, name, value)
        return cls(row[0], event, row[15], row[16], row[17])


@dataclass(frozen=True)
class Verdict:
    """The decision of one reviewer that counts now.

    Attributes:
        stale: It was about outputs that have changed since.
    """

    seq: int
    reviewer: str
    decision: Decision
    reason_code: str | None
    score: int | None
    comment: str | None
    ts_utc: str
    stale: bool = False


@dataclass(frozen=True)
class ReviewState:
    """Where the review of one item stands.

    Attributes:
        status: ``unreviewed``, the decision, or ``disagreement`` between reviewers, which an adjudicator settles.
        verdicts: By reviewer.
        adjudication: The adjudicator's word, which counts more than any verdict.
        annotations: Points and boxes that were not taken back, each with ``seq`` and ``reviewer``.
        assignee: Whose case it is.
        push: ``queued``, ``sent``, ``failed`` or None.
        opened_by: Reviewers who opened it.
        last_seq: Number of the last event about the item.
    """

    item_id: str
    status: Status = "unreviewed"
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    adjudication: Verdict | None = None
    annotations: tuple[dict[str, Any], ...] = ()
    assignee: str | None = None
    push: str | None = None
    opened_by: tuple[str, ...] = ()
    last_seq: int = 0

    @property
    def score(self) -> float | None:
        """Mean score of the reviewers who gave one."""
        scores = [verdict.score for verdict in self.verdicts.values() if verdict.score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def is_stale(self) -> bool:
        """Whether a verdict that counts was about other outputs."""
        counting = [self.adjudication] if self.adjudication else list(self.verdicts.values())
        return any(verdict.stale for verdict in counting)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        # Somebody changed the row; `verify` says so.
        return None
