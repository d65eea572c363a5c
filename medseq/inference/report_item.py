"""The page of one item: what the report says of it, and its whole history. No torch."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from medseq.inference.ledger_schema import EventRow
from medseq.inference.report import item_card, page

__all__ = ["PAGES", "render_item"]

# Folder below the output folder; ``report.html`` links there.
PAGES = "report"
_NOTICE = "Research use only. Not for diagnosis."


def render_item(entry: Mapping[str, Any], events: Sequence[EventRow], bundle: str) -> str:
    """The HTML page of an item.

    Args:
        entry: See `medseq.inference.report_json.item_entry`, with its preview.
        events: Its history.
        bundle: Name and version of what computed it.
    """
    rows = "".join(
        f"<tr><td class='mono'>{_when(event.ts)}</td><td>{escape(event.state)}</td>"
        f"<td>{escape(event.code or '')}</td><td class='mono'>{escape(event.worker or '')}</td></tr>"
        for event in events
    )
    head = "<thead><tr><th>When (UTC)</th><th>State</th><th>Why</th><th>Worker</th></tr></thead>"
    facts = [f"attempts {entry['attempts']}"]
    if entry["peak_mb"] is not None:
        facts.append(f"largest memory of its process {entry['peak_mb']:.0f} MB")
    if entry["input_sha256"]:
        facts.append(f"input sha256 {entry['input_sha256']}")
    body = (
        f"<header><h1>{escape(entry['id'])}</h1><p class='quiet'>{escape(bundle)} · "
        f"<a href='../report.html'>the whole run</a></p></header>"
        f"{item_card({**entry, 'events': len(events)})}"
        f"<h2>History</h2><p class='quiet'>{escape(' · '.join(facts))}</p><br>"
        f"<table>{head}<tbody>{rows}</tbody></table>"
    )
    return page(f"{entry['id']}: {bundle}", _NOTICE, body)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
