"""The batch engine: discover -> plan -> run -> verify -> report, over a file or a folder, unattended.

    OUT/<item_id>/…    results (layout: `medseq.inference.outputs.Layout`)
    OUT/run.sqlite     what became of every input (`medseq.inference.ledger`)
    OUT/report.json    the run as data;  OUT/report.html  the same for people;  OUT/report/<item_id>.html  one item
    OUT/.work/         staging of the items in progress;  OUT/.run.lock  held while a run is working

This file says in which order; each step has its own: `discover`, `plan` (what is to be done), `staffing` (who does it),
`engine` (the loop), `run_report`.
"""

import hashlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from medseq import __version__
from medseq.errors import InputError
from medseq.inference.bundle import Bundle, load_bundle
from medseq.inference.check import LEDGER, CheckSummary, check_run
from medseq.inference.crew import Crew
from medseq.inference.discover import discover, input_root
from medseq.inference.engine import Engine, Progress
from medseq.inference.environment import environment
from medseq.inference.inline import InlineCrew
from medseq.inference.ledger import Ledger, RunRow
from medseq.inference.outputs import Identity
from medseq.inference.params import resolve_params
from medseq.inference.plan import register, requeue, require_something
from medseq.inference.pool import PoolCrew
from medseq.inference.predictors import predictor_for
from medseq.inference.recon_params import SensMethod
from medseq.inference.run_folder import archive, lock, prepared, require_apart
from medseq.inference.run_report import RunReport
from medseq.inference.shared_weights import shared_weights
from medseq.inference.staffing import Staff, parse_bytes, plan_staff
from medseq.io.privacy import show_identifiers as set_show_identifiers
from medseq.io.volume import Modality

__all__ = ["CheckSummary", "Progress", "RunSummary", "check_run", "predict_folder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """What `predict_folder` did.

    Attributes:
        counts: Items by state, over all runs of this output folder.
        exit_code: 0 all done, 3 some failed, 130 interrupted.
        report_path: ``report.html``; None if it could not be written.
        processed: Items computed by this call.
    """

    counts: dict[str, int]
    exit_code: int
    report_path: Path | None
    processed: int


def predict_folder(  # noqa: PLR0913  (the words of the command line, all by keyword)
    bundle: str | Path | Bundle,
    input: str | Path,
    output: str | Path,
    *,
    device: str = "cpu",
    names: Literal["id", "source"] = "id",
    modality: Modality | None = None,
    strength: float | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    difference: bool = False,
    resample: bool = False,
    sens: SensMethod | None = None,
    fft: Literal["centre", "centred", "corner"] | None = None,
    virtual_coils: int | None = None,
    orientations: int | None = None,
    verify: bool = False,
    retry_failed: bool = False,
    new_run: bool = False,
    show_identifiers: bool = False,
    trust_packages: Iterable[str] = (),
    workers: int | None = None,
    max_memory: str | int | None = None,
    item_timeout: float | None = None,
    retries: int = 2,
    created_utc: str | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Run a bundle over a file or a folder and leave results, a ledger and a report in `output`.

    Run again to resume: finished items are not repeated, and items that failed for a reason outside the input (disk
    full, memory, I/O) are tried again. One bad item never stops the others.

    Args:
        bundle: A loaded bundle, a path, or the name of a shipped one.
        input: What the bundle takes, in a folder or as one file: DICOM and NIfTI, or raw MR data.
        output: Folder for results; created if missing; never inside `input`.
        device: Where the model runs: ``cpu``, ``cuda``, ``cuda:1``.
        names: ``id`` names results by item id, ``source`` keeps the input's relative paths.
        modality: What the input is, where its files do not say or say it wrongly; its values are then in the
            bundle's units.
        strength: Of restoration: 1 (default) gives the model's result, 0 the input, between them a blend.
        tile: Side of a tile for large planes, or ``(row, col)``; default: the bundle's.
        overlap: Share of a tile that its neighbour covers too; default: the bundle's.
        batch: Planes (or tiles) a forward pass; default: the bundle's.
        difference: Also write result - input, in the format of the result.
        resample: Put unevenly spaced DICOM slices on an even grid; their result is NIfTI.
        sens: Of reconstruction: where coil sensitivities come from, ``given``, ``espirit``, ``estimate``, or ``auto``
            (default): those in the file, else ESPIRiT.
        fft: Fourier convention of the raw data; default: what format and data say.
        virtual_coils: Compress to at most this many coils; default 16.
        orientations: How many of eight orientations are averaged; default all. Fewer are faster.
        verify: Hash inputs and results of finished items again instead of trusting sizes and times.
        retry_failed: Try every failed item again.
        new_run: Results of another bundle or other parameters in `output` are moved to ``output/previous/``.
        show_identifiers: Let messages and the report tell names of input files.
        trust_packages: Packages besides medseq whose classes a bundle may use.
        workers: Processes that compute; 0 for this one, which no crash of a library survives. Default: as many as
            cores and memory allow, or none for a few items.
        max_memory: What all workers together may take, such as ``8G``; an item that needs more is tried again alone
            and with smaller tiles.
        item_timeout: Seconds that an item may take; its worker is ended then.
        retries: Attempts after the first for failures that may pass (`medseq.inference.retry`).
        created_utc: Date of the run for results, ISO 8601; default: now, or that of the run being resumed.
        progress: See `Progress`.

    Returns:
        Counts, the exit code and the path of the report.

    Raises:
        InputError: Nothing to read in `input`, or a parameter out of range.
        OutputError: `output` cannot be written, lies inside `input`, or holds another run.
        BundleError: The bundle is refused.
    """
    source, out, limit = Path(input), Path(output), parse_bytes(max_memory)
    root = input_root(source)
    require_apart(source, out)
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle, trust_packages=trust_packages)
    _require_words(bundle, names, modality)
    words = {
        "strength": strength,
        "tile": tile,
        "overlap": overlap,
        "batch": batch,
        "difference": difference,
        "resample": resample,
        "modality": modality,
        "sens": sens,
        "fft": fft,
        "virtual_coils": virtual_coils,
        "orientations": orientations,
    }
    params = resolve_params(bundle.config, words) | {"names": names}
    env = environment(device)
    run = RunRow(bundle.hash, params, _params_hash(params), __version__, created_utc or _now())
    with ExitStack() as stack:
        if show_identifiers:
            set_show_identifiers(True)
            stack.callback(set_show_identifiers, False)
        stop = stack.enter_context(_stop_on_signals())
        stack.enter_context(prepared(out))
        found = require_something(
            discover(source, bundle.config.input.kind, params.get("fft")), bundle.config.input.kind
        )
        stack.enter_context(lock(out))
        if new_run:
            archive(out)
        ledger = stack.enter_context(Ledger(out / LEDGER))
        run = ledger.begin_run(run)
        register(ledger, found)
        suspects = requeue(ledger, out, root, verify=verify, retry_failed=retry_failed)
        staff = plan_staff(
            workers,
            device=device,
            queued=ledger.counts()["queued"],
            isolated=item_timeout is not None or limit is not None or suspects,
            max_memory=limit,
            weights=bundle.weight_bytes,
        )
        report = RunReport(ledger, out, bundle, env, show_identifiers=show_identifiers)
        engine = Engine(
            ledger,
            run,
            identity=Identity(bundle.config.name, bundle.hash, run.params_hash, run.version, run.created_utc),
            units=bundle.config.input.units,
            root=root,
            out=out,
            stop=stop,
            progress=progress or _silent,
            retries=retries,
            room=staff.room,
            settled=report.write_page,
        )
        processed = engine.work(
            lambda: _enlist(stack, staff, bundle, device, params, stop, item_timeout, limit, show_identifiers)
        )
        engine.verify()
        report_path = report.write(finished_utc=_now(), interrupted=stop.is_set())
        counts = ledger.counts()
    interrupted = stop.is_set() and bool(counts["queued"])
    exit_code = 130 if interrupted else 3 if counts["failed"] else 0
    return RunSummary(counts, exit_code, report_path, processed)


def _enlist(  # noqa: PLR0913  (what a crew is made of)
    stack: ExitStack,
    staff: Staff,
    bundle: Bundle,
    device: str,
    params: dict[str, Any],
    stop: threading.Event,
    item_timeout: float | None,
    max_memory: int | None,
    show_identifiers: bool,
) -> Crew:
    """Whoever computes, with the model loaded."""
    if staff.workers == 0:
        return InlineCrew(predictor_for(bundle, device, params), f"main-{os.getpid()}", stop.is_set)
    shared = stack.enter_context(shared_weights(bundle)) if device == "cpu" else bundle
    hello = {
        "bundle": str(bundle.folder.resolve()),
        "bundle_hash": bundle.hash,
        "mapped": None if shared.mapped is None else str(shared.mapped),
        "trust_packages": list(bundle.trust_packages),
        "device": device,
        "params": params,
        "threads": staff.threads,
        "log_level": logging.getLogger("medseq").getEffectiveLevel(),
        "show_identifiers": show_identifiers,
    }
    return PoolCrew(hello, staff.workers, item_timeout_s=item_timeout, max_memory=max_memory)


def _require_words(bundle: Bundle, names: str, modality: str | None) -> None:
    if names not in ("id", "source"):
        raise InputError("names is unknown", found=names, wanted="id or source")
    if modality is not None and modality not in get_args(Modality):
        raise InputError("modality is unknown", found=modality, wanted=", ".join(get_args(Modality)))
    accepted = bundle.config.input.modality
    if modality is not None and accepted and modality not in accepted:
        raise InputError(
            "the bundle is for another modality",
            where=bundle.config.name,
            found=modality,
            wanted=" or ".join(accepted),
            remedy="medseq zoo lists the bundles",
        )


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
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


def _params_hash(params: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _silent(done: int, total: int, text: str) -> None:
    """Tell nobody."""
