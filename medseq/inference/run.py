"""The batch engine: discover -> plan -> run -> verify -> report, over a file or a folder, unattended.

    OUT/<item_id>/…    results (layout: `medseq.inference.outputs.Layout`)
    OUT/run.sqlite     what became of every input (`medseq.inference.ledger`)
    OUT/report.json    the run as data;  OUT/report.html  the same for people
    OUT/.work/         staging of the item in progress;  OUT/.run.lock  held while a run is working

Order that makes a kill at any moment harmless: results are written to staging and fsynced; their names and hashes go
to the ledger; they are renamed; the item becomes ``done``. A run that starts removes what is in staging, queues items
that were running, and repeats them: same input, same bytes.

One process works through the items here. `medseq.inference.worker.run_item` is what a process of a pool would run:
the loop in `_work` is the only place that knows both the ledger and the predictor.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from medseq import __version__
from medseq.errors import InputError, MedseqError, OutputError
from medseq.inference.bundle import Bundle, load_bundle
from medseq.inference.check import LEDGER, CheckSummary, check_run, output_problem
from medseq.inference.discover import discover, input_root
from medseq.inference.environment import environment
from medseq.inference.ledger import ItemRow, Ledger, RunRow
from medseq.inference.mil_params import AttributionName
from medseq.inference.outputs import WORK, Identity, publish
from medseq.inference.params import resolve_params
from medseq.inference.plan import register, requeue, require_something
from medseq.inference.predictor import Predictor, Stopped
from medseq.inference.recon_params import SensMethod
from medseq.inference.report import render_report
from medseq.inference.report_json import build_report
from medseq.inference.run_folder import archive, lock, prepared, remove_empty, require_apart, write_text
from medseq.inference.worker import ItemTask, describe_failure, run_item
from medseq.io.privacy import show_identifiers as set_show_identifiers
from medseq.io.volume import Modality

__all__ = ["CheckSummary", "Progress", "RunSummary", "check_run", "predict_folder"]

logger = logging.getLogger(__name__)

# Called with (finished items, all items, text without identifiers) before the first item and after each.
Progress = Callable[[int, int, str], None]
_LEASE_S = 3600.0


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
    sens_maps: str | Path | None = None,
    fft: Literal["centre", "centred", "corner"] | None = None,
    virtual_coils: int | None = None,
    orientations: int | None = None,
    attribution: AttributionName | None = None,
    top: int | None = None,
    mpp: float | None = None,
    encoder: str | None = None,
    adapt: bool = False,
    verify: bool = False,
    retry_failed: bool = False,
    new_run: bool = False,
    show_identifiers: bool = False,
    trust_packages: Iterable[str] = (),
    created_utc: str | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Run a bundle over a file or a folder and leave results, a ledger and a report in `output`.

    Run again to resume: finished items are not repeated, and items that failed for a reason outside the input (disk
    full, memory, I/O) are tried again. One bad item never stops the others.

    Args:
        bundle: A loaded bundle, a path, or the name of a shipped one.
        input: What the bundle takes, in a folder or as one file: DICOM and NIfTI, raw MR data, features or slides.
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
        sens_maps: File of coil sensitivities for all raw data, or a folder with ``NAME.*`` or ``NAME_sens.*`` for each.
        fft: Fourier convention of the raw data; default: what format and data say.
        virtual_coils: Compress to at most this many coils; default 16.
        orientations: How many of eight orientations are averaged; default all. Fewer are faster.
        attribution: Of slides: what heat maps show, ``attention`` (default), ``gradient`` or ``occlusion``.
        top: Of slides: patches on the sheet of those with the highest values; default 12.
        mpp: Of slides: microns per pixel, for those that do not say.
        encoder: Of slides: the patch encoder, where the bundle names none, or a file of its weights.
        adapt: Adapt the network to every slice by its own samples first: half a minute to minutes a slice.
        verify: Hash inputs and results of finished items again instead of trusting sizes and times.
        retry_failed: Try every failed item again.
        new_run: Results of another bundle or other parameters in `output` are moved to ``output/previous/``.
        show_identifiers: Let messages and the report tell names of input files.
        trust_packages: Packages besides medseq whose classes a bundle may use.
        created_utc: Date of the run for results, ISO 8601; default: now, or that of the run being resumed.
        progress: See `Progress`.

    Returns:
        Counts, the exit code and the path of the report.

    Raises:
        InputError: Nothing to read in `input`, or a parameter out of range.
        OutputError: `output` cannot be written, lies inside `input`, or holds another run.
        BundleError: The bundle is refused.
    """
    source, out = Path(input), Path(output)
    root = input_root(source)
    require_apart(source, out)
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle, trust_packages=trust_packages)
    _require_words(bundle, names, modality)
    words: dict[str, Any] = {"strength": strength, "tile": tile, "overlap": overlap, "batch": batch}
    words |= {"difference": difference, "resample": resample, "modality": modality, "sens": sens}
    words |= {"sens_maps": sens_maps, "fft": fft, "virtual_coils": virtual_coils, "orientations": orientations}
    words |= {"adapt": adapt, "attribution": attribution, "top": top, "mpp": mpp, "encoder": encoder}
    params = resolve_params(bundle.config, words) | {"names": names}
    maps = None if sens_maps is None else Path(sens_maps).resolve()
    env = environment(device)
    run = RunRow(bundle.hash, params, _params_hash(params), __version__, created_utc or _now())
    with ExitStack() as stack:
        if show_identifiers:
            set_show_identifiers(True)
            stack.callback(set_show_identifiers, False)
        stop = stack.enter_context(_stop_on_signals())
        stack.enter_context(prepared(out))
        found = require_something(
            discover(source, bundle.config.input.kind, params.get("fft"), maps), bundle.config.input.kind
        )
        stack.enter_context(lock(out))
        if new_run:
            archive(out)
        ledger = stack.enter_context(Ledger(out / LEDGER))
        run = ledger.begin_run(run)
        register(ledger, found)
        requeue(ledger, out, root, verify=verify, retry_failed=retry_failed)
        engine = _Engine(ledger, bundle, run, out, root, stop, progress or _silent, maps)
        processed = engine.work(lambda: _predictor(bundle, device, params))
        engine.verify()
        report_path = engine.report(env, show_identifiers)
        counts = ledger.counts()
    interrupted = stop.is_set() and bool(counts["queued"])
    exit_code = 130 if interrupted else 3 if counts["failed"] else 0
    return RunSummary(counts, exit_code, report_path, processed)


@dataclass
class _Engine:
    """One run over one output folder; see the module docstring for the order of its steps."""

    ledger: Ledger
    bundle: Bundle
    run: RunRow
    out: Path
    root: Path
    stop: threading.Event
    progress: Progress
    sens_maps: Path | None = None

    def work(self, load: Callable[[], Predictor]) -> int:
        """Compute queued items until none is left or a stop is asked for; returns how many were tried."""
        worker, tried, predictor = f"{os.getpid()}-{os.urandom(3).hex()}", 0, None
        identity = Identity(
            self.bundle.config.name, self.bundle.hash, self.run.params_hash, self.run.version, self.run.created_utc
        )
        self._tell("")
        while not self.stop.is_set():
            if predictor is None and self.ledger.counts()["queued"]:
                # Loaded only when there is work: a second run over finished items takes no torch.
                predictor = load()
            item = self.ledger.claim(worker, _LEASE_S)
            if item is None or predictor is None:
                break
            files = tuple(row.relpath for row in self.ledger.files(item.id))
            task = ItemTask(
                item.id,
                item.kind,
                files,
                self.root,
                self.out,
                names=self.run.params["names"],
                identity=identity,
                units=self.bundle.config.input.units,
                params=self.run.params,
                sens_maps=self.sens_maps,
            )
            if not self._attempt(item, task, predictor, worker):
                break
            tried += 1
            self._tell(item.id)
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        return tried

    def _attempt(self, item: ItemRow, task: ItemTask, predictor: Predictor, worker: str) -> bool:
        """One item, whatever happens to it; False if it was stopped and is queued again."""
        shutil.rmtree(task.stage, ignore_errors=True)
        try:
            task.stage.mkdir(parents=True)
            result = run_item(task, predictor, self.stop.is_set)
            self._require_free(task, [row.relpath for row in result.outputs])
            self._drop_outputs(item.id, keep={row.relpath for row in result.outputs})
            self.ledger.stage_outputs(item.id, result.outputs)
            publish(task.stage, self.out, result.layout, result.outputs)
        except Stopped:
            shutil.rmtree(task.stage, ignore_errors=True)
            self.ledger.requeue(ids=[item.id])
            return False
        except Exception as error:  # noqa: BLE001  (the one guard: an item's failure is recorded and the run goes on)
            # First the space, then the row: on a full disk the ledger may need what staging took.
            shutil.rmtree(task.stage, ignore_errors=True)
            code, reason = describe_failure(error)
            self._drop_outputs(item.id, keep=set())
            self.ledger.fail(item.id, worker, code, reason)
            logger.warning("item %s failed (%s): %s", item.id, code, reason)
            return True
        # What discovery remarked on the source; what an earlier attempt said about its result is void.
        told = {flag.code for flag in result.flags}
        earlier = [flag for flag in item.flags if flag["level"] == "info" and flag["code"] not in told]
        self.ledger.finish(
            item.id,
            worker,
            seconds=result.seconds,
            peak_mb=result.peak_mb,
            input_sha256=result.input_sha256,
            metrics=result.metrics,
            flags=[*earlier, *(vars(flag) for flag in result.flags)],
        )
        logger.info("item %s done in %.2f s", item.id, result.seconds)
        return True

    def verify(self) -> None:
        """A result that vanished or changed size while the run went on is a failure, not a success."""
        for item in self.ledger.items("done"):
            problems = {output_problem(self.out, row, rehash=False) for row in self.ledger.outputs(item.id)} - {None}
            if problems:
                self.ledger.fail(item.id, "verify", "io", "its result was lost after it was written; run again")

    def report(self, env: dict[str, Any], show_identifiers: bool) -> Path | None:
        """Write report.json and report.html; None if they cannot be written (the ledger has everything)."""
        config = self.bundle.config
        facts = {
            "name": config.name,
            "version": config.version,
            "hash": self.bundle.hash,
            "task": config.task,
            "modality": list(config.input.modality),
            "units": config.input.units,
            "intended_use": str(self.bundle.metadata.get("intended_use", "")),
            "calibration": self.bundle.metadata.get("calibration", []),
        }
        report = build_report(
            self.ledger,
            self.out,
            bundle=facts,
            environment=env,
            finished_utc=_now(),
            interrupted=self.stop.is_set(),
            show_identifiers=show_identifiers,
        )
        try:
            write_text(self.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
            write_text(self.out / "report.html", render_report(report))
        except MedseqError as error:
            logger.error("the report could not be written: %s", error)
            return None
        return self.out / "report.html"

    def _require_free(self, task: ItemTask, relpaths: list[str]) -> None:
        """A result that keeps its source's name must not replace a file that is not this item's."""
        if task.names == "id":
            return
        for relpath in relpaths:
            if (self.out / relpath).exists() and self.ledger.owner(relpath) != task.item_id:
                raise OutputError(
                    "a file of this name is already in the output folder",
                    remedy="choose another folder, or names by id",
                )

    def _drop_outputs(self, item_id: str, keep: set[str]) -> None:
        """Remove results of an earlier attempt that the item no longer has."""
        # A folder that can no longer be written keeps them; their rows go, so that nobody takes them for results.
        with suppress(OSError):
            for row in self.ledger.outputs(item_id):
                if row.relpath not in keep:
                    (self.out / row.relpath).unlink(missing_ok=True)
                    remove_empty(self.out, (self.out / row.relpath).parent)

    def _tell(self, text: str) -> None:
        counts = self.ledger.counts()
        finished = counts["done"] + counts["failed"]
        self.progress(finished, finished + counts["queued"] + counts["running"], text)


def _predictor(bundle: Bundle, device: str, params: dict[str, Any]) -> Predictor:
    """The seam for other tasks: which predictor a bundle needs."""
    words = {
        key: value
        for key, value in params.items()
        if key not in ("names", "modality", "resample", "blend", "sens_maps")
    }
    if bundle.config.task == "mil":
        from medseq.inference.mil import MILPredictor

        return MILPredictor(bundle, device, **words)
    if bundle.config.task == "recon":
        from medseq.inference.recon import ReconPredictor

        return ReconPredictor(bundle, device, **words)
    from medseq.inference.restore import RestorePredictor

    if words["tile"] is not None:
        words["tile"] = tuple(words["tile"])
    return RestorePredictor(bundle, device, **words)


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
