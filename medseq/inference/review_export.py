"""Reviews as text: every event, the decisions that count, and reader x case x method for ROC studies. No torch.

A cell that a spreadsheet would take for a formula is written with an apostrophe before it.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from medseq import __version__
from medseq.errors import InputError
from medseq.inference.review_agreement import Kappa, agreement
from medseq.inference.review_runs import Runs
from medseq.inference.review_schema import Record
from medseq.inference.review_words import reason_words

__all__ = [
    "decisions_csv",
    "events_csv",
    "events_json",
    "mrmc_csv",
    "read_truth",
    "readers_agree",
    "safe_cell",
    "seconds_on_case",
]

_EVENT_COLUMNS = (
    *("seq", "ts_utc", "reviewer", "role", "item_id", "kind", "decision", "reason_code", "score", "comment"),
    *("target", "output_sha256", "bundle_hash", "geometry", "view", "app_version", "prev_mac", "mac"),
)
# A longer pause is no time on the case.
LONGEST_PAUSE_S = 1800.0


def safe_cell(value: object) -> str:
    """Text of a cell that no spreadsheet runs as a formula.

    Reference:
        OWASP, CSV Injection.
    """
    text = "" if value is None else str(value)
    if isinstance(value, int | float):
        return text
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r", "\n") else text


def events_csv(records: Sequence[Record], head: str) -> str:
    """All events of a store; the last line is the head: ``kind`` head, its number and code."""
    rows = [_event(record) for record in records]
    seq, _, code = head.partition(":")
    return _csv(_EVENT_COLUMNS, [*rows, {"seq": int(seq), "kind": "head", "mac": code}])


def events_json(records: Sequence[Record], head: str) -> str:
    """All events of a store with its head."""
    content = {"schema": 1, "app_version": __version__, "head": head, "events": [_event(record) for record in records]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def decisions_csv(runs: Runs) -> str:
    """One line for every reader's decision that counts, with adjudications; items without a decision have one too."""
    columns = (
        *("run", "method", "item_id", "task", "modality", "state", "status", "reviewer", "role", "decision"),
        *("reason_code", "reason", "score", "comment", "ts_utc", "stale", "seconds", "assignee", "push"),
    )
    rows: list[dict[str, Any]] = []
    for info, store in runs.stores():
        seconds = seconds_on_case(store.records())
        for item in runs.items_of(info.number):
            state = runs.state(item.token)
            base: dict[str, Any] = {"run": info.name, "method": info.method, "item_id": item.item_id, "task": item.task}
            base |= {"modality": item.modality, "state": item.state, "status": state.status}
            base |= {"assignee": state.assignee, "push": state.push}
            said = [("reviewer", verdict) for verdict in state.verdicts.values()]
            said += [("adjudicator", state.adjudication)] if state.adjudication else []
            for role, verdict in said:
                rows.append(
                    base
                    | {"reviewer": verdict.reviewer, "role": role, "decision": verdict.decision}
                    | {"reason_code": verdict.reason_code, "reason": reason_words(verdict.reason_code)}
                    | {"score": verdict.score, "comment": verdict.comment, "ts_utc": verdict.ts_utc}
                    | {"stale": verdict.stale, "seconds": seconds.get((verdict.reviewer, item.item_id))}
                )
            if not said:
                rows.append(base)
    return _csv(columns, rows)


def mrmc_csv(runs: Runs, truth: Mapping[str, int] | None = None) -> str:
    """Reader x case x method, one line for every decision: ready for ROC and Obuchowski-Rockette analyses.

    A case is an input: the same in every run over the same folder, whatever the method.

    Args:
        runs: The runs; each is one method.
        truth: Case -> 1 (diseased) or 0, where the study has one.

    Reference:
        Obuchowski and Rockette, Commun. Stat. Simul. Comput. 24, 1995.
    """
    columns = ("study", "reader", "case", "method", "score", "decision", "accepted", "truth", "seconds", "order")
    rows = []
    for info, store in runs.stores():
        records = store.records()
        seconds = seconds_on_case(records)
        order = _first_opened(records)
        items = list(runs.items_of(info.number))
        states = store.states(item.item_id for item in items)
        for item in items:
            for reader, verdict in sorted(states[item.item_id].verdicts.items()):
                rows.append(
                    {
                        "study": runs.study.name if runs.study else "",
                        "reader": reader,
                        "case": item.item_id,
                        "method": info.method or info.name,
                        "score": verdict.score,
                        "decision": verdict.decision,
                        "accepted": {"accept": 1, "reject": 0}.get(verdict.decision),
                        "truth": None if truth is None else truth.get(item.item_id),
                        "seconds": seconds.get((reader, item.item_id)),
                        "order": order.get((reader, item.item_id)),
                    }
                )
    return _csv(columns, rows)


def readers_agree(runs: Runs) -> dict[str, list[Kappa]]:
    """Agreement of the readers of every run, on accept and reject; wishes for a second look are left out."""
    found = {}
    for info, store in runs.stores():
        items = [item.item_id for item in runs.items_of(info.number)]
        ratings = {
            item_id: {name: v.decision for name, v in state.verdicts.items() if v.decision != "second-look"}
            for item_id, state in store.states(items).items()
        }
        found[info.name] = agreement({case: said for case, said in ratings.items() if said})
    return found


def read_truth(text: str) -> dict[str, int]:
    """A table with the columns ``case`` and ``truth`` (0 or 1).

    Raises:
        InputError: Other columns or values.
    """
    reader = csv.DictReader(io.StringIO(text))
    if not {"case", "truth"} <= set(reader.fieldnames or ()):
        raise InputError("not a table of truths", found=", ".join(reader.fieldnames or ()), wanted="case,truth")
    rows = list(reader)
    wrong = [row["truth"] for row in rows if row["truth"] not in ("0", "1")]
    if wrong:
        raise InputError("truth is 0 or 1", found=str(wrong[0])[:20])
    return {row["case"]: int(row["truth"]) for row in rows}


def seconds_on_case(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """Seconds that each reader spent on each item.

    From opening it to the decision, to closing it or to opening another, whatever came first; several visits add up,
    and a pause of more than half an hour counts as half an hour.
    """
    spent: dict[tuple[str, str], float] = {}
    opened: dict[str, tuple[str, datetime]] = {}
    for record in records:
        event = record.event
        try:
            when = datetime.fromisoformat(event.ts_utc or "")
        except ValueError:
            continue
        current = opened.get(event.reviewer)
        ends = event.kind == "open" or (current is not None and current[0] == event.item_id)
        if current is not None and ends and event.kind in ("open", "close", "decide", "adjudicate"):
            seconds = min(max((when - current[1]).total_seconds(), 0.0), LONGEST_PAUSE_S)
            key = (event.reviewer, current[0])
            spent[key] = round(spent.get(key, 0.0) + seconds, 3)
            del opened[event.reviewer]
        if event.kind == "open":
            opened[event.reviewer] = (event.item_id, when)
    return spent


def _first_opened(records: Sequence[Record]) -> dict[tuple[str, str], int]:
    """The place of each item in the order in which each reader opened them, from 1."""
    order: dict[tuple[str, str], int] = {}
    count: dict[str, int] = {}
    for record in records:
        key = (record.event.reviewer, record.event.item_id)
        if record.event.kind == "open" and key not in order:
            count[key[0]] = order[key] = count.get(key[0], 0) + 1
    return order


def _event(record: Record) -> dict[str, Any]:
    event = record.event
    values = {name: getattr(event, name) for name in _EVENT_COLUMNS if hasattr(event, name)}
    return {
        **values,
        "seq": record.seq,
        "app_version": record.app_version,
        "prev_mac": record.prev_mac,
        "mac": record.mac,
    }


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    # Ends of lines as in RFC 4180: only then are lone carriage returns in a cell quoted.
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([safe_cell(_plain(row.get(name))) for name in columns])
    return stream.getvalue()


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
