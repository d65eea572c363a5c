"""LightningCLI as `fit` and `validate` use it: errors as one readable line. Heavy to import, therefore apart."""

import hashlib
import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Lightning 2.6 calls names that jsonargparse renamed; its users can do nothing about it.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import jsonargparse
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback

from medseq.cli.console import say
from medseq.errors import ManifestError
from medseq.tasks.progress import ProgressLines
from medseq.tasks.resume import ExactResume

__all__ = ["TaskCLI", "build"]


class TaskCLI(LightningCLI):
    """A LightningCLI that parses what it is given, whatever the process was started with."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Without the original's warning about `sys.argv`, which holds medseq's own words."""
        self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)

    @property
    def log_folder(self) -> Path | None:
        """Where this run's configuration and checkpoints are; None without a logger."""
        # Not trainer.log_dir: all processes must ask for that together.
        folders = [logger.log_dir for logger in self.trainer.loggers]
        return next((Path(folder) for folder in folders if folder), None)

    def open_loggers(self) -> None:
        """Make all loggers write into one folder, the first one's, before anything else is put there."""
        loggers = self.trainer.loggers
        for logger in loggers:
            # Each would count up the folders that the others have just made.
            if logger is not loggers[0] and getattr(logger, "_version", 0) is None:
                logger._version = loggers[0].version
        for logger in loggers:
            _ = logger.experiment

    @property
    def bundle(self) -> dict[str, Any]:
        """What the configuration says about the bundle of the run; {} if nothing."""
        return dict(self.config["model"].get("bundle") or {})

    def again(self, folder: Path, seed: int) -> tuple[LightningModule, Trainer]:
        """A fresh task and trainer of the same configuration, whose checkpoints lie in `folder`; the data stay."""
        content = self.config.as_dict()
        del content["data"]
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        content["trainer"] |= {"default_root_dir": str(folder), **quiet}
        content["seed_everything"] = seed
        fresh = TaskCLI(
            type(self.model),
            None,
            run=False,
            args=content,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
        )
        return fresh.model, fresh.trainer

    def settings(self) -> dict[str, str]:
        """Digests of what decides the numbers of a run: to tell whether two runs are of one configuration."""
        parts = ("model", "data", "trainer", "seed_everything")
        texts = {part: repr(self.config.get(part)) for part in parts}
        return {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in texts.items()}


def build(command: str, classes: tuple[str, str, str], arguments: Sequence[str], *, quiet: bool) -> TaskCLI:
    """Parse and instantiate; `classes` is a row of `medseq.cli.training.TASKS`.

    Raises:
        ManifestError: The configuration does not fit the classes; the message is the parser's.
    """
    if quiet:
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    module_name, task_name, data_name = classes
    module = importlib.import_module(module_name)
    fits = command.startswith("fit ")
    try:
        return TaskCLI(
            getattr(module, task_name),
            getattr(module, data_name),
            run=False,
            args=["--help" if argument == "--help-config" else argument for argument in arguments],
            # Only a training leaves its configuration behind, beside its checkpoints.
            save_config_callback=SaveConfigCallback if fits else None,
            # Lightning wants the callbacks that a checkpoint knows, also where nothing is resumed.
            trainer_defaults=_defaults(command.partition(" ")[2], quiet=quiet)
            if fits
            else {"callbacks": [ExactResume()]},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": f"medseq {command}", "exit_on_error": False, "allow_abbrev": False},
        )
    except jsonargparse.ArgumentError as error:
        raise ManifestError(_explanation(str(error)), where=command) from None


def _defaults(task: str, *, quiet: bool) -> dict[str, Any]:
    """Loggers unless the configuration names some, and callbacks that every training has."""
    loggers = [
        {"class_path": f"pytorch_lightning.loggers.{name}", "init_args": {"save_dir": "runs", "name": task}}
        for name in ("CSVLogger", "TensorBoardLogger")
    ]
    callbacks = [ExactResume(), *([] if quiet else [ProgressLines(say)])]
    return {"logger": loggers, "callbacks": callbacks}


def _explanation(text: str, lines: int = 6) -> str:
    """The parser's own explanation, without the dump of the whole class that may follow."""
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    # The reason itself may stand deep below: a misspelt option of a class inside a class.
    deeper = [line.partition(" Got value:")[0] for line in kept[lines:] if "is not accepted" in line]
    return " ".join([*kept[:lines], *deeper[:1]])
