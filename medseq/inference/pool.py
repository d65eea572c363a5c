"""A crew of worker processes on this machine: they share the model's weights, and none of them can end the run.

Whatever happens to a worker (a segmentation fault, the end of memory, a hang, a SIGKILL), its items come back as
reports, it is replaced, and the others go on. Workers only write to staging; the ledger and the final
place of results belong to the parent, so that an orphan can do no harm.
"""

import logging
import queue
import time
from collections.abc import Mapping
from typing import Any

from medseq.errors import BackendError
from medseq.inference.crew import STOPPED, Report, Seat
from medseq.inference.plain_errors import as_error
from medseq.inference.pool_process import InWork, Message, WorkerProcess
from medseq.inference.wire import result_from_plain, task_to_plain
from medseq.inference.worker import ItemTask

__all__ = ["LANES", "PoolCrew"]

logger = logging.getLogger(__name__)

# Items in work in one process: one computes while the other reads or writes.
LANES = 2
# Deaths before the first item, in a row, after which no more are started.
_MOST_FALSE_STARTS = 3
# A worker says something every second; after so many without a word it hangs.
_SILENT_S = 300.0
_START_S = 600.0
_WATCH_S = 0.25


class PoolCrew:
    """Worker processes; see `medseq.inference.crew.Crew`.

    Args:
        hello: What every worker needs to set itself up: bundle, device, parameters, threads.
        workers: How many processes.
        item_timeout_s: An item may take so long; None for as long as it likes.
        max_memory: Bytes that all workers together may hold; None for no limit.

    Raises:
        MedseqError: From `wait`: the workers cannot load the model.
    """

    def __init__(
        self,
        hello: Mapping[str, Any],
        workers: int,
        *,
        item_timeout_s: float | None = None,
        max_memory: int | None = None,
    ) -> None:
        self._hello, self._timeout_s, self._max_memory = {**hello, "lanes": LANES}, item_timeout_s, max_memory
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._false_starts, self._watched, self._stopping = 0, 0.0, False
        self._workers: list[WorkerProcess] = []
        for number in range(workers):
            self._workers.append(self._start(number))

    def seats(self) -> list[Seat]:
        free = [worker for worker in self._workers if worker.ready and len(worker.in_work) < LANES]
        free.sort(key=lambda worker: len(worker.in_work))
        return [Seat(worker.name, alone=not worker.in_work) for worker in free]

    def give(self, seat: Seat, task: ItemTask) -> None:
        worker = next(worker for worker in self._workers if worker.name == seat.worker)
        worker.in_work[task.item_id] = InWork(task)
        worker.tell({"task": task_to_plain(task)})

    def wait(self, timeout_s: float) -> list[Report]:
        reports: list[Report] = []
        try:
            message = self._inbox.get(timeout=timeout_s)
            while True:
                reports += self._understand(*message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            pass
        self._watch()
        return reports

    def busy(self) -> list[str]:
        return [item_id for worker in self._workers for item_id in worker.in_work]

    def stop(self) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.tell({"stop": True})

    def close(self) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def _start(self, number: int) -> WorkerProcess:
        return WorkerProcess(f"w{number + 1}", self._hello, self._inbox)

    def _understand(self, worker: WorkerProcess, message: dict[str, Any] | None) -> list[Report]:
        if message is None:
            return self._replace(worker)
        worker.heard = time.monotonic()
        if "item" in message:
            worker.in_work.pop(message["item"], None)
            result = None if message["result"] is None else result_from_plain(message["result"])
            return [Report(message["item"], worker.name, result, message["code"], message["reason"])]
        if "ready" in message:
            worker.ready, self._false_starts = True, 0
        elif "log" in message:
            name, level, text = message["log"]
            logging.getLogger(name).log(level, text)
        elif "refused" in message:
            raise as_error(message["refused"])
        return []

    def _replace(self, worker: WorkerProcess) -> list[Report]:
        """A worker died: its items come back, and another takes its place."""
        if worker not in self._workers:
            return []
        code, reason = worker.exit_status()
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                raise BackendError(
                    "the worker processes do not start", found=reason, remedy="pass --workers 0, and see medseq doctor"
                )
        logger.warning("worker %s ended (%s) with %d items", worker.name, code, len(worker.in_work))
        reports = [
            Report(item_id, worker.name, None, code, reason, blamed=len(worker.in_work) == 1)
            for item_id in worker.in_work
        ]
        if self._stopping:
            return [Report(report.item_id, worker.name, None, STOPPED) for report in reports]
        place = self._workers.index(worker)
        self._workers[place] = self._start(place)
        return reports

    def _watch(self) -> None:
        """End workers that hang, take too long or take too much."""
        now = time.monotonic()
        if now - self._watched < _WATCH_S:
            return
        self._watched = now
        for worker in self._workers:
            longest = max((now - entry.since for entry in worker.in_work.values()), default=0.0)
            if worker.sentence is None and self._timeout_s is not None and longest > self._timeout_s:
                worker.end("timeout", f"it took longer than --item-timeout allows ({self._timeout_s:g} s)")
            elif worker.sentence is None and now - worker.heard > (_SILENT_S if worker.ready else _START_S):
                worker.end("timeout", "the worker process did not answer any more")
        if self._max_memory is not None:
            sizes = {worker: worker.rss() for worker in self._workers if worker.sentence is None}
            if sum(sizes.values()) > self._max_memory:
                largest = max(sizes, key=lambda worker: sizes[worker])
                limit = f"{self._max_memory / 1e9:.2f} GB"
                largest.end("memory", f"the workers took more memory than --max-memory allows ({limit})")
