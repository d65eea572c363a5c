"""Resuming exactly: what Lightning's checkpoints leave out."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from medseq.data.loaders import ResumableLoader

__all__ = ["ExactResume"]

_POSITION = "medseq_position"


class ExactResume(pl.Callback):
    """Keeps the states of all random generators in the checkpoint: a resumed run draws what it would have drawn.

    The position within the data is that of `medseq.data.loaders.ResumableLoader`; it is restored here, since Lightning
    (2.6) forgets to where the length of the schedule was asked for before. A run that was killed and resumed ends with
    the weights of one that was not, bit by bit on a CPU, if the checkpoint was written after an optimizer step
    (Lightning keeps no accumulated gradients).
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None
        self._position: dict[str, int] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep how far this epoch's training loader is."""
        if isinstance(trainer.train_dataloader, ResumableLoader):
            checkpoint[_POSITION] = trainer.train_dataloader.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember it until there is a loader."""
        self._position = checkpoint.get(_POSITION)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the loader there."""
        if self._position is not None and isinstance(trainer.train_dataloader, ResumableLoader):
            trainer.train_dataloader.load_state_dict(self._position)
        self._position = None

    def state_dict(self) -> dict[str, Any]:
        """The generators of Python, numpy, torch and every CUDA device."""
        numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one is meant)
        name, keys, position, has_gauss, gauss = numpy_state
        state: dict[str, Any] = {
            "python": random.getstate(),
            "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states until the first step: building loaders and models may still draw."""
        self._pending = state_dict

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore them before the first step of a resumed run."""
        if self._pending is None:
            return
        state, self._pending = self._pending, None
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 (same)
        torch.set_rng_state(state["torch"].cpu())
        if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
