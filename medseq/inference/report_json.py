"""``report.json``: a whole run as plain data, from the ledger and the previews beside the results. No torch.

``report.html`` is rendered from the same values alone (`medseq.inference.report`). Without `show_identifiers` it holds
no name of an input file: items go by their id and label, and results that keep source names are listed without path.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseq.inference.ledger import ItemRow, Ledger, OutputRow
from medseq.inference.ledger_schema import State
from medseq.inference.preview import difference_text

__all__ = ["SCHEMA", "Report", "item_entry", "item_preview"]

SCHEMA = 1
# Pictures of all items together, as base64: beyond it a page no longer opens quickly.
_PICTURE_BYTES = 24 << 20


class Report:
    """Everything a reader of a run must know, JSON-ready, one item at a time: a run may have more than memory holds.

    Args:
        ledger: The run's ledger.
        out: Its output folder.
        bundle: Name, version, hash, task, modality, units, intended use of the bundle.
        environment: See `medseq.inference.environment`.
        finished_utc: When the run ended, ISO 8601.
        interrupted: The run was stopped before its end.
        show_identifiers: Tell the names of input files.
    """

    def __init__(
        self,
        ledger: Ledger,
        out: Path,
        *,
        bundle: Mapping[str, Any],
        environment: Mapping[str, Any],
        finished_utc: str,
        interrupted: bool = False,
        show_identifiers: bool = False,
    ) -> None:
        run = ledger.run()
        if run is None:
            raise ValueError("a report needs a run")
        self._ledger, self._out, self._show = ledger, out, show_identifiers
        self._by_id = run.params.get("names") != "source"
        self._pictured = _pictured(ledger, out)
        self.facts: dict[str, Any] = {
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
                "items_with_pictures": len(self._pictured),
            },
            "counts": ledger.counts(),
            "environment": {key: value for key, value in environment.items() if key != "operators"},
            "doctor": {"operators": list(environment.get("operators", []))},
        }

    def items(self, *states: State) -> Iterator[dict[str, Any]]:
        """Entries of items in these states, in the order of discovery; all if none is named."""
        for item in self._ledger.items(*states):
            entry = item_entry(self._ledger, item, by_id=self._by_id, show=self._show)
            if item.id in self._pictured:
                entry["preview"] = item_preview(self._ledger, self._out, item.id)
            yield entry

    def json(self) -> Iterator[str]:
        """The text of ``report.json``, piece by piece; an item is one line."""
        yield from (json.dumps(self.facts, indent=1, ensure_ascii=False, allow_nan=False)[:-2], ',\n "items": [')
        before = "\n  "
        for entry in self.items():
            yield before + json.dumps(entry, ensure_ascii=False, allow_nan=False)
            before = ",\n  "
        yield "\n ]\n}\n"


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


def _pictured(ledger: Ledger, out: Path) -> frozenset[str]:
    """Items whose previews fit into the budget, flagged ones first."""
    left, chosen = _PICTURE_BYTES, []
    for flagged in (True, False):
        for item in ledger.items("done"):
            if any(flag["level"] != "info" for flag in item.flags) != flagged:
                continue
            row = next((row for row in ledger.outputs(item.id) if row.role == "preview"), None)
            if row is not None and row.bytes <= left and (out / row.relpath).is_file():
                chosen.append(item.id)
                left -= row.bytes
    return frozenset(chosen)


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
