"""`medseq test TASK`: the scores of a checkpoint on the test set, by the same YAML file that trained it."""

from pathlib import Path
from typing import Annotated

import typer

from medseq.cli.console import AsJson, Quiet, Verbose

__all__ = ["score_test_set"]


def score_test_set(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="What was trained: mil, recon, restore.")],
    ckpt: Annotated[Path, typer.Option("--ckpt", help="Checkpoint to test.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint on data.test: medseq test restore --config runs/x/config.yaml --ckpt runs/x/best.ckpt."""
    from medseq.cli.validate import evaluate

    evaluate("test", ctx.args, task, ckpt, as_json=as_json, quiet=quiet)
