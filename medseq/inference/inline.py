"""A crew of one: this process, one item after another. For few items, for debugging, and where processes are dear."""

import time
from collections.abc import Callable

from medseq.inference.attempt import attempt
from medseq.inference.crew import Report, Seat
from medseq.inference.gated import Gate
from medseq.inference.predictor import Predictor
from medseq.inference.worker import ItemTask

__all__ = ["InlineCrew"]


class InlineCrew:
    """Computes in `wait`; see `medseq.inference.crew.Crew`.

    Args:
        predictor: The loaded model.
        worker: Name of this process.
        should_stop: Asked by the predictor between its steps.
    """

    def __init__(self, predictor: Predictor, worker: str, should_stop: Callable[[], bool]) -> None:
        self._predictor, self._worker, self._should_stop = predictor, worker, should_stop
        self._gate = Gate()
        self._task: ItemTask | None = None

    def seats(self) -> list[Seat]:
        return [Seat(self._worker, alone=True)] if self._task is None else []

    def give(self, seat: Seat, task: ItemTask) -> None:
        self._task = task

    def wait(self, timeout_s: float) -> list[Report]:
        if self._task is None:
            time.sleep(timeout_s)
            return []
        task, self._task = self._task, None
        return [attempt(task, self._predictor, self._gate, self._should_stop, self._worker)]

    def busy(self) -> list[str]:
        return [] if self._task is None else [self._task.item_id]

    def stop(self) -> None:
        """Nothing to tell: `should_stop` does."""

    def close(self) -> None:
        """Nothing to end."""
