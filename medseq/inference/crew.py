"""The contract between the engine and whoever computes: seats that take items, and reports that come back.

The engine alone knows the ledger; a crew alone knows processes. Three crews exist: this process (`inline`), worker
processes on this machine (`pool`), and actors of a Ray cluster (`ray_engine`).
"""

from dataclasses import dataclass
from typing import Protocol

from medseq.inference.worker import ItemResult, ItemTask

__all__ = ["STOPPED", "Crew", "Report", "Seat"]

# Code of a report: the item was given back because the run is asked to stop.
STOPPED = "stopped"


@dataclass(frozen=True)
class Seat:
    """A free place for one item.

    Attributes:
        worker: Name of the process it belongs to.
        alone: Nothing else is in work in that process.
    """

    worker: str
    alone: bool


@dataclass(frozen=True)
class Report:
    """What became of an item that was given out.

    Attributes:
        item_id: The item.
        worker: Who had it.
        result: Its result in the staging folder, or None.
        code: Why there is none: a reason code, or `STOPPED`.
        reason: The same for people.
        blamed: The item caused it; False if a process died over several items.
    """

    item_id: str
    worker: str
    result: ItemResult | None = None
    code: str = ""
    reason: str = ""
    blamed: bool = True


class Crew(Protocol):
    """Whoever computes items."""

    def seats(self) -> list[Seat]:
        """Free places, the emptiest workers first."""
        ...

    def give(self, seat: Seat, task: ItemTask) -> None:
        """Compute an item; its report comes by `wait`."""
        ...

    def wait(self, timeout_s: float) -> list[Report]:
        """What was finished, or happened, meanwhile; returns early as soon as there is something."""
        ...

    def busy(self) -> list[str]:
        """Ids of items in work."""
        ...

    def stop(self) -> None:
        """Ask for items in work to be given back."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...
