"""What `fit` and `validate` share: Lightning's command line for one task, built from that task's own classes."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseq.cli.share import find_config
from medseq.errors import InputError, ManifestError

if TYPE_CHECKING:
    from pytorch_lightning.cli import LightningCLI

__all__ = ["TASKS", "lightning_cli"]

# Name -> (module, LightningModule, LightningDataModule): a new task is one line here.
TASKS = {"restore": ("medseq.tasks.restore", "RestoreTask", "RestoreDataModule")}


def lightning_cli(verb: str, task: str, arguments: Sequence[str]) -> "LightningCLI":
    """Parse the configuration of a task and build trainer, task and data; nothing is run.

    Args:
        verb: The command, for usage texts.
        task: A key of `TASKS`.
        arguments: What followed the task on the command line.

    Raises:
        InputError: Unknown task or configuration file.
        ManifestError: The configuration does not fit the classes; the message is the parser's.
    """
    if task not in TASKS:
        raise InputError("unknown task", found=task, wanted=", ".join(TASKS))
    arguments = _shipped_configs(arguments)
    import jsonargparse
    from pytorch_lightning.cli import LightningCLI

    module_name, task_name, data_name = TASKS[task]
    module = importlib.import_module(module_name)
    try:
        return LightningCLI(
            getattr(module, task_name),
            getattr(module, data_name),
            run=False,
            args=["--help" if argument == "--help-config" else argument for argument in arguments],
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": f"medseq {verb} {task}", "exit_on_error": False},
        )
    except jsonargparse.ArgumentError as error:
        raise ManifestError(_first_lines(str(error)), where=f"{verb} {task}") from None


def _shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Replace the name of a shipped configuration by its path."""
    out: list[str] = []
    for argument in arguments:
        if out and out[-1] in ("--config", "-c"):
            out.append(str(find_config(argument)))
        elif argument.startswith("--config="):
            out.append(f"--config={find_config(argument.partition('=')[2])}")
        else:
            out.append(argument)
    return out


def _first_lines(text: str, lines: int = 6) -> str:
    """The parser's own explanation, without the dump of the whole class that may follow."""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(kept[:lines])


def log_folder(cli: "LightningCLI") -> Path | None:
    """Where this run's configuration and checkpoints are; None without a logger."""
    return Path(cli.trainer.log_dir) if cli.trainer.log_dir else None
