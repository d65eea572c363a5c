"""`medseq fit TASK`: train by a YAML file. Everything after the task goes to LightningCLI."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseq.cli.console import Quiet, Verbose, say

if TYPE_CHECKING:
    from medseq.cli.lightning import TaskCLI

__all__ = ["fit"]


def fit(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="What to train: mil, recon, restore.")],
    ckpt: Annotated[Path | None, typer.Option("--ckpt", help="Resume from this checkpoint.")] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="Start from the weights of this bundle or checkpoint: fine-tuning.")
    ] = None,
    card: Annotated[Path | None, typer.Option("--card", help="Model card for the bundle that ends the run.")] = None,
    folds: Annotated[
        int | None, typer.Option("--folds", help="mil: cross-validate, nested, with this many test folds.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="With --folds: divide the patients anew so often.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --folds: results; a folder that was begun is gone on with.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model: medseq fit restore --config restore/tiny --trainer.max_steps 100.

    --config takes a file or the name of a shipped configuration; --help-config lists every key, --print_config
    prints the resolved configuration. The run ends with a bundle beside the checkpoints. With --folds it ends with
    results.md, results.json and predictions.csv instead; no reported score comes from a fold that stopped a training.
    """
    from medseq.cli.training import start_from, task_cli
    from medseq.errors import InputError

    for option, path in (("--ckpt", ckpt), ("--card", card)):
        if path is not None and not path.is_file():
            raise InputError("no such file", where=option, found=path.name)
    if folds is not None or out is not None or repeats != 1:
        if folds is None or task != "mil" or ckpt or init:
            raise InputError(
                "--folds cross-validates mil, from the start; --out and --repeats belong to it",
                remedy="leave out --ckpt and --init",
            )
        from medseq.cli.fit_folds import fit_folds

        fit_folds(task_cli("fit", task, ctx.args, quiet=quiet), folds=folds, repeats=repeats, out=out, quiet=quiet)
        return
    cli = task_cli("fit", task, ctx.args, quiet=quiet)
    start_from(cli.model, init, resumed=ckpt is not None)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, weights_only=True)
    except SystemExit:
        # Lightning saves what it can after an interrupt and then exits with 1, which means a bug here.
        if not cli.trainer.interrupted:
            raise
        raise typer.Exit(130) from None
    except RuntimeError as error:
        # An interrupt while a checkpoint is being written comes out as the writer's own error.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise typer.Exit(130) from None
    _bundle_the_best(cli, card, quiet)


def _bundle_the_best(cli: "TaskCLI", card: Path | None, quiet: bool) -> None:
    """Make the bundle of the best checkpoint, if the run kept one."""
    from medseq.cli.bundle import make_bundle

    saved = getattr(cli.trainer.checkpoint_callback, "best_model_path", "")
    if not saved or cli.log_folder is None or not cli.trainer.is_global_zero:
        return
    say(f"checkpoint: {saved}", quiet=quiet)
    if cli.bundle:
        text = card.read_text(encoding="utf-8") if card else None
        made = make_bundle(Path(saved), cli.log_folder / "bundle", card=text, overwrite=True)
        say(f"bundle: {made.folder}", quiet=quiet)
