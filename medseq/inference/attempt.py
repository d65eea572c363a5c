"""One attempt at one item, whatever happens to it: the guard that keeps a bad item from ending a worker or a run."""

import logging
import shutil
from collections.abc import Callable

from medseq.inference.crew import STOPPED, Report
from medseq.inference.gated import Gate, GatedPredictor
from medseq.inference.predictor import Predictor, Stopped
from medseq.inference.worker import ItemTask, describe_failure, run_item

__all__ = ["attempt"]

logger = logging.getLogger(__name__)


def attempt(
    task: ItemTask,
    predictor: Predictor,
    gate: Gate,
    should_stop: Callable[[], bool],
    worker: str,
    *,
    background: bool = False,
) -> Report:
    """Compute an item into its staging folder; what goes wrong is in the report, and leaves nothing there."""
    shutil.rmtree(task.stage, ignore_errors=True)
    try:
        task.stage.mkdir(parents=True)
        guarded = GatedPredictor(predictor, gate, memory=task.memory, smaller=task.smaller, background=background)
        return Report(task.item_id, worker, run_item(task, guarded, should_stop))
    except Stopped:
        report = Report(task.item_id, worker, code=STOPPED)
    except Exception as error:  # noqa: BLE001  (the one guard: an item's failure is recorded and the run goes on)
        logger.debug("item %s: %s", task.item_id, type(error).__name__)
        report = Report(task.item_id, worker, None, *describe_failure(error))
    # On a full disk the ledger may need what staging took.
    shutil.rmtree(task.stage, ignore_errors=True)
    return report
