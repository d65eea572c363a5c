"""Who computes a run: this process, worker processes, or a cluster; and how a person stops it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from medseq.inference.bundle import Bundle
from medseq.inference.crew import Crew
from medseq.inference.inline import InlineCrew
from medseq.inference.pool import PoolCrew
from medseq.inference.predictors import predictor_for
from medseq.inference.shared_weights import shared_weights
from medseq.inference.staffing import Staff

__all__ = ["Hire", "enlist", "stop_on_signals"]


@dataclass(frozen=True)
class Hire:
    """What a crew is made of.

    Attributes:
        bundle: The model.
        device: Where it runs.
        params: Effective parameters.
        staff: How many processes and threads.
        item_timeout: Seconds that an item may take, or None.
        max_memory: Bytes of all processes together, or None.
        show_identifiers: Messages may tell names.
        ray_address: Of a cluster, or None.
    """

    bundle: Bundle
    device: str
    params: dict[str, Any]
    staff: Staff
    item_timeout: float | None = None
    max_memory: int | None = None
    show_identifiers: bool = False
    ray_address: str | None = None

    def hello(self) -> dict[str, Any]:
        """What a process needs to load the model, JSON-ready."""
        mapped = self.bundle.mapped
        return {
            "bundle": str(self.bundle.folder.resolve()),
            "bundle_hash": self.bundle.hash,
            "mapped": None if mapped is None else str(mapped),
            "trust_packages": list(self.bundle.trust_packages),
            "device": self.device,
            "params": self.params,
            "threads": self.staff.threads,
            "log_level": logging.getLogger("medseq").getEffectiveLevel(),
            "show_identifiers": self.show_identifiers,
        }


def enlist(stack: ExitStack, hire: Hire, stop: threading.Event, engine: str) -> Crew:
    """Whoever computes.

    Args:
        stack: Closed after the crew: gives back what it shares.
        hire: See `Hire`.
        stop: Set when the run is to end.
        engine: ``local`` or ``ray``.
    """
    if engine == "ray":
        from medseq.inference.ray_engine import RayCrew

        return RayCrew(hire.hello(), hire.staff.workers, address=hire.ray_address, item_timeout_s=hire.item_timeout)
    if hire.staff.workers == 0:
        predictor = predictor_for(hire.bundle, hire.device, hire.params)
        return InlineCrew(predictor, f"main-{os.getpid()}", stop.is_set)
    bundle = stack.enter_context(shared_weights(hire.bundle)) if hire.device == "cpu" else hire.bundle
    hello = {**hire.hello(), "mapped": None if bundle.mapped is None else str(bundle.mapped)}
    return PoolCrew(hello, hire.staff.workers, item_timeout_s=hire.item_timeout, max_memory=hire.max_memory)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into a clean stop; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
