"""Cases as rows of the worklist: which columns there are, and what stands in them. Nothing here knows Streamlit."""

from typing import Any

from look import DECISIONS, STATES, TASKS, TONES

__all__ = ["columns", "row"]

_WORST = ("info", "warn", "fail")
_TONE = {"info": "quiet", "warn": "warn", "fail": "bad"}
_PUSH = {"queued": "waiting to be sent", "sent": "sent to archive", "failed": "sending failed"}

# Title, word for sorting, and whether a blinded reader may see it.
_COLUMNS = (
    ("Case", "label", True),
    ("Task", "task", True),
    ("Modality", "modality", True),
    ("Model", "method", False),
    ("Key number", "key", False),
    ("Uncertainty", "uncertainty", False),
    ("Flags", "flags", False),
    ("Run", "state", True),
    ("Review", "status", True),
    ("Assigned to", "assignee", True),
    ("Archive", None, False),
)


def columns(blinded: bool) -> list[dict[str, Any]]:
    """Headings of the table."""
    return [{"title": title, "sort": sort} for title, sort, open_ in _COLUMNS if open_ or not blinded]


def row(item: Any, blinded: bool) -> dict[str, Any]:
    """One case; `item` is a `medseq.inference.review_runs.WorkItem`."""
    review = {"text": DECISIONS[item.status], "tone": TONES[item.status]}
    if item.stale:
        review = {"text": f"{DECISIONS[item.status]}, result changed since", "tone": "bad"}
    run = {"text": STATES[item.state], "tone": TONES[item.state], "title": item.reason or ""}
    open_ = {
        "Case": {"text": item.label},
        "Task": {"text": TASKS[item.task]},
        "Modality": {"text": item.modality or ""},
        "Run": run if item.state != "done" else {"text": STATES[item.state]},
        "Review": review,
        "Assigned to": {"text": item.assignee or ""},
    }
    hidden = {
        "Model": {"text": item.method or ""},
        "Key number": {"text": item.key_text or ""},
        "Uncertainty": {"text": "" if item.uncertainty is None else f"{item.uncertainty:.3g}"},
        "Flags": _flags(item.flags),
        "Archive": {"text": _PUSH.get(item.push or "", item.push or "")},
    }
    cells = open_ if blinded else open_ | hidden
    return {"token": item.token, "cells": [cells[title] for title, _, seen in _COLUMNS if seen or not blinded]}


def _flags(flags: list[dict[str, str]]) -> dict[str, Any]:
    if not flags:
        return {"text": ""}
    worst = max((flag["level"] for flag in flags), key=_WORST.index)
    messages = "\n".join(flag["message"] for flag in flags)
    number = sum(flag["level"] == worst for flag in flags)
    words = {"info": "note", "warn": "warning", "fail": "failure"}[worst]
    return {"text": f"{number} {words}{'s' if number > 1 else ''}", "tone": _TONE[worst], "title": messages}
