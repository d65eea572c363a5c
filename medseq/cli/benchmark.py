"""`medseq benchmark TASK`: several models under one protocol, with intervals and costs in the same table."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseq.cli.console import Quiet, Verbose, say

if TYPE_CHECKING:
    from medseq.cli.benchmark_cases import CaseScores
    from medseq.inference.evaluate import Table

__all__ = ["benchmark"]


def benchmark(
    task: Annotated[str, typer.Argument(help="What the models do: mil, recon, restore.")],
    models: Annotated[
        list[str], typer.Option("--models", "-m", help="A bundle, or a configuration that is trained first. Repeat it.")
    ],
    data: Annotated[str, typer.Option("--data", help="Configuration whose data section is trained and tested on.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for tables and plot.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each configuration.")] = 3,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimizer steps of each training; else the configuration's.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Row that the paired differences are taken to; else the first.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare models: medseq benchmark restore -m ct-denoise -m restore/tiny --data restore/tiny --out cmp.

    Bundles are scored as they are. Configurations are trained with --seeds seeds on data.train, each case gets the mean
    of its seeds, and the spread between seeds is told. All are scored on data.test, or on data.val where there is
    no test set, which the tables then say. Intervals are paired, 95 %, bootstrapped over patients.
    """
    from medseq.cli.benchmark_models import scored_models
    from medseq.inference.evaluate import Table

    out.mkdir(parents=True, exist_ok=True)
    found = scored_models(task, models, data, out=out, seeds=seeds, steps=steps, quiet=quiet)
    table = Table(f"{task}: {found.part} of {data}", _note(found.part, seeds))
    if found.baseline:
        _add(table, "input", [found.baseline])
    for name, runs in found.scores.items():
        _add(table, name, [run.cases for run in runs])
    reference = against or table.methods[0]
    text = table.markdown(against=reference) + "\n" + _costs(found.scores, found.costs, found.spread())
    (out / "benchmark.md").write_text(text, encoding="utf-8")
    (out / "benchmark.tex").write_text(table.latex(), encoding="utf-8")
    (out / "benchmark.csv").write_text(table.csv(), encoding="utf-8")
    content = {**table.as_dict(), "costs": found.costs, "seed_sd": found.spread()}
    (out / "benchmark.json").write_text(json.dumps(_clean(content), indent=1) + "\n", encoding="utf-8")
    _plot(table, out / "benchmark.png")
    typer.echo(text)
    say(f"tables: {out}", quiet=quiet)


def _add(table: "Table", method: str, runs: list[list[tuple[str, str, dict[str, float]]]]) -> None:
    """Means over the runs of every case."""
    for same in zip(*runs, strict=True):
        case, patient, first = same[0]
        means = {name: math.fsum(values[name] for _, _, values in same) / len(same) for name in first}
        table.add(method, case, patient, means)


def _note(part: str, seeds: int) -> str:
    chosen = "" if part == "test" else " These cases chose the checkpoints: a test set would be fairer."
    return f"Mean ± sd over cases; of trained configurations each case is the mean of {seeds} seeds.{chosen}"


def _costs(scores: "dict[str, list[CaseScores]]", costs: dict[str, Any], spread: dict[str, dict[str, float]]) -> str:
    head = ["model", "runs", "parameters", "GMAC", "s / case", "peak MB", "sd between seeds"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, runs in scores.items():
        cost = costs[name]
        metric = next(iter(runs[0].cases[0][2]))
        between = f"{metric} {spread[name][metric]:.3g}" if name in spread else "one run"
        lines.append(
            f"| {name} | {len(runs)} | {cost['parameters']:,} | {cost['gmac']:.4g} |"
            f" {min(run.seconds for run in runs):.3g} | {max(run.peak_mb for run in runs):.3g} | {between} |"
        )
    return "\n".join(lines) + "\n"


def _clean(value: Any) -> Any:
    """Not a number -> null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plot(table: "Table", path: Path) -> None:
    """One panel a metric: every case a point, the mean a line."""
    from matplotlib.figure import Figure

    metrics = table.metrics
    figure = Figure(figsize=(3.2 * len(metrics), 1 + 0.5 * len(table.methods)), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for place, method in enumerate(reversed(table.methods)):
            try:
                values = list(table.values(method, metric).values())
            except ValueError:
                continue
            panel.plot(values, [place] * len(values), "o", markersize=4, alpha=0.5)
            panel.plot([sum(values) / len(values)], [place], "k|", markersize=16)
        panel.set(xlabel=metric, yticks=range(len(table.methods)), yticklabels=list(reversed(table.methods)))
        panel.label_outer()
    figure.savefig(path, dpi=150)
