"""A run folder as `medseq predict` leaves it, without a model: items are rows of the ledger."""

import hashlib
import json
from pathlib import Path

from medseq import __version__
from medseq.inference.ledger import Ledger
from medseq.inference.ledger_schema import FileRow, OutputRow, RunRow

KEY = b"a key of the tests, 32 bytes long"
CREATED = "2026-01-02T03:04:05Z"


def begin_run(out: Path, *, name="ct-denoise", task="restore", modality=("CT",), units="HU", **params) -> Ledger:
    """A ledger with its run and the report's words on the model."""
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / "run.sqlite")
    digest = hashlib.sha256(f"{name} {params}".encode()).hexdigest()
    ledger.begin_run(RunRow(digest, {"names": "id", "modality": None, **params}, "p" * 64, __version__, CREATED))
    bundle = {"name": name, "version": "1.0", "task": task, "modality": list(modality), "units": units}
    (out / "report.json").write_text(json.dumps({"schema": 1, "run": {"bundle": bundle}}))
    return ledger


def add_item(
    ledger, item_id, *, kind="dicom", label=None, root=None, inputs=(), outputs=(), metrics=None, flags=(), state="done"
):
    """An item; `inputs` are files below `root`, `outputs` pairs of role and file below the run's folder."""
    files = [_row(root, path) for path in inputs] or [FileRow(f"in/{item_id}.dcm", 1, 1)]
    if state in ("skipped", "failed"):
        ledger.add_item(item_id, kind, label or f"id-{item_id[:10]}", files, state=state, reason_code="x", reason="why")
        return
    ledger.add_item(item_id, kind, label or f"id-{item_id[:10]}", files)
    if state == "queued":
        return
    ledger.claim("w", 60, item_id)
    out = Path(ledger.path).parent
    rows = [
        OutputRow(
            role, path.relative_to(out).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )
        for role, path in outputs
    ]
    ledger.stage_outputs(item_id, rows)
    ledger.finish(item_id, "w", seconds=1.0, peak_mb=1.0, input_sha256="0" * 64, metrics=metrics or {}, flags=flags)


def small_run(out: Path, count=3, **words) -> Path:
    """A finished run of items that each have one file of their own."""
    with begin_run(out, **words) as ledger:
        for number in range(count):
            item_id = f"{number:016x}"
            path = out / item_id / "result.bin"
            path.parent.mkdir(parents=True)
            path.write_bytes(f"{out.name} {number}".encode())
            add_item(
                ledger, item_id, outputs=[("result", path)], metrics={"noise_sd_before": 10.0, "noise_sd_after": number}
            )
    return out


def _row(root: Path, path: Path) -> FileRow:
    status = path.stat()
    return FileRow(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)
