"""From events to where a review stands: who decided what, whether they agree, what was taken back. No files."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from medseq.inference.review_schema import Record, ReviewState, Status, Verdict

__all__ = ["state_of", "status_of", "undone"]


def undone(records: Iterable[Record]) -> set[int]:
    """Numbers of the events that were taken back."""
    return {record.event.target for record in records if record.event.kind == "undo" and record.event.target}


def state_of(item_id: str, records: list[Record], output_sha256: str | None = None) -> ReviewState:
    """The state of one item.

    Args:
        item_id: The item.
        records: All its events, in their order.
        output_sha256: Hash over its outputs as they are recorded now; None if unknown.
    """
    gone = undone(records)
    verdicts: dict[str, Verdict] = {}
    annotations: list[dict[str, Any]] = []
    state = ReviewState(item_id)
    opened: dict[str, None] = {}
    for record in records:
        event = record.event
        if event.kind == "open":
            opened[event.reviewer] = None
        if event.kind == "undo" or record.seq in gone:
            continue
        if event.kind in ("decide", "adjudicate"):
            verdict = _verdict(record, output_sha256)
            if event.kind == "decide":
                verdicts[event.reviewer] = verdict
            else:
                state = replace(state, adjudication=verdict)
        elif event.kind == "annotate":
            annotations += [{**shape, "seq": record.seq, "reviewer": event.reviewer} for shape in event.geometry or ()]
        elif event.kind == "assign":
            state = replace(state, assignee=event.decision or None)
        elif event.kind == "push":
            state = replace(state, push=event.decision)
    return replace(
        state,
        status=status_of(verdicts, state.adjudication),
        verdicts=verdicts,
        annotations=tuple(annotations),
        opened_by=tuple(opened),
        last_seq=records[-1].seq if records else 0,
    )


def status_of(verdicts: dict[str, Verdict], adjudication: Verdict | None) -> Status:
    """What the verdicts amount to; a wish for a second look gives way to the second reader's decision."""
    if adjudication is not None:
        return adjudication.decision
    firm = {verdict.decision for verdict in verdicts.values()} - {"second-look"}
    if len(firm) > 1:
        return "disagreement"
    if firm:
        return firm.pop()
    return "second-look" if verdicts else "unreviewed"


def _verdict(record: Record, output_sha256: str | None) -> Verdict:
    event = record.event
    stale = output_sha256 is not None and event.output_sha256 not in ("", output_sha256)
    decision: Any = event.decision
    return Verdict(
        record.seq, event.reviewer, decision, event.reason_code, event.score, event.comment, event.ts_utc or "", stale
    )
