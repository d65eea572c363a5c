"""What `fit` and `validate` share: the table of tasks, and shipped configurations by name. Light to import."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medseq.cli.share import find_config
from medseq.errors import InputError

if TYPE_CHECKING:
    from medseq.cli.lightning import TaskCLI

__all__ = ["TASKS", "task_cli"]

# Name -> (module, LightningModule, LightningDataModule): a new task is one line here.
TASKS = {
    "recon": ("medseq.tasks.recon", "ReconTask", "ReconDataModule"),
    "restore": ("medseq.tasks.restore", "RestoreTask", "RestoreDataModule"),
}


def task_cli(verb: str, task: str, arguments: Sequence[str], *, quiet: bool = False) -> "TaskCLI":
    """Parse the configuration of a task and build trainer, task and data; nothing is run.

    Args:
        verb: The command, for usage texts.
        task: A key of `TASKS`.
        arguments: What followed the task on the command line.
        quiet: Lightning logs warnings only.

    Raises:
        InputError: Unknown task or configuration file.
        ManifestError: The configuration does not fit the classes; the message is the parser's.
    """
    if task not in TASKS:
        raise InputError("unknown task", found=task, wanted=", ".join(TASKS))
    arguments = _shipped_configs(arguments)
    from medseq.cli.lightning import build

    return build(f"{verb} {task}", TASKS[task], arguments, quiet=quiet)


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
