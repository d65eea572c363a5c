"""``report.json``: a whole run as plain data, from the ledger and the previews beside the results. No torch.

``report.html`` is rendered from this file alone (`medseq.inference.report`). Without `show_identifiers` it holds no
name of an input file: items go by their id and label, and results that keep source names are listed without path.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseq.inference.ledger import ItemRow, Ledger, OutputRow
from medseq.inference.preview import difference_text

__all__ = ["SCHEMA", "build_report", "item_entry", "item_preview"]

SCHEMA = 1
# Pictures of all items together, as base64: beyond it a page no longer opens quickly.
_PICTURE_BYTES = 24 << 20


def build_report(
    ledger: Ledger,
    out: Path,
    *,
    bundle: Mapping[str, Any],
    environment: Mapping[str, Any],
    finished_utc: str,
    interrupted: bool = False,
    show_identifiers: bool = False,
) -> dict[str, Any]:
    """Everything a reader of the run must know, JSON-ready.

    Args:
        ledger: The run's ledger.
        out: Its output folder.
        bundle: Name, version, hash, task, modality, units, intended use of the bundle.
        environment: See `medseq.inference.environment`.
        finished_utc: When the run ended, ISO 8601.
        interrupted: The run was stopped before its end.
        show_identifiers: Tell the names of input files.
    """
    run = ledger.run()
    if run is None:
        raise ValueError("a report needs a run")
    by_id = run.params.get("names") != "source"
    entries = [item_entry(ledger, item, by_id=by_id, show=show_identifiers) for item in ledger.items()]
    shown = _add_pictures(ledger, out, entries)
    return {
        "schema": SCHEMA,
        "notice": "Research use only. Not for diagnosis.",
        "run": {
            "bundle": dict(bundle),
            "params": run.params,
            "params_hash": run.params_hash,
            "version": run.version,
            "created_utc": run.created_utc,
            "finished_utc": finished_utc,
            "interrupted": interrupted,
            "difference_window": difference_text(str(bundle.get("units", "1"))),
            "items_with_pictures": shown,
        },
        "counts": ledger.counts(),
        "items": entries,
        "environment": {key: value for key, value in environment.items() if key != "operators"},
        "doctor": {"operators": list(environment.get("operators", []))},
    }


def item_entry(ledger: Ledger, item: ItemRow, *, by_id: bool, show: bool) -> dict[str, Any]:
    """One item of a report, without its pictures.

    Args:
        ledger: Where its files and outputs stand.
        item: The item.
        by_id: Outputs go by ids, so that their paths tell no name.
        show: Tell the names of its input.
    """
    entry: dict[str, Any] = {
        "id": item.id,
        "kind": item.kind,
        "label": item.label,
        "state": item.state,
        "reason_code": item.reason_code,
        "reason": item.reason,
        "attempts": item.attempts,
        "seconds": item.seconds,
        "peak_mb": item.peak_mb,
        "input_sha256": item.input_sha256,
        "metrics": item.metrics,
        "flags": item.flags,
        "outputs": _outputs(ledger.outputs(item.id), with_path=by_id or show) if item.state == "done" else [],
        "preview": None,
    }
    files = ledger.files(item.id)
    entry["input_files"] = len(files)
    if show:
        entry["source"] = files[0].relpath if files else None
    return entry


def _outputs(rows: list[OutputRow], *, with_path: bool) -> list[dict[str, Any]]:
    """One entry a role; of a role with many files (a DICOM series) the folder and a hash over their hashes."""
    roles: dict[str, list[OutputRow]] = defaultdict(list)
    for row in rows:
        roles[row.role].append(row)
    entries = []
    for role, files in roles.items():
        single = len(files) == 1
        digest = (
            files[0].sha256 if single else hashlib.sha256("".join(row.sha256 for row in files).encode()).hexdigest()
        )
        path = files[0].relpath if single else files[0].relpath.rpartition("/")[0]
        entries.append(
            {
                "role": role,
                "relpath": path if with_path else None,
                "files": len(files),
                "bytes": sum(row.bytes for row in files),
                "sha256": digest,
            }
        )
    return entries


def _add_pictures(ledger: Ledger, out: Path, entries: list[dict[str, Any]]) -> int:
    """Put previews into their entries until the budget is used up, flagged items first; returns how many."""
    left, shown = _PICTURE_BYTES, 0
    done = [entry for entry in entries if entry["state"] == "done"]
    for entry in sorted(done, key=lambda entry: not any(flag["level"] != "info" for flag in entry["flags"])):
        row = next((row for row in ledger.outputs(entry["id"]) if row.role == "preview"), None)
        if row is None or row.bytes > left:
            continue
        entry["preview"] = item_preview(ledger, out, entry["id"])
        if entry["preview"] is None:
            continue
        left, shown = left - row.bytes, shown + 1
    return shown


def item_preview(ledger: Ledger, out: Path, item_id: str) -> dict[str, Any] | None:
    """The pictures of an item; None if it has none."""
    row = next((row for row in ledger.outputs(item_id) if row.role == "preview"), None)
    if row is None:
        return None
    try:
        view: dict[str, Any] = json.loads((out / row.relpath).read_text("utf-8"))
        return view
    except (OSError, ValueError):
        # The picture is lost, not the result; `medseq check` names the file.
        return None
