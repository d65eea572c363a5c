"""One line after every validation, where no progress bar is shown: logs of unattended trainings stay readable."""

import time
from collections.abc import Callable

import pytorch_lightning as pl

__all__ = ["ProgressLines"]


class ProgressLines(pl.Callback):
    """Says how far a training is, its scores so far, and when it will end at this pace.

    Args:
        say: Takes one line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._started, self._first_step = say, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started, self._first_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say it."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        text = ", ".join(f"{name} {value:.4g}" for name, value in sorted(scores.items()))
        done, total = trainer.global_step, trainer.estimated_stepping_batches
        left = ""
        if 0 < done - self._first_step and done < total < float("inf"):
            pace = (time.monotonic() - self._started) / (done - self._first_step)
            left = f", about {(total - done) * pace / 60:.0f} min left"
        self._say(f"epoch {trainer.current_epoch}, step {done} of {total:g}: {text}{left}")
