"""The one object behind pages and routes: runs, pictures, sessions, log. Made once a process, from the configuration.

    from medseq.inference.review_service import service

    rows, total = service().runs.page(reviewer=user)
    address = service().address("slice", token, cookie, role="after", plane="axial", index=3, lo=-160, hi=240)

No torch, no web framework.
"""

import hashlib
import hmac
import threading
from functools import cache
from typing import Any

from medseq.inference.check import LEDGER
from medseq.inference.review_access import Access, AccessLog, SlidingLimit
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_config import ReviewConfig, read_config
from medseq.inference.review_jobs import Jobs
from medseq.inference.review_key import audit_key, derived
from medseq.inference.review_open import open_recon, open_series
from medseq.inference.review_push import PushQueue, to_archive
from medseq.inference.review_recon import ReconView
from medseq.inference.review_runs import Runs, Study
from medseq.inference.review_slide import SlideView, open_slide_view
from medseq.inference.review_volume import SeriesView

__all__ = ["Service", "service"]

# Open items: readers and headers; their pixels are in the cache.
_OPEN_ITEMS = 32


class Service:
    """Everything a page or a route asks.

    Attributes:
        config: What the server was told.
        runs: The runs under review; None if none were given.
        access: Sessions and signatures.
        log: Who opened what.
        sign_ins: Limit on tries to sign in, by address.
        push: Queue of accepted series; None without an archive.
        jobs: Runs started from the page; None without a workspace.
        notice: What whoever starts the server must know of the audit key.
    """

    def __init__(self, config: ReviewConfig) -> None:
        self._stop = threading.Event()
        self._pushing: threading.Thread | None = None
        key = audit_key(config.folders[0] if config.folders else config.workspace)
        self.config, self.notice = config, key.notice
        study = Study(config.study) if config.study else None
        self.jobs = Jobs(config.workspace, config.roots) if config.workspace else None
        self.runs: Runs | None = None
        if config.folders or self.jobs is not None:
            places = config.inputs, config.references
            self.runs = Runs(config.folders, key.secret, inputs=places[0], references=places[1], study=study)
        self.adopt_jobs()
        idle = 60 * config.session_minutes
        self.access = Access(derived(key.secret, "medseq review addresses"), idle_s=idle)
        self.log, self.sign_ins = AccessLog(config.access_log), SlidingLimit()
        self.pixels: ByteCache[Any] = ByteCache(config.memory_mb << 20, _size)
        self._views: ByteCache[Any] = ByteCache(_OPEN_ITEMS, lambda view: 1, lambda view: _close(view))
        self.push = self._push_queue()
        self._pseudonyms = derived(key.secret, "medseq review pseudonyms")

    def decide(self, token: str, reviewer: str, kind: str = "decide", *, role: str = "reviewer", **values: Any) -> None:
        """Record a decision or an adjudication, and queue or withdraw the series for the archive, if there is one.

        Raises:
            OutputError: The store cannot be written.
        """
        self.require_runs().record(token, reviewer, kind, role=role, **values)
        if self.push is not None:
            self.push.offer(token, reviewer)

    def undo(self, token: str, reviewer: str, role: str = "reviewer") -> int | None:
        """Take back this reviewer's last act; what was queued for the archive is withdrawn."""
        number = self.require_runs().undo(token, reviewer, role)
        if self.push is not None and number is not None:
            self.push.offer(token, reviewer)
        return number

    def start_pushing(self) -> None:
        """Begin to send what is accepted, in a thread of this process."""
        if self.push is not None and self._pushing is None:
            self._pushing = threading.Thread(target=self.push.run, args=(self._stop,), name="push", daemon=True)
            self._pushing.start()

    def close(self) -> None:
        """Stop sending and close the stores."""
        self._stop.set()
        if self._pushing is not None:
            self._pushing.join(timeout=5.0)
        if self.runs is not None:
            self.runs.close()

    def _push_queue(self) -> PushQueue | None:
        if self.runs is None or not self.config.push_to:
            return None
        return PushQueue(self.runs, to_archive(self.config.push_to))

    def adopt_jobs(self) -> None:
        """Take runs that were started from the page into the worklist, as soon as they have a ledger."""
        if self.jobs is None or self.runs is None:
            return
        for job in self.jobs.list():
            folder = self.jobs.out(job.job_id)
            if (folder / LEDGER).exists():
                self.runs.add(folder)

    def require_runs(self) -> Runs:
        """The runs.

        Raises:
            LookupError: None were given; a route answers 404.
        """
        if self.runs is None:
            raise LookupError("no runs")
        return self.runs

    def pseudonym(self, patient_key: str) -> str:
        """Stand-in for a patient: the same in every session with the same audit key."""
        return "P-" + hmac.new(self._pseudonyms, patient_key.encode(), hashlib.sha256).hexdigest()[:8].upper()

    def series(self, token: str) -> SeriesView:
        """The volumes of an item; see `medseq.inference.review_open.open_series`."""
        runs = self.require_runs()
        key = (token, "series", runs.output_hash(token))
        view: SeriesView = self._views.get(key, lambda: open_series(runs, token, self.pixels, self.pseudonym))
        return view

    def slide(self, token: str) -> SlideView:
        """The slide of an item; see `medseq.inference.review_slide`."""
        runs = self.require_runs()
        key = (token, "slide", runs.output_hash(token))
        view: SlideView = self._views.get(key, lambda: open_slide_view(runs, token, self.pixels))
        return view

    def recon(self, token: str) -> ReconView:
        """The raw data of an item; see `medseq.inference.review_recon`."""
        runs = self.require_runs()
        key = (token, "recon", runs.output_hash(token))
        view: ReconView = self._views.get(key, lambda: open_recon(runs, token, self.series(token)))
        return view

    def address(self, kind: str, token: str, cookie: str, **query: object) -> str:
        """A signed address of a picture: ``kind`` is ``slice``, ``value``, ``roi``, ``overlay``, ``recon``."""
        return self.access.address(f"/api/{kind}/{token}", cookie, token, **query)

    def forget(self, token: str) -> None:
        """Let go of an item's files and pixels."""
        self._views.drop(lambda key: isinstance(key, tuple) and key[0] == token)
        self.pixels.drop(lambda key: isinstance(key, tuple) and str(key[0]).startswith(f"{token}/"))


@cache
def service() -> Service:
    """The service of this process; see `medseq.inference.review_config.read_config`."""
    return Service(read_config())


def _size(value: Any) -> int:
    return len(value) if isinstance(value, bytes) else int(value.nbytes)


def _close(view: Any) -> None:
    if hasattr(view, "close"):
        view.close()
