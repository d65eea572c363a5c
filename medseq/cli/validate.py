"""`medseq validate TASK`: the validation metrics of a checkpoint, by the same YAML file that trained it."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from medseq.cli.console import AsJson, Quiet, Verbose, print_json, say

__all__ = ["validate"]


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
    from medseq.cli.training import task_cli
    from medseq.errors import InputError

    if ckpt is not None and not ckpt.is_file():
        raise InputError("no such checkpoint", where="--ckpt", found=ckpt.name)
    # A validation leaves no log folder behind.
    cli = task_cli("validate", task, [*ctx.args, "--trainer.logger=false"], quiet=quiet or as_json)
    with warnings.catch_warnings():
        # About where further checkpoints would go: there are none.
        warnings.filterwarnings("ignore", message="The dirpath has changed")
        (metrics,) = cli.trainer.validate(
            cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, verbose=False, weights_only=True
        )
    if as_json:
        print_json(metrics)
        return
    if ckpt is None:
        say("initial weights: give --ckpt to validate a trained model", quiet=quiet)
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.6g}")
