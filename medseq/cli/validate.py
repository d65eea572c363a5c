"""`medseq validate TASK`: the validation metrics of a checkpoint, by the same YAML file that trained it."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say

__all__ = ["evaluate", "validate"]


def validate(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="What was trained: mil, recon, restore.")],
    ckpt: Annotated[
        Path | None, typer.Option("--ckpt", help="Checkpoint to validate; else the initial weights.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Validate a checkpoint: medseq validate restore --config runs/x/config.yaml --ckpt runs/x/last.ckpt."""
    evaluate("validate", ctx.args, task, ckpt, as_json=as_json, quiet=quiet)


def evaluate(
    verb: Literal["validate", "test"],
    arguments: Sequence[str],
    task: str,
    ckpt: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a trainer's `validate` or `test`, and print what it measured."""
    from medseq.cli.training import task_cli
    from medseq.errors import InputError

    if ckpt is not None and not ckpt.is_file():
        raise InputError("no such checkpoint", where="--ckpt", found=ckpt.name)
    # It leaves no log folder behind.
    cli = task_cli(verb, task, [*arguments, "--trainer.logger=false"], quiet=quiet or as_json)
    with warnings.catch_warnings():
        # About where further checkpoints would go: there are none.
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        run = getattr(cli.trainer, verb)
        (metrics,) = run(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, verbose=False, weights_only=True)
    if as_json:
        print_json(metrics)
        return
    if ckpt is None:
        say(f"initial weights: give --ckpt to {verb} a trained model", quiet=quiet)
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.6g}")
