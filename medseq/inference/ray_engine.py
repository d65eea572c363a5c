"""A crew of actors on a Ray cluster: each holds the model; a node that dies loses nothing but the time of its items.

Ray places actors and tells when one is gone; which item is tried again, when and how often stays with the engine and
its ledger, where every finished item is durable at once. The nodes need medseq, and the same input, output and bundle
folders as the driver (a shared file system). Actors write to staging only; the driver moves results to their place.

Needs the extra ``distributed`` (ray); imported only here.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medseq.errors import BackendError, MedseqError
from medseq.inference.crew import STOPPED, Report, Seat
from medseq.inference.plain_errors import as_error
from medseq.inference.pool import LANES
from medseq.inference.wire import result_from_plain, task_to_plain
from medseq.inference.worker import ItemTask
from medseq.io import privacy

__all__ = ["RayCrew"]

logger = logging.getLogger(__name__)

_MOST_FALSE_STARTS = 3


class _Actor:
    """What runs on a node: a worker process from inside, without pipes."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self._hello, self._stop = hello, threading.Event()
        self._predictor: Any = None
        self._name = ""

    def load(self) -> dict[str, Any]:
        """Load the model; says who this is, or why it cannot."""
        import ray

        from medseq.inference.gated import Gate
        from medseq.inference.plain_errors import refusal
        from medseq.inference.pool_worker import load_predictor
        from medseq.io.privacy import show_identifiers

        os.environ["MEDSEQ_SALT"] = self._hello["salt"]
        sys.path += [path for path in self._hello["path"] if path not in sys.path]
        show_identifiers(bool(self._hello["show_identifiers"]))
        try:
            self._predictor, self._gate = load_predictor(self._hello), Gate()
        except MedseqError as error:
            return {"refused": refusal(error)}
        node = ray.get_runtime_context().get_node_id()
        self._name = f"ray-{node[:8]}-{os.getpid()}"
        return {"name": self._name, "node": node}

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """Compute one item into staging."""
        from medseq.inference.attempt import attempt
        from medseq.inference.wire import result_to_plain, task_from_plain

        report = attempt(task_from_plain(task), self._predictor, self._gate, self._stop.is_set, self._name)
        result = None if report.result is None else result_to_plain(report.result)
        return {"code": report.code, "reason": report.reason, "result": result}

    def stop(self) -> None:
        self._stop.set()


@dataclass(eq=False)
class _Member:
    """An actor as the driver sees it."""

    handle: Any
    loading: Any
    name: str = ""
    # Reference of each call in work -> item and when it was given.
    in_work: dict[Any, tuple[str, float]] = field(default_factory=dict)
    sentence: tuple[str, str] | None = None


class RayCrew:
    """Actors; see `medseq.inference.crew.Crew`.

    Args:
        hello: As for worker processes (`medseq.inference.pool.PoolCrew`).
        workers: How many actors of one core; None for one a core of the cluster.
        address: Of the cluster; None for the one this machine belongs to, else a local one.
        item_timeout_s: An item may take so long.

    Raises:
        BackendError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        hello: Mapping[str, Any],
        workers: int | None = None,
        *,
        address: str | None = None,
        item_timeout_s: float | None = None,
    ) -> None:
        self._ray = _connected(address)
        paths = [path for path in sys.path if path]
        self._hello = {**hello, "threads": 1, "mapped": None, "salt": privacy.salt(), "path": paths}
        self._timeout_s, self._stopping, self._false_starts = item_timeout_s, False, 0
        # One call more than items: to stop.
        options = {"num_cpus": 1, "max_concurrency": LANES + 1, "max_restarts": 0}
        self._type = self._ray.remote(**options)(_Actor)
        count = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._members = [self._start() for _ in range(count)]

    def seats(self) -> list[Seat]:
        free = [member for member in self._members if member.name and len(member.in_work) < LANES]
        free.sort(key=lambda member: len(member.in_work))
        return [Seat(member.name, alone=not member.in_work) for member in free]

    def give(self, seat: Seat, task: ItemTask) -> None:
        member = next(member for member in self._members if member.name == seat.worker)
        reference = member.handle.run.remote(task_to_plain(task))
        member.in_work[reference] = (task.item_id, time.monotonic())

    def wait(self, timeout_s: float) -> list[Report]:
        owners = {reference: member for member in self._members for reference in member.in_work}
        owners |= {member.loading: member for member in self._members if member.loading is not None}
        if not owners:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=timeout_s)
        reports: list[Report] = []
        for reference in ready:
            reports += self._understand(owners[reference], reference)
        self._watch()
        return reports

    def busy(self) -> list[str]:
        return [item_id for member in self._members for item_id, _ in member.in_work.values()]

    def stop(self) -> None:
        self._stopping = True
        for member in self._members:
            member.handle.stop.remote()

    def close(self) -> None:
        for member in self._members:
            self._ray.kill(member.handle)
        self._ray.shutdown()

    def _start(self) -> _Member:
        handle = self._type.remote(self._hello)
        return _Member(handle, handle.load.remote())

    def _understand(self, member: _Member, reference: Any) -> list[Report]:
        if member not in self._members or (reference is not member.loading and reference not in member.in_work):
            return []  # it was replaced a moment ago
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.OutOfMemoryError:
            return self._replace(member, "memory", "the node ended the process for want of memory")
        except self._ray.exceptions.RayError as error:
            return self._replace(member, "lost", f"the node or the process is gone ({type(error).__name__})")
        if reference is member.loading:
            member.loading, self._false_starts = None, 0
            if "refused" in answer:
                raise as_error(answer["refused"])
            member.name = answer["name"]
            return []
        item_id, _ = member.in_work.pop(reference)
        result = None if answer["result"] is None else result_from_plain(answer["result"])
        return [Report(item_id, member.name, result, answer["code"], answer["reason"])]

    def _replace(self, member: _Member, code: str, reason: str) -> list[Report]:
        """An actor is gone: its items come back, and another is asked for; Ray places it where there is room."""
        if not member.name:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                raise BackendError("the actors do not start", found=reason, remedy="see that the nodes have medseq")
        code, reason = member.sentence or (code, reason)
        logger.warning("worker %s ended (%s) with %d items", member.name or "ray", code, len(member.in_work))
        items = [item_id for item_id, _ in member.in_work.values()]
        if self._stopping:
            return self._dropped(member, [Report(item_id, member.name, None, STOPPED) for item_id in items])
        blamed = len(items) == 1
        return self._dropped(member, [Report(item, member.name, None, code, reason, blamed) for item in items])

    def _dropped(self, member: _Member, reports: list[Report]) -> list[Report]:
        place = self._members.index(member)
        if self._stopping:
            del self._members[place]
        else:
            self._members[place] = self._start()
        return reports

    def _watch(self) -> None:
        """End actors whose item takes too long."""
        if self._timeout_s is None:
            return
        now = time.monotonic()
        for member in self._members:
            late = any(now - since > self._timeout_s for _, since in member.in_work.values())
            if late and member.sentence is None:
                member.sentence = ("timeout", f"it took longer than --item-timeout allows ({self._timeout_s:g} s)")
                self._ray.kill(member.handle)


def _connected(address: str | None) -> Any:
    """The library, connected to a cluster."""
    # Decided before the import: a hospital's run tells nobody of itself.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise BackendError(
            "a cluster needs ray", found="not installed", remedy="pip install 'medseq[distributed]'"
        ) from None
    try:
        dashboard = None if address else False
        ray.init(address=address, log_to_driver=False, include_dashboard=dashboard, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            "the Ray cluster cannot be reached",
            found=type(error).__name__,
            wanted="the address of a running cluster, or none for a local one",
        ) from None
    return ray
