"""`medseq fit TASK`: train by a YAML file. Everything after the task goes to LightningCLI."""

from pathlib import Path
from typing import Annotated

import typer

from medseq.cli.console import Quiet, Verbose, say

__all__ = ["fit"]


def fit(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help="What to train: restore.")],
    ckpt: Annotated[Path | None, typer.Option("--ckpt", help="Resume from this checkpoint.")] = None,
    card: Annotated[Path | None, typer.Option("--card", help="Model card for the bundle that ends the run.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model: medseq fit restore --config restore/tiny --trainer.max_steps 100.

    --config takes a file or the name of a shipped configuration; --help-config lists every key, --print_config
    prints the resolved configuration. The run ends with a bundle beside the checkpoints.
    """
    from medseq.cli.training import lightning_cli, log_folder

    cli = lightning_cli("fit", task, ctx.args)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt, weights_only=True)
    if cli.trainer.interrupted:
        raise typer.Exit(130)
    folder = log_folder(cli)
    saved = getattr(cli.trainer.checkpoint_callback, "best_model_path", "")
    if folder is None or not saved or not cli.trainer.is_global_zero:
        return
    say(f"checkpoint: {saved}", quiet=quiet)
    if cli.config["model"].get("bundle"):
        from medseq.cli.bundle import make_bundle

        text = card.read_text(encoding="utf-8") if card else None
        made = make_bundle(Path(saved), folder / "bundle", card=text, overwrite=True)
        say(f"bundle: {made.folder}", quiet=quiet)
