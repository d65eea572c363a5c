"""Whose turn is it: which item goes to which seat, after those in trouble had their say. No ledger, no processes.

An item that failed for a reason outside itself waits here for its next attempt. Its clock is monotonic: a machine whose
date jumps neither hurries nor delays anybody. What waits is lost with the process, and the next run simply queues it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medseq.inference.crew import Report, Seat
from medseq.inference.retry import next_step

__all__ = ["Trouble", "Turn", "Turns"]


@dataclass
class Trouble:
    """The history of an item that failed in this run and is tried again.

    Attributes:
        tries: Failed attempts so far.
        smaller: How many times its footprint was reduced.
        alone: ``no``, ``worker`` or ``run``; see `medseq.inference.retry.Step`.
        due: When it may be tried, on the monotonic clock.
    """

    tries: int = 0
    smaller: int = 0
    alone: str = "no"
    due: float = 0.0


@dataclass(frozen=True)
class Turn:
    """A seat, and the item in trouble that it is for; None for the next of the queue."""

    seat: Seat
    item_id: str | None


class Turns:
    """Items in trouble, and what they ask of the seats.

    Args:
        retries: Attempts after the first.
        clock: Seconds that only go forward.
    """

    def __init__(self, retries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._retries, self._clock = retries, clock
        self._trouble: dict[str, Trouble] = {}
        self._waiting: set[str] = set()
        # Items in work that must be alone, with their worker.
        self._solo: dict[str, str] = {}

    def trouble(self, item_id: str) -> Trouble:
        """What is known of an item; nothing, as a rule."""
        return self._trouble.get(item_id, Trouble())

    def waiting(self) -> bool:
        """Whether any item waits for another attempt."""
        return bool(self._waiting)

    def failed(self, report: Report) -> bool:
        """Take note of a failure; True if there will be another attempt."""
        known = self._trouble.get(report.item_id, Trouble())
        step = next_step(report.code, known.tries + 1, self._retries, blamed=report.blamed)
        self._solo.pop(report.item_id, None)
        if step is None:
            self._waiting.discard(report.item_id)
            self._trouble.pop(report.item_id, None)
            return False
        due = self._clock() + step.delay_s
        self._trouble[report.item_id] = Trouble(known.tries + 1, known.smaller + step.smaller, step.alone, due)
        self._waiting.add(report.item_id)
        return True

    def given_back(self, item_id: str) -> None:
        """An item was interrupted through no fault of its own; what it asked for before still holds."""
        self._solo.pop(item_id, None)
        if item_id in self._trouble:
            self._waiting.add(item_id)

    def done(self, item_id: str) -> None:
        """The item has succeeded."""
        self._solo.pop(item_id, None)
        self._trouble.pop(item_id, None)

    def started(self, turn: Turn) -> None:
        """A turn was taken."""
        if turn.item_id is None:
            return
        self._waiting.discard(turn.item_id)
        if self._trouble[turn.item_id].alone != "no":
            self._solo[turn.item_id] = turn.seat.worker

    def drop(self, item_id: str) -> None:
        """The item is no longer to be tried: it left the queue some other way."""
        self._waiting.discard(item_id)
        self.done(item_id)

    def next(self, seats: Sequence[Seat], busy: Sequence[str]) -> Turn | None:
        """The next turn, or None while nobody may begin.

        Args:
            seats: Free seats, the emptiest workers first.
            busy: Items in work.
        """
        if any(self._trouble[item_id].alone == "run" for item_id in self._solo):
            return None
        taken = set(self._solo.values())
        open_seats = [seat for seat in seats if seat.worker not in taken]
        now = self._clock()
        due = sorted((item for item in self._waiting if self._trouble[item].due <= now), key=self._due)
        for item_id in due:
            if not open_seats:
                return None
            alone = self._trouble[item_id].alone
            if alone == "run":
                # Nobody begins until the last one has ended.
                return Turn(open_seats[0], item_id) if not busy else None
            if alone == "no" or open_seats[0].alone:
                return Turn(open_seats[0], item_id)
            # The emptiest worker is left to become empty.
            open_seats = open_seats[1:]
        return Turn(open_seats[0], None) if open_seats else None

    def _due(self, item_id: str) -> float:
        return self._trouble[item_id].due
