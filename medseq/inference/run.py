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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from medseq import __version__
from medseq.errors import InputError
from medseq.inference.bundle import Bundle, load_bundle
from medseq.inference.check import LEDGER, CheckSummary, check_run
from medseq.inference.choice import Choice
from medseq.inference.discover import discover, input_root
from medseq.inference.dry_run import RunPlan, estimate, survey
from medseq.inference.engine import Engine, Progress
from medseq.inference.enlist import Hire, enlist, stop_on_signals
from medseq.inference.environment import environment
from medseq.inference.found import Found
from medseq.inference.input_place import Place, archives_of, input_place
from medseq.inference.ledger import Ledger, RunRow
from medseq.inference.mil_params import AttributionName, FormatName
from medseq.inference.outputs import Identity
from medseq.inference.params import resolve_params
from medseq.inference.plan import register, requeue, require_something
from medseq.inference.predictors import predictor_for
from medseq.inference.recon_params import SensMethod
from medseq.inference.run_folder import archive, lock, prepared, require_apart
from medseq.inference.run_report import RunReport, bundle_facts
from medseq.inference.shards import Shard
from medseq.inference.staffing import Staff, parse_bytes, plan_staff
from medseq.inference.worker import ItemTask
from medseq.io.privacy import show_identifiers as set_show_identifiers
from medseq.io.volume import Modality

__all__ = ["CheckSummary", "Progress", "RunSummary", "check_run", "predict_folder"]


@dataclass(frozen=True)
class RunSummary:
    """What `predict_folder` did.

    Attributes:
        counts: Items by state, over all runs of this output folder.
        exit_code: 0 all done, 3 some failed, 130 interrupted.
        report_path: ``report.html``; None if it could not be written.
        processed: Items computed by this call.
        plan: Of a dry run, else None.
    """

    counts: dict[str, int]
    exit_code: int
    report_path: Path | None
    processed: int
    plan: RunPlan | None = None


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
    uncertainty: bool | None = None,
    resample: bool = False,
    sens: SensMethod | None = None,
    sens_maps: str | Path | None = None,
    fft: Literal["centre", "centred", "corner"] | None = None,
    virtual_coils: int | None = None,
    orientations: int | None = None,
    adapt: bool = False,
    attribution: AttributionName | None = None,
    top: int | None = None,
    mpp: float | None = None,
    encoder: str | None = None,
    format: FormatName | None = None,
    verify: bool = False,
    retry_failed: bool = False,
    new_run: bool = False,
    show_identifiers: bool = False,
    trust_packages: Iterable[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    priority: Sequence[str] = (),
    shard: str | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    max_memory: str | int | None = None,
    item_timeout: float | None = None,
    retries: int = 2,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    deidentify: bool = False,
    created_utc: str | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Run a bundle over a file or a folder and leave results, a ledger and a report in `output`.

    Run again to resume: finished items are not repeated, and items that failed for a reason outside the input (disk
    full, memory, I/O) are tried again. One bad item never stops the others.

    Args:
        bundle: A loaded bundle, a path, or the name of a shipped one.
        input: What the bundle takes, in a folder, an archive (.zip, .tar, .tar.gz) or as one file: DICOM and NIfTI,
            raw MR data, features or slides.
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
        uncertainty: Also write the spread of the result over flips and turns; eight times the work.
        resample: Put unevenly spaced DICOM slices on an even grid; their result is NIfTI.
        sens: Of reconstruction: where coil sensitivities come from, ``given``, ``espirit``, ``estimate``, or ``auto``
            (default): those in the file, else ESPIRiT.
        sens_maps: File of coil sensitivities for all raw data, or a folder with ``NAME.*`` or ``NAME_sens.*`` for each.
        fft: Fourier convention of the raw data; default: what format and data say.
        virtual_coils: Compress to at most this many coils; default 16.
        orientations: How many of eight orientations are averaged; default all. Fewer are faster.
        adapt: Adapt the network to every slice by its own samples first: half a minute to minutes a slice.
        attribution: Of slides: what heat maps show, ``attention`` (default), ``gradient`` or ``occlusion``.
        top: Of slides: patches on the sheet of those with the highest values; default 12.
        mpp: Of slides: microns per pixel, for those that do not say.
        encoder: Of slides: the patch encoder, where the bundle names none, or a file of its weights.
        format: Of slides: ``auto`` (default) writes DICOM reports and pictures of DICOM slides, ``dicom`` of all.
        verify: Hash inputs and results of finished items again instead of trusting sizes and times.
        retry_failed: Try every failed item again.
        new_run: Results of another bundle or other parameters in `output` are moved to ``output/previous/``.
        show_identifiers: Let messages and the report tell names of input files.
        trust_packages: Packages besides medseq whose classes a bundle may use.
        include: Shell patterns of files that are wanted (`medseq.inference.choice.Choice`); default: all.
        exclude: Patterns of files that are not.
        priority: Patterns of files whose items come first, the first pattern's before the second's.
        shard: ``i/n``: compute the i-th of n parts, in ``output/shards/i-of-n`` (`medseq.inference.shards`).
        dry_run: Compute nothing; the summary's `plan` tells what would be done, with time and memory.
        workers: Processes that compute; 0 for this one, which no crash of a library survives. Default: as many as
            cores and memory allow, or none for a few items.
        max_memory: What all workers together may take, such as ``8G``; an item that needs more is tried again alone
            and with smaller tiles.
        item_timeout: Seconds that an item may take; its worker is ended then.
        retries: Attempts after the first for failures that may pass (`medseq.inference.retry`).
        engine: ``local``: processes on this machine; ``ray``: a Ray cluster whose nodes see the same folders.
        ray_address: Of the cluster; default: the one this machine belongs to, else a local one is started.
        deidentify: Work on a copy without identifiers, in ``output/deidentified`` (`medseq deidentify`).
        created_utc: Date of the run for results, ISO 8601; default: now, or that of the run being resumed.
        progress: See `Progress`.

    Returns:
        Counts, the exit code and the path of the report.

    Raises:
        InputError: Nothing to read in `input`, or a parameter out of range.
        OutputError: `output` cannot be written, lies inside `input`, or holds another run.
        BundleError: The bundle is refused.
    """
    left_out = 0
    if deidentify:
        from medseq.inference.deidentify import deidentify_folder

        cleaned = deidentify_folder(input, Path(output) / "deidentified")
        left_out, input = cleaned.exit_code, Path(output) / "deidentified"
    source, limit, choice = Path(input), parse_bytes(max_memory), Choice(include, exclude, priority)
    part = None if shard is None else Shard.parse(shard)
    out = Path(output) if part is None else part.folder(Path(output))
    input_root(source)
    require_apart(source, out)
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle, trust_packages=trust_packages)
    _require_words(bundle, names, modality, engine)
    words: dict[str, Any] = {"strength": strength, "tile": tile, "overlap": overlap, "batch": batch}
    words |= {"difference": difference, "uncertainty": uncertainty, "resample": resample, "modality": modality}
    words |= {"sens": sens, "sens_maps": sens_maps, "fft": fft, "virtual_coils": virtual_coils, "adapt": adapt}
    words |= {"orientations": orientations, "attribution": attribution, "top": top, "mpp": mpp, "encoder": encoder}
    words |= {"format": format}
    params = resolve_params(bundle.config, words) | {"names": names}
    maps = None if sens_maps is None else Path(sens_maps).resolve()
    env = environment(device)
    run = RunRow(bundle.hash, params, _params_hash(params), __version__, created_utc or _now())
    if engine == "ray" and limit is not None:
        raise InputError("max_memory is for this machine", found="engine ray", remedy="limit the memory of Ray's nodes")
    staffing = partial(
        plan_staff,
        # On a cluster 0 is one a core of the cluster.
        (workers or 0) if engine == "ray" else workers,
        device=device,
        isolated=engine == "local" and (item_timeout is not None or limit is not None),
        max_memory=limit,
        weights=bundle.weight_bytes,
    )
    with ExitStack() as stack:
        if show_identifiers:
            set_show_identifiers(True)
            stack.callback(set_show_identifiers, False)
        if dry_run:
            aside = Path(stack.enter_context(TemporaryDirectory()))
            place = stack.enter_context(input_place(source, archives_of(source, choice), aside))
            found = _found(place, bundle, params, maps, choice, part)
            task_of = partial(_task_of, bundle, run, input_root(place.folder), maps)
            plan = _plan(stack, found, staffing, bundle, device, run, out, task_of)
            return RunSummary({"queued": plan.items, "done": plan.done}, 0, None, 0, plan)
        stop = stack.enter_context(stop_on_signals())
        stack.enter_context(prepared(out))
        archives = archives_of(source, choice)
        if archives:
            # Here already: what a killed run had unpacked is removed, and must be nobody else's.
            stack.enter_context(lock(out))
        place = stack.enter_context(input_place(source, archives, out))
        root, found = input_root(place.folder), _found(place, bundle, params, maps, choice, part)
        if not archives:
            stack.enter_context(lock(out))
        if new_run:
            archive(out)
        ledger = stack.enter_context(Ledger(out / LEDGER))
        run = ledger.begin_run(run)
        if not archives:
            # `medseq review` shows what was there before; what was unpacked is gone after the run.
            ledger.note_origin(root)
        register(ledger, found, choice)
        suspects = requeue(ledger, out, root, verify=verify, retry_failed=retry_failed)
        staff = staffing(
            queued=ledger.counts()["queued"], isolated=staffing.keywords["isolated"] or (engine == "local" and suspects)
        )
        report = RunReport(ledger, out, bundle_facts(bundle), env, show_identifiers=show_identifiers)
        loop = Engine(
            ledger,
            run,
            identity=_identity(bundle, run),
            units=bundle.config.units_for(modality),
            root=root,
            out=out,
            stop=stop,
            progress=progress or _silent,
            retries=retries,
            room=staff.room,
            settled=report.write_page,
            sens_maps=maps,
        )
        hire = Hire(bundle, device, params, staff, item_timeout, limit, show_identifiers, ray_address)
        processed = loop.work(lambda: enlist(stack, hire, stop, engine))
        loop.verify()
        report_path = report.write(finished_utc=_now(), interrupted=stop.is_set())
        counts = ledger.counts()
    interrupted = stop.is_set() and bool(counts["queued"])
    exit_code = 130 if interrupted else 3 if counts["failed"] else left_out
    return RunSummary(counts, exit_code, report_path, processed)


def _found(
    place: Place, bundle: Bundle, params: dict[str, Any], maps: Path | None, choice: Choice, part: Shard | None
) -> Iterator[Found]:
    """What is to be done, of which there is something."""
    kind = bundle.config.input.kind
    items = discover(place.folder, kind, params.get("fft"), maps, choice, links=place.links, broken=place.broken)
    found = require_something(items, kind)
    return found if part is None else (item for item in found if part.owns(item.item_id))


def _plan(
    stack: ExitStack,
    found: Iterator[Found],
    staffing: Callable[..., Staff],
    bundle: Bundle,
    device: str,
    run: RunRow,
    out: Path,
    task_of: Callable[[Found, Path], ItemTask],
) -> RunPlan:
    """The plan of a run; nothing is written to the output folder."""
    known = (out / LEDGER).exists()
    plan, sample = survey(found, stack.enter_context(Ledger(out / LEDGER, read_only=True)) if known else None)
    staff = staffing(queued=plan.items)
    plan.workers, plan.threads = staff.workers, staff.threads
    if not sample:
        plan.timed = "nothing to compute"
        return plan

    estimate(plan, sample, predictor_for(bundle, device, run.params), task_of)
    return plan


def _task_of(bundle: Bundle, run: RunRow, root: Path, maps: Path | None, item: Found, folder: Path) -> ItemTask:
    """What a worker would be given for an item, with another output folder."""
    return ItemTask(
        item.item_id,
        item.kind,
        tuple(file.relpath for file in item.files),
        root,
        folder,
        names="id",
        identity=_identity(bundle, run),
        units=bundle.config.units_for(run.params.get("modality")),
        params=run.params,
        sens_maps=maps,
    )


def _identity(bundle: Bundle, run: RunRow) -> Identity:
    return Identity(bundle.config.name, bundle.hash, run.params_hash, run.version, run.created_utc)


def _require_words(bundle: Bundle, names: str, modality: str | None, engine: str) -> None:
    if engine not in ("local", "ray"):
        raise InputError("engine is unknown", found=engine, wanted="local or ray")
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


def _params_hash(params: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(params, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _silent(done: int, total: int, text: str) -> None:
    """Tell nobody."""
