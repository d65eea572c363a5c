"""Early stopping that waits for a first epoch, as MambaMIL and CLAM do."""

from typing import Any

from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor

__all__ = ["PatientStopping"]


class PatientStopping(EarlyStopping):
    """Stop once a metric has not improved for `patience` validations, but never before epoch `start_epoch` is over.

    Validations before that epoch count: a training that has not improved for long stops right behind it.

    Args:
        monitor: Logged metric.
        patience: Validations without improvement.
        start_epoch: The last epoch, counted from 0, that is always trained; 50 for classes and 40 for survival in the
            original.
        mode: ``min`` or ``max``.
    """

    def __init__(self, monitor: str = "val/loss", patience: int = 20, start_epoch: int = 50, mode: str = "min") -> None:
        super().__init__(monitor=monitor, patience=patience, mode=mode)
        self.start_epoch, self._epoch = start_epoch, 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the epoch."""
        self._epoch = trainer.current_epoch
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the epoch."""
        self._epoch = trainer.current_epoch
        super().on_validation_end(trainer, pl_module)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        stop, reason = super()._evaluate_stopping_criteria(current)
        # A metric that is not finite stops at once.
        if stop and current.isfinite() and self._epoch <= self.start_epoch:
            return False, None
        return stop, reason
