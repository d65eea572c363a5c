"""`medseq fit mil --folds N`: nested cross-validation, and its table. Heavy imports inside."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medseq.cli.console import say

if TYPE_CHECKING:
    from medseq.cli.lightning import TaskCLI

__all__ = ["fit_folds"]


def fit_folds(cli: "TaskCLI", *, folds: int, repeats: int, out: Path | None, quiet: bool) -> None:
    """Train and test every fold that is not done, and write ``results.md`` and ``results.json`` beside the predictions.

    Args:
        cli: The configuration, parsed.
        folds: Test folds.
        repeats: Repetitions.
        out: Folder; default: ``folds`` below the trainer's folder.
        quiet: Say nothing on the way.

    Raises:
        InputError: See `medseq.tasks.mil_folds.cross_validate`.
    """
    from medseq.inference.mil_scores import results_table, summarise
    from medseq.tasks.mil_folds import cross_validate

    out = out or Path(cli.trainer.default_root_dir) / "folds"
    seed = cli.config.get("seed_everything")
    try:
        predictions = cross_validate(
            cli.again,
            cli.datamodule,
            out,
            folds=folds,
            repeats=repeats,
            seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
            settings=cli.settings(),
            report=lambda line: say(line, quiet=quiet),
        )
    except KeyboardInterrupt:
        say("interrupted: the same command goes on where it stopped", quiet=quiet)
        raise typer.Exit(130) from None
    summary = summarise(predictions)
    table = results_table(summary, f"Cross-validation of {cli.bundle.get('name', 'the model')}")
    (out / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(table, encoding="utf-8")
    typer.echo(table)
    say(f"results: {out}", quiet=quiet)
