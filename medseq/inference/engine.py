"""The loop of a run: items from the ledger to whoever computes, results into their place, failures to their next try.

Order that makes a kill at any moment harmless: results are written to staging and fsynced; their names and hashes go
to the ledger; they are renamed; the item becomes ``done``. A run that starts removes what is in staging, queues items
that were running, and repeats them: same input, same bytes.

The loop is the only writer of the ledger and of final places. It runs in one thread; crews (`medseq.inference.crew`)
do the waiting and the computing.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from medseq.errors import MedseqError, OutputError
from medseq.inference.check import output_problem
from medseq.inference.crew import STOPPED, Crew, Report
from medseq.inference.ledger import ItemRow, Ledger, RunRow
from medseq.inference.outputs import WORK, Identity, publish
from medseq.inference.run_folder import PAUSED, remove_empty
from medseq.inference.turns import Turn, Turns
from medseq.inference.worker import ItemResult, ItemTask, describe_failure
from medseq.io.volume import Units

__all__ = ["Engine", "Progress", "Room"]

logger = logging.getLogger(__name__)

# Called with (finished items, all items, text without identifiers) before the first item and after each.
Progress = Callable[[int, int, str], None]
_LEASE_S = 120.0
_RENEW_S = 20.0
_COUNT_S = 10.0
_WAIT_S = 0.25


@dataclass(frozen=True)
class Room:
    """Bytes that an item may take beyond the loaded model: beside others, and alone; None for no limit."""

    share: int | None = None
    whole: int | None = None


class Engine:
    """One run over one output folder.

    Args:
        ledger: Open, with everything registered.
        run: The run.
        identity: What all results have in common.
        units: The bundle's input units.
        root: Where relative input paths start.
        out: The output folder, locked.
        stop: Set by whoever wants the run to end.
        progress: See `Progress`.
        retries: Attempts after the first, for failures that may pass.
        room: Limits of memory.
        settled: Called with every item that reached its end.
        sens_maps: See `ItemTask`.
    """

    def __init__(  # noqa: PLR0913  (what a run consists of, each from another hand)
        self,
        ledger: Ledger,
        run: RunRow,
        *,
        identity: Identity,
        units: Units,
        root: Path,
        out: Path,
        stop: threading.Event,
        progress: Progress,
        retries: int = 2,
        room: Room | None = None,
        settled: Callable[[str], None] = lambda item_id: None,
        sens_maps: Path | None = None,
    ) -> None:
        self._ledger, self._run, self._identity, self._units = ledger, run, identity, units
        self._root, self._out, self._stop, self._progress = root, out, stop, progress
        self._room, self._settled, self._sens_maps = room or Room(), settled, sens_maps
        self._turns = Turns(retries)
        self._given: dict[str, tuple[ItemRow, ItemTask]] = {}
        self._work = f"{WORK}/{os.getpid()}-{os.urandom(3).hex()}"
        self._tried, self._finished, self._total, self._counted = 0, 0, 0, -_COUNT_S
        self._renewed = time.monotonic()

    def work(self, enlist: Callable[[], Crew]) -> int:
        """Compute queued items until none is left or a stop is asked for; returns how many came to an end.

        Args:
            enlist: Makes the crew; called only when there is work: a second run over finished items takes no torch.
        """
        self._tell("")
        with ExitStack() as stack:
            crew: Crew | None = None
            told = False
            while self._goes_on(crew):
                if crew is None:
                    crew = enlist()
                    stack.callback(crew.close)
                if self._stop.is_set() and not told:
                    crew.stop()
                    told = True
                if not self._stop.is_set() and not self._paused():
                    self._fill(crew)
                for report in crew.wait(_WAIT_S):
                    self._settle(report)
                self._renew()
        shutil.rmtree(self._out / WORK, ignore_errors=True)
        return self._tried

    def verify(self) -> None:
        """A result that vanished or changed size while the run went on is a failure, not a success."""
        for item in self._ledger.items("done"):
            problems = {output_problem(self._out, row, rehash=False) for row in self._ledger.outputs(item.id)} - {None}
            if problems:
                self._ledger.fail(item.id, "verify", "io", "its result was lost after it was written; run again")
                self._settled(item.id)

    def _goes_on(self, crew: Crew | None) -> bool:
        if self._given:
            return True
        if self._stop.is_set():
            return False
        if self._paused():
            time.sleep(_WAIT_S)
            return True
        return self._turns.waiting() or self._ledger.has_queued()

    def _paused(self) -> bool:
        return (self._out / PAUSED).exists()

    def _fill(self, crew: Crew) -> None:
        """Give out items until nobody may begin another."""
        while (turn := self._turns.next(crew.seats(), crew.busy())) is not None:
            item = self._ledger.claim(turn.seat.worker, _LEASE_S, turn.item_id)
            if item is None:
                if turn.item_id is None:
                    return
                self._turns.drop(turn.item_id)
                continue
            self._ledger.hold(item.id)
            self._turns.started(turn)
            task = self._task(item, turn)
            self._given[item.id] = (item, task)
            crew.give(turn.seat, task)

    def _task(self, item: ItemRow, turn: Turn) -> ItemTask:
        trouble = self._turns.trouble(item.id)
        return ItemTask(
            item.id,
            item.kind,
            tuple(row.relpath for row in self._ledger.files(item.id)),
            self._root,
            self._out,
            names=self._run.params["names"],
            identity=self._identity,
            units=self._units,
            params=self._run.params,
            sens_maps=self._sens_maps,
            work=self._work,
            memory=self._room.whole if trouble.alone == "run" else self._room.share,
            smaller=trouble.smaller,
        )

    def _settle(self, report: Report) -> None:
        """One item came back: done, failed, or to be tried again."""
        item, task = self._given.pop(report.item_id)
        if report.result is not None:
            report = self._accept(report, item, task, report.result)
        if report.result is not None:
            self._turns.done(item.id)
            self._ledger.let_go(item.id)
            self._end(item.id)
            return
        if report.code == STOPPED:
            self._turns.given_back(item.id)
            self._ledger.release(item.id, report.worker, STOPPED)
        elif self._turns.failed(report):
            self._ledger.release(item.id, report.worker, report.code)
            logger.warning("item %s will be tried again (%s): %s", item.id, report.code, report.reason)
            return
        else:
            self._drop_outputs(item.id, keep=set())
            self._ledger.fail(item.id, report.worker, report.code, report.reason)
            logger.warning("item %s failed (%s): %s", item.id, report.code, report.reason)
            self._end(item.id)
        self._ledger.let_go(item.id)

    def _accept(self, report: Report, item: ItemRow, task: ItemTask, result: ItemResult) -> Report:
        """Put a result into its place; what goes wrong makes a failure of it."""
        try:
            self._require_free(task, [row.relpath for row in result.outputs])
            self._drop_outputs(item.id, keep={row.relpath for row in result.outputs})
            self._ledger.stage_outputs(item.id, result.outputs)
            publish(task.stage, self._out, result.layout, result.outputs)
        except (MedseqError, OSError) as error:
            # First the space, then the row: on a full disk the ledger may need what staging took.
            shutil.rmtree(task.stage, ignore_errors=True)
            self._drop_outputs(item.id, keep=set())
            code, reason = describe_failure(error)
            return replace(report, result=None, code=code, reason=reason, blamed=True)
        # What discovery remarked on the source; what an earlier attempt said about its result is void.
        told = {flag.code for flag in result.flags}
        earlier = [flag for flag in item.flags if flag["level"] == "info" and flag["code"] not in told]
        self._ledger.finish(
            item.id,
            report.worker,
            seconds=result.seconds,
            peak_mb=result.peak_mb,
            input_sha256=result.input_sha256,
            metrics=result.metrics,
            flags=[*earlier, *(vars(flag) for flag in result.flags)],
        )
        logger.info("item %s done in %.2f s", item.id, result.seconds)
        return report

    def _end(self, item_id: str) -> None:
        self._tried += 1
        self._finished += 1
        self._settled(item_id)
        self._tell(item_id)

    def _require_free(self, task: ItemTask, relpaths: list[str]) -> None:
        """A result that keeps its source's name must not replace a file that is not this item's."""
        if task.names == "id":
            return
        for relpath in relpaths:
            if (self._out / relpath).exists() and self._ledger.owner(relpath) != task.item_id:
                raise OutputError(
                    "a file of this name is already in the output folder",
                    remedy="choose another folder, or names by id",
                )

    def _drop_outputs(self, item_id: str, keep: set[str]) -> None:
        """Remove results of an earlier attempt that the item no longer has."""
        # A folder that can no longer be written keeps them; their rows go, so that nobody takes them for results.
        with suppress(OSError):
            for row in self._ledger.outputs(item_id):
                if row.relpath not in keep:
                    (self._out / row.relpath).unlink(missing_ok=True)
                    remove_empty(self._out, (self._out / row.relpath).parent)

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed > _RENEW_S:
            self._ledger.renew(list(self._given), _LEASE_S)
            self._renewed = now

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        # Counting a large ledger takes longer than a small item does; others may queue items meanwhile.
        if now - self._counted > _COUNT_S:
            counts = self._ledger.counts()
            self._finished = counts["done"] + counts["failed"]
            self._total, self._counted = self._finished + counts["queued"] + counts["running"], now
        self._progress(self._finished, self._total, text)
