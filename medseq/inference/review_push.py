"""Accepted series to the archive: queued in the review store, sent by one worker, never twice. No torch.

The queue is the record itself: every change of state is an event of the kind ``push`` with one of these decisions.

    queued       the item was accepted and its series waits
    withdrawn    it was rejected, or the decision taken back, before it was sent
    sent         the archive has every image of it
    refused      the files are no longer what was accepted, or there is no DICOM series
    failed       the archive did not take it; the event says why. Accepting again queues it again

A worker that dies between sending and recording sends nothing twice either: the next one asks the archive what it has
(`medseq.io.pacs_transfer.push`), and derived series keep their UIDs.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseq.errors import MedseqError, RetryableError
from medseq.inference.review_runs import Runs
from medseq.inference.review_schema import Record

__all__ = ["PushQueue", "Waiting", "last_push", "to_archive"]

logger = logging.getLogger(__name__)

_OPEN = ("queued", "sent")
_LOCK = ".review-push.lock"
_WORKER = "push worker"


@dataclass(frozen=True)
class Waiting:
    """A series that is to be sent."""

    token: str
    output_sha256: str


class PushQueue:
    """The queue of all runs under review.

    Args:
        runs: The runs.
        send: Sends DICOM files and raises `MedseqError` unless the archive has all of them; see `to_archive`.
        attempts: How often a trouble that may pass is tried.
        wait_s: First wait between attempts; it doubles.
        clock: Seconds; tests replace it.
    """

    def __init__(
        self,
        runs: Runs,
        send: Callable[[list[Path]], None],
        *,
        attempts: int = 5,
        wait_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs, self._send, self._attempts, self._wait_s, self._clock = runs, send, attempts, wait_s, clock
        self._tries: dict[Waiting, tuple[int, float]] = {}

    def offer(self, token: str, reviewer: str) -> str | None:
        """After a decision: queue what is accepted now, withdraw what no longer is; returns the state of the item."""
        state = self._runs.state(token)
        digest = self._runs.output_hash(token)
        if state.status == "accept" and not state.is_stale:
            self._record(token, reviewer, "queued", lambda found: last_push(found, digest) not in _OPEN)
        else:
            self._record(token, reviewer, "withdrawn", lambda found: last_push(found) == "queued")
        return self._runs.state(token).push

    def waiting(self) -> list[Waiting]:
        """What is queued, in the order of the runs."""
        found = []
        for info, store in self._runs.stores():
            last: dict[str, Record] = {}
            for record in store.records():
                if record.event.kind == "push":
                    last[record.event.item_id] = record
            for item_id, record in last.items():
                if record.event.decision == "queued":
                    found.append(Waiting(self._runs.token(info.number, item_id), record.event.output_sha256))
        return found

    def step(self) -> bool:
        """Send what is due; True if anything was settled. Another process that sends is left alone."""
        settled = False
        for waiting in self.waiting():
            if self._tries.get(waiting, (0, 0.0))[1] > self._clock():
                continue
            with _sole(self._runs.folder(waiting.token)) as alone:
                settled |= alone and self._settle(waiting)
        return settled

    def run(self, stop: threading.Event, idle_s: float = 2.0) -> None:
        """Work until told to stop; trouble with a store is logged and tried again."""
        while not stop.is_set():
            try:
                busy = self.step()
            except MedseqError as error:
                logger.warning("push: %s", error)
                busy = False
            if not busy:
                stop.wait(idle_s)

    def _settle(self, waiting: Waiting) -> bool:
        # Read again now that nobody else sends.
        if waiting not in self.waiting():
            return False
        state = self._runs.state(waiting.token)
        if state.status != "accept":
            self._record(waiting.token, _WORKER, "withdrawn")
            return True
        files = [file for file in self._runs.outputs(waiting.token) if file.role == "result"]
        images = [file for file in files if file.path.suffix.lower() == ".dcm"]
        changed = self._runs.output_hash(waiting.token) != waiting.output_sha256
        if changed or not images or any(file.problem for file in images):
            why = "the result is no DICOM series" if not images else "the files are not what was accepted"
            self._record(waiting.token, _WORKER, "refused", comment=why)
            return True
        try:
            self._send([file.path for file in images])
        except RetryableError as error:
            tries = self._tries.get(waiting, (0, 0.0))[0] + 1
            if tries < self._attempts:
                self._tries[waiting] = (tries, self._clock() + self._wait_s * 2 ** (tries - 1))
                return False
            self._record(waiting.token, _WORKER, "failed", comment=str(error))
        except MedseqError as error:
            self._record(waiting.token, _WORKER, "failed", comment=str(error))
        else:
            self._record(waiting.token, _WORKER, "sent")
        self._tries.pop(waiting, None)
        return True

    def _record(
        self,
        token: str,
        who: str,
        decision: str,
        only_if: Callable[[list[Record]], bool] | None = None,
        comment: str | None = None,
    ) -> None:
        self._runs.record(token, who, "push", role="system", decision=decision, comment=comment, only_if=only_if)


def to_archive(url: str) -> Callable[[list[Path]], None]:
    """A sender to an archive; see `medseq.io.pacs.parse_remote` for addresses.

    Raises:
        InputError: Not an address of an archive.
    """
    from medseq.io.pacs import connect, parse_remote

    remote = parse_remote(url)

    def send(paths: list[Path]) -> None:
        from medseq.io.pacs_transfer import push

        summary, _ = push(connect(remote), paths, wait_s=1.0)
        if summary.failures:
            raise RetryableError(
                "the archive did not take every image", found=f"{len(summary.failures)} failed", wanted="none"
            )

    return send


def last_push(records: list[Record], output_sha256: str | None = None) -> str | None:
    """The last push state of an item, of these outputs if given."""
    found: Any = None
    for record in records:
        event = record.event
        if event.kind == "push" and output_sha256 in (None, event.output_sha256):
            found = event.decision
    return found


@contextmanager
def _sole(folder: Path) -> Iterator[bool]:
    """Whether this process alone sends from a folder; the kernel gives the lock back when a process dies."""
    with (folder / _LOCK).open("wb") as stream:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True
