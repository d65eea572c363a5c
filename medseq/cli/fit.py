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
    ckpt: Annotated[
        Path | None, typer.Option("--ckpt", help="Resume from this checkpoint, or the newest in this folder.")
    ] = None,
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
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="Train once for each value: key=v1,v2; several make a grid. Needs --out."),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Two runs give equal weights, bit by bit on a CPU.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network (torch.compile) first.")] = False,
    find_lr: Annotated[bool, typer.Option("--find-lr", help="Only suggest a learning rate, from 100 steps.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model: medseq fit restore --config restore/tiny --trainer.max_steps 100.

    --config takes a file or the name of a shipped configuration; --help-config lists every key, --print_config
    prints the resolved configuration. The run ends with a bundle beside the checkpoints. With --folds it ends with
    results.md, results.json and predictions.csv instead; no reported score comes from a fold that stopped a training.
    With --sweep it ends with sweep.md and sweep.csv, and a sweep that was interrupted is gone on with.
    """
    from medseq.cli.training import start_from, task_cli
    from medseq.errors import InputError

    if ckpt is not None and ckpt.is_dir():
        ckpt = newest_checkpoint(ckpt)
    for option, path in (("--ckpt", ckpt), ("--card", card)):
        if path is not None and not path.is_file():
            raise InputError("no such file", where=option, found=path.name)
    arguments = [*ctx.args, "--trainer.deterministic=true"] if deterministic else list(ctx.args)
    single = not (ckpt or init or find_lr or compiled)
    if sweep:
        _sweep(task, arguments, sweep, out, plain=single and folds is None, quiet=quiet)
        return
    if folds is not None or out is not None or repeats != 1:
        if folds is None or task != "mil" or not single:
            raise InputError(
                "--folds cross-validates mil, from the start; --repeats belongs to it, --out to it and to --sweep",
                remedy="leave out --ckpt, --init, --compile and --find-lr",
            )
        from medseq.cli.fit_folds import fit_folds

        fit_folds(task_cli("fit", task, arguments, quiet=quiet), folds=folds, repeats=repeats, out=out, quiet=quiet)
        return
    from medseq.cli.fit_run import suggest_lr, train

    cli = task_cli("fit", task, arguments, quiet=quiet)
    start_from(cli.model, init, resumed=ckpt is not None, data=cli.datamodule)
    if find_lr:
        suggest_lr(cli)
        return
    if compiled:
        cli.model.net.compile()
    train(cli, task, ckpt, quiet=quiet)
    _bundle_the_best(cli, card, quiet)


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of a folder, or of folders in it, that was written last.

    Raises:
        InputError: There is none.
    """
    from medseq.errors import InputError

    found = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if found is None:
        raise InputError("no checkpoint in this folder", where="--ckpt", found=folder.name)
    return found


def _sweep(task: str, arguments: list[str], sweep: list[str], out: Path | None, *, plain: bool, quiet: bool) -> None:
    from medseq.cli.fit_sweep import fit_sweep
    from medseq.errors import InputError

    if out is None or not plain:
        raise InputError(
            "--sweep trains from the start, into --out",
            remedy="give --out; leave out --ckpt, --init, --folds, --compile and --find-lr",
        )
    typer.echo(fit_sweep(task, arguments, sweep, out=out, quiet=quiet).read_text(encoding="utf-8"))


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
