"""`medseq zoo`: the models that come with the package. Instant: reads text files only."""

from typing import Any

import typer

from medseq.cli.console import AsJson, Verbose, print_json, table

__all__ = ["zoo"]


def zoo(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the models that ship with the package: task, modality, size, training data, metric, licence."""
    from medseq.inference.zoo import zoo_entry, zoo_names

    entries = [zoo_entry(name) for name in zoo_names()]
    if as_json:
        print_json([{**vars(entry), "metadata": entry.metadata} for entry in entries])
        return
    if not entries:
        typer.echo("no models ship with this installation", err=True)
        raise typer.Exit(2)
    rows = [
        [
            f"{entry.name} {entry.version}",
            entry.task,
            f"{', '.join(entry.modality) or 'any'} [{entry.units}]",
            f"{entry.bytes / 1e6:.1f} MB",
            _training_data(entry.metadata),
            _metric(entry.metadata),
            str(entry.metadata.get("licence", "not stated")),
        ]
        for entry in entries
    ]
    table(["model", "task", "input", "size", "trained on", "metric", "licence"], rows)


def _training_data(metadata: dict[str, Any]) -> str:
    sets = metadata.get("training_data", [])
    if isinstance(sets, str):
        return sets
    return ", ".join(str(entry.get("name", entry)) if isinstance(entry, dict) else str(entry) for entry in sets)


def _metric(metadata: dict[str, Any]) -> str:
    """The first metric in words; the whole table stands in the model card."""
    metrics = metadata.get("metrics", [])
    if isinstance(metrics, str) or not metrics:
        return metrics or "see card"
    if isinstance(metrics, dict):
        name, value = next(iter(metrics.items()))
        return f"{name} {value}"
    first = metrics[0]
    unit = f" {first['unit']}" if first.get("unit") else ""
    cases = f" (n = {first['n']})" if "n" in first else ""
    return f"{first['name']} {first['value']:.4g}{unit}{cases}"
