"""One training, from a built configuration to its report; and the learning rate finder."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medseq.cli.console import say

if TYPE_CHECKING:
    from medseq.cli.lightning import TaskCLI

__all__ = ["suggest_lr", "train"]


def train(cli: "TaskCLI", task: str, ckpt: Path | None, *, quiet: bool = False) -> None:
    """Fit, with ``run.json`` before and ``report.html`` after it in the run's folder.

    Raises:
        typer.Exit: 130 after an interrupt.
    """
    kept = cli.log_folder is not None and cli.trainer.is_global_zero and not cli.trainer.fast_dev_run
    if kept and cli.log_folder is not None:
        from medseq.cli.fit_record import write_record

        cli.open_loggers()
        write_record(cli.log_folder, command=f"fit {task}", config=cli.config.as_dict(), datamodule=cli.datamodule)
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
    if kept and cli.log_folder is not None:
        from medseq.cli.fit_report import write_report

        made = write_report(cli.log_folder, f"medseq fit {task}")
        if made:
            say(f"report: {made}", quiet=quiet)


def suggest_lr(cli: "TaskCLI") -> None:
    """Lightning's learning rate finder: exponentially growing rates, the steepest descent of the loss.

    Reference:
        Smith, Cyclical learning rates for training neural networks, WACV 2017, section 3.3.
    """
    from pytorch_lightning.tuner import Tuner

    found = Tuner(cli.trainer).lr_find(cli.model, datamodule=cli.datamodule, num_training=100, update_attr=False)
    rate = found.suggestion() if found is not None else None
    if rate is None:
        say("no suggestion: the loss never fell")
        raise typer.Exit(2)
    typer.echo(f"{rate:.3g}")
