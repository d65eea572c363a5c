"""``report.html`` at the end of a training: curves, the last and best values, pictures, and what was run. One file."""

import base64
import csv
import html
import io
import json
import math
from collections import defaultdict
from pathlib import Path

__all__ = ["read_metrics", "write_report"]

Curve = list[tuple[float, float]]
# Larger is better for these last words of a metric's name; smaller for all others.
_LARGER = ("psnr", "ssim", "auroc", "accuracy", "f1", "c_index", "balanced_accuracy")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #d0d7de;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}.notice{background:#fff8c5;padding:.5rem 1rem}
pre{background:#f6f8fa;padding:1rem;overflow:auto}"""


def read_metrics(path: Path) -> dict[str, Curve]:
    """Curves by name from the CSV logger's file: ``[(step, value), …]``; values that are not finite are left out."""
    curves: dict[str, Curve] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for name, text in row.items():
                if name not in ("step", "epoch") and text and math.isfinite(value := float(text)):
                    curves[name].append((float(row["step"]), value))
    return dict(curves)


def write_report(folder: Path, title: str) -> Path | None:
    """Make ``report.html`` of a run's folder; None where nothing was logged as CSV.

    Args:
        folder: Holds ``metrics.csv``, and may hold ``run.json``, ``config.yaml`` and ``pictures/``.
        title: What was trained.
    """
    log = folder / "metrics.csv"
    if not log.is_file():
        return None
    curves = read_metrics(log)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="notice">Research use only. Not for diagnosis. Validation cases stop a training and choose its '
        "checkpoint: their scores are no estimate for new patients.</p>",
        _table(curves),
        f'<img alt="curves of the training" src="data:image/svg+xml;base64,{_plot(curves)}">',
        *_pictures(folder / "pictures"),
    ]
    for name in ("run.json", "config.yaml"):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            if name == "run.json":
                record = json.loads(text)
                # Hashes of patients are for programs.
                record.pop("patients", None)
                text = json.dumps(record, indent=1)
            parts.append(f"<h2>{name}</h2><pre>{html.escape(text)}</pre>")
    path = folder / "report.html"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    path.write_text(f"{head}<style>{_STYLE}</style>{''.join(parts)}</html>", encoding="utf-8")
    return path


def _table(curves: dict[str, Curve]) -> str:
    rows = ["<tr><th>metric</th><th>first</th><th>last</th><th>best</th><th>at step</th></tr>"]
    for name, curve in sorted(curves.items()):
        larger = name.rpartition("/")[2] in _LARGER
        step, best = (max if larger else min)(curve, key=lambda point: point[1])
        cells = [html.escape(name), *(f"{value:.5g}" for value in (curve[0][1], curve[-1][1], best)), f"{step:.0f}"]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _plot(curves: dict[str, Curve]) -> str:
    """One panel for each kind of value, training, validation and input together; SVG as base64."""
    from matplotlib.figure import Figure

    kinds: dict[str, dict[str, Curve]] = defaultdict(dict)
    for name, curve in sorted(curves.items()):
        kinds[name.rpartition("/")[2]][name] = curve
    rows = -(-len(kinds) // 2) or 1
    figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for (kind, lines), panel in zip(kinds.items(), panels, strict=False):
        for name, curve in lines.items():
            steps, values = zip(*curve, strict=True)
            panel.plot(steps, values, marker="." if len(curve) < 30 else "", linewidth=1.2, label=name)
        panel.set(xlabel="optimizer step", title=kind)
        panel.legend(fontsize="small")
    for panel in list(panels):
        panel.set_axis_off()
    stream = io.BytesIO()
    # No date: the same run gives the same file.
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return base64.b64encode(stream.getvalue()).decode()


def _pictures(folder: Path) -> list[str]:
    """The last picture of every name."""
    last: dict[str, Path] = {}
    for path in sorted(folder.glob("*.png")):
        last[path.stem.rpartition("_")[0]] = path
    out = []
    for name, path in last.items():
        data = base64.b64encode(path.read_bytes()).decode()
        out.append(f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
    return out
