"""A gateway between scanner and archive: studies that have arrived are routed, predicted, and their results sent on.

One loop does the work, in the caller's thread; the receiver and the status page run beside it. A study counts as
complete when nothing of it has arrived for some seconds. Whatever moment the gateway is killed at, the next one goes
on: claimed jobs lie in the spool, predictions resume, and what the archive has already is not sent again.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseq.errors import InputError, MedseqError, RetryableError
from medseq.inference.routes import Destination, Route, Routes
from medseq.inference.spool import Job, Spool
from medseq.io.atomic import written
from medseq.io.pacs import Tls, connect, parse_remote
from medseq.io.privacy import label

__all__ = ["Counters", "Gateway"]

logger = logging.getLogger(__name__)

_WORDS = ("strength", "tile", "overlap", "batch", "difference", "resample", "device")


@dataclass
class Counters:
    """What happened since the start; no identifiers."""

    images_received: int = 0
    bytes_received: int = 0
    studies_done: int = 0
    studies_dead: int = 0
    series_skipped: int = 0
    images_pushed: int = 0
    retries: int = 0
    purged: int = 0
    last_step: float = 0.0
    paused: bool = False


@dataclass
class Gateway:
    """The loop.

    Attributes:
        spool: Its folders.
        routes: What goes where.
        quiet_s: A study is complete when nothing has arrived for so long while somebody listened: after a restart
            senders get the time to come again.
        attempts: How often a job is tried before it is given up.
        wait_s: First wait between attempts; it doubles.
        purge_after_s: Done jobs are deleted after so long; None keeps them.
        min_free_bytes: With less space no new job is begun.
        device: Where models run.
        local_ae: Our AE title towards destinations.
        tls: TLS files towards destinations.
        receiver: For reports of storage commitment, where a destination asks for it.
        predict: `medseq.inference.predict_folder`; tests replace it.
        clock: Seconds since 1970; tests replace it.
        counters: What happened since the start.
        interrupted: A signal stopped a prediction; the job waits in the spool.
    """

    spool: Spool
    routes: Routes
    quiet_s: float = 60.0
    attempts: int = 5
    wait_s: float = 30.0
    purge_after_s: float | None = None
    min_free_bytes: int = 0
    device: str = "cpu"
    local_ae: str = "MEDSEQ"
    tls: Tls | None = None
    receiver: Any = None
    predict: Callable[..., Any] | None = None
    clock: Callable[[], float] = time.time
    counters: Counters = field(default_factory=Counters)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self._since = self.clock()
        if any(d.commit for d in self.routes.destinations.values()) and self.receiver is None:
            raise InputError("storage commitment needs the receiver", where="destinations")
        for name, destination in self.routes.destinations.items():
            try:
                parse_remote(destination.url)
            except InputError as error:
                raise InputError(error.what, where=f"destination {name}", wanted=error.wanted) from None
        for route in self.routes.routes:
            unknown = sorted(set(route.parameters) - set(_WORDS))
            if unknown:
                raise InputError(
                    "no such parameter",
                    where=f"route {route.name}",
                    found=", ".join(unknown),
                    wanted=f"of {', '.join(_WORDS)}",
                )

    def received(self, study: str, count: int) -> None:
        """The receiver's hook."""
        self.counters.images_received += 1
        self.counters.bytes_received += count

    def run(self, should_stop: Callable[[], bool], *, idle_s: float = 1.0) -> None:
        """Work until told to stop; a job in progress is finished first or left to be resumed."""
        while not (should_stop() or self.interrupted):
            if not self.step():
                time.sleep(idle_s)

    def step(self) -> bool:
        """Claim or continue one study; returns whether there was one."""
        now = self.clock()
        self.counters.last_step = now
        if self.purge_after_s is not None:
            self.counters.purged += self.spool.purge(now - self.purge_after_s)
        self.counters.paused = self.spool.free_bytes() < self.min_free_bytes
        if self.counters.paused:
            return False
        ready = [job for job in self.spool.jobs("work") if job.next_try <= now]
        if ready:
            self._attempt(ready[0])
            return True
        # A clock that was set back must not hold a study for ever.
        self._since = min(self._since, now)
        for study, changed in self.spool.waiting().items():
            if now - max(changed, self._since) >= self.quiet_s or changed > now + 1:
                self._attempt(self.spool.claim(study))
                return True
        return False

    def _attempt(self, job: Job) -> None:
        try:
            interrupted = self._process(job)
        except RetryableError as error:
            job.attempts += 1
            if job.attempts >= self.attempts:
                self._give_up(job, str(error))
            else:
                self.counters.retries += 1
                job.next_try = self.clock() + self.wait_s * 2 ** (job.attempts - 1)
                job.save()
                logger.warning("job %s: %s; attempt %d failed", label(job.name), error, job.attempts)
        except MedseqError as error:
            self._give_up(job, str(error))
        else:
            self.interrupted = interrupted
            if not interrupted:
                job.finished = self.clock()
                self.spool.move(job, "done")
                self.counters.studies_done += 1
                self.counters.series_skipped += sum(row["route"] is None for row in job.decisions)

    def _give_up(self, job: Job, reason: str) -> None:
        job.reason, job.finished = reason, self.clock()
        self.spool.move(job, "dead")
        self.counters.studies_dead += 1
        logger.error("job %s is given up: %s", label(job.name), reason)

    def _process(self, job: Job) -> bool:
        """Route, predict, push; True if a signal stopped the prediction, so that the job stays where it is."""
        chosen = self._route(job)
        problems: list[str] = []
        for route in chosen:
            summary = self._predict(job, route)
            if summary.exit_code == 130:
                return True
            if summary.exit_code:
                failed = summary.counts.get("failed", 0)
                problems.append(f"route {route.name}: {failed} items failed, see its report")
            if route.destination:
                self._push(job, route, self.routes.destinations[route.destination])
        if problems:
            raise InputError("; ".join(problems), remedy="repair the cause, then medseq pacs retry")
        return False

    def _route(self, job: Job) -> list[Route]:
        """Put each series into the folder of its route; every attempt decides anew, since routes may have changed."""
        from medseq.io.pacs_facts import series_facts

        entered, routed = job.folder / "in", job.folder / "routed"
        with written("the spool folder"):
            for path in sorted(routed.glob("*/*/*.dcm")):
                _rename(path, entered / path.relative_to(routed).relative_to(path.relative_to(routed).parts[0]))
        series, left = series_facts(entered.rglob("*.dcm"))
        job.decisions = [{"series": name, "route": None, "reason": reason} for name, reason in left]
        chosen = []
        for facts in series:
            decision = self.routes.decide(facts.values, ours=facts.ours, unfit=facts.unfit)
            name = decision.route.name if decision.route else None
            folder = facts.files[0].parent.name
            job.decisions.append({"series": folder, "route": name, "reason": decision.reason})
            if decision.route is not None:
                chosen.append(decision.route)
                with written("the spool folder"):
                    for path in facts.files:
                        _rename(path, routed / decision.route.name / path.relative_to(entered))
        job.save()
        return [route for route in self.routes.routes if route in chosen]

    def _predict(self, job: Job, route: Route) -> Any:
        predict = self.predict or _engine()
        words = {"device": self.device, **route.parameters}
        results = job.folder / "results" / route.name
        inputs = job.folder / "routed" / route.name
        # Another attempt: what failed is tried again, and a route that changed starts over.
        return predict(route.bundle, inputs, results, retry_failed=True, new_run=True, **words)

    def _push(self, job: Job, route: Route, destination: Destination) -> None:
        from medseq.io.pacs_transfer import commit, push

        results = job.folder / "results" / route.name
        files = [path for path in results.rglob("*.dcm") if not _is_aside(path.relative_to(results))]
        if not files:
            return
        archive = connect(parse_remote(destination.url, tls=self.tls), local_ae=self.local_ae)
        summary, stored = push(archive, files, wait_s=min(1.0, self.wait_s))
        job.pushed += summary.done
        self.counters.images_pushed += summary.done
        if summary.failures:
            reasons = ", ".join(sorted({reason for _, reason in summary.failures}))
            raise RetryableError(f"{len(summary.failures)} results were not stored", where=route.name, found=reasons)
        if destination.commit:
            missing = commit(archive, self.receiver, stored)
            if missing:
                raise RetryableError(
                    f"{len(missing)} results are not kept", where="storage commitment", found=missing[0][1]
                )


def _engine() -> Callable[..., Any]:
    # Imports torch, which a gateway that waits does not need.
    from medseq.inference.run import predict_folder

    return predict_folder


def _rename(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def _is_aside(path: Path) -> bool:
    """Staging and earlier runs."""
    return any(part.startswith(".") or part == "previous" for part in path.parts)
