"""One item from its files to results in the staging folder. Knows no ledger; every worker process runs just this.

`ItemTask` and `ItemResult` are plain values that cross a process border; the predictor stays in the worker.
"""

import errno
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medseq.errors import MedseqError, RetryableError
from medseq.inference.discover import open_input
from medseq.inference.discover_kspace import open_kspace_item, reader_label
from medseq.inference.discover_mil import open_mil_item
from medseq.inference.ledger_schema import OutputRow
from medseq.inference.mil_report import mil_view
from medseq.inference.outputs import WORK, Identity, ItemSink, Layout, TappedReader, rows_of
from medseq.inference.predictor import Flag, Prediction, Predictor
from medseq.inference.preview import preview
from medseq.io.atomic import names_forced_later
from medseq.io.resample import resample_uniform
from medseq.io.volume import Modality, Units, VolumeHeader

__all__ = ["ItemResult", "ItemTask", "describe_failure", "input_sha256", "run_item"]

BAGS = "bags"  # below OUT: features that were extracted from slides, kept for the next attempt


@dataclass(frozen=True)
class ItemTask:
    """Everything a worker needs besides the predictor.

    Attributes:
        item_id: The item.
        kind: ``dicom``, ``nifti``, ``kspace``, ``bag`` or ``slide``.
        files: Paths below `root`.
        root: Input root.
        out: Output folder.
        names: See `Layout`.
        identity: See `Identity`.
        units: The bundle's input units, for an input whose modality the caller gave.
        params: Parameters of the run; here `modality` (what the caller says the input is), `resample` (put unevenly
            spaced slices on an even grid), `fft` and `virtual_coils` (of raw data) count.
        sens_maps: File or folder of sensitivity maps for raw data.
        work: Folder below `out` for staging, another one for every run: what a dying process of an earlier run still
            writes lies elsewhere.
        memory: Bytes that the item may take beyond the loaded model; None for no limit.
        smaller: How many times the model's footprint is reduced, after attempts that did not fit.
    """

    item_id: str
    kind: str
    files: tuple[str, ...]
    root: Path
    out: Path
    names: Literal["id", "source"]
    identity: Identity
    units: Units
    params: Mapping[str, Any] = field(default_factory=dict)
    sens_maps: Path | None = None
    work: str = WORK
    memory: int | None = None
    smaller: int = 0

    @property
    def stage(self) -> Path:
        """The item's staging folder."""
        return self.out / self.work / self.item_id


@dataclass(frozen=True)
class ItemResult:
    """What the ledger records of a finished item; its files lie in the staging folder."""

    outputs: tuple[OutputRow, ...]
    layout: Layout
    metrics: dict[str, float]
    flags: tuple[Flag, ...]
    seconds: float
    peak_mb: float
    input_sha256: str


def run_item(task: ItemTask, predictor: Predictor, should_stop: Callable[[], bool]) -> ItemResult:
    """Compute one item into its staging folder.

    Raises:
        MedseqError: The item cannot be processed.
        Stopped: `should_stop` returned True.
    """
    started = time.perf_counter()
    stamps = _stamps(task)
    digest = input_sha256(task.root, task.files)
    run = {"kspace": _raw_data, "bag": _pathology, "slide": _pathology}.get(task.kind, _volume)
    with names_forced_later():
        prediction, flags, layout, pictures = run(task, predictor, should_stop)
    roles: dict[Path, str] = {path: output.role for output in prediction.outputs for path in output.paths}
    if pictures is not None:
        path = task.stage / layout.preview
        _write_json(path, pictures)
        roles[path] = "preview"
    if _stamps(task) != stamps:
        raise RetryableError("the input changed while it was read", remedy="run again when nothing writes to it")
    return ItemResult(
        rows_of(task.stage, roles),
        layout,
        prediction.metrics,
        (*flags, *prediction.flags),
        time.perf_counter() - started,
        _peak_mb(),
        digest,
    )


_Run = tuple[Prediction, list[Flag], Layout, dict[str, Any] | None]


def _volume(task: ItemTask, predictor: Predictor, should_stop: Callable[[], bool]) -> _Run:
    """An image in, an image out."""
    modality = task.params.get("modality")
    reader = open_input(task.root, task.item_id, task.kind, task.files, modality=modality, units=task.units)
    if task.params.get("resample"):
        reader = resample_uniform(reader)
    header, flags = _declared(reader.header, modality, task.units)
    resampled = task.kind == "dicom" and header.source.kind != "dicom"
    layout = Layout(task.item_id, task.names, task.kind, task.files[0], resampled)
    plane = header.shape[0] // 2
    tapped = TappedReader(reader, plane, header)
    sink = ItemSink(task.stage, layout, task.identity, plane)
    prediction = predictor.predict(tapped, sink, should_stop=should_stop)
    if tapped.kept is None or sink.plane is None:
        return prediction, flags, layout, None
    return prediction, flags, layout, preview(tapped.kept, sink.plane, tapped.kept_valid, header, plane)


def _raw_data(task: ItemTask, predictor: Predictor, should_stop: Callable[[], bool]) -> _Run:
    """Raw MR data in, an image out; the picture before is the zero-filled image."""
    params = task.params
    reader = open_kspace_item(
        task.root,
        task.item_id,
        task.files,
        fft=params.get("fft"),
        virtual_coils=params.get("virtual_coils"),
        sens_maps=task.sens_maps,
    )
    layout = Layout(task.item_id, task.names, task.kind, task.files[0], part=reader_label(reader))
    plane = reader.n // 2
    sink = ItemSink(task.stage, layout, task.identity, plane)
    prediction = predictor.predict(reader, sink, should_stop=should_stop)
    if sink.before is None or sink.plane is None or sink.header is None:
        return prediction, [], layout, None
    return prediction, [], layout, preview(sink.before, sink.plane, None, sink.header, plane)


def _pathology(task: ItemTask, predictor: Predictor, should_stop: Callable[[], bool]) -> _Run:
    """A bag or a slide in, scores and heat maps out."""
    item = open_mil_item(task.root, task.item_id, task.kind, task.files, task.out / BAGS)
    # Features in a zarr folder are called like the folder, not like one of its files.
    first = next((name for name in PurePosixPath(task.files[0]).parents if name.suffix == ".zarr"), task.files[0])
    layout = Layout(task.item_id, task.names, task.kind, str(first))
    sink = ItemSink(task.stage, layout, task.identity, 0)
    prediction = predictor.predict(item, sink, should_stop=should_stop)
    return prediction, [], layout, mil_view(prediction.outputs)


def input_sha256(root: Path, relpaths: Sequence[str]) -> str:
    """sha256 over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for relpath in relpaths:
        with (root / relpath).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def describe_failure(error: Exception) -> tuple[str, str]:
    """Reason code and reason of a failed item, without paths or identifiers.

    The text of an error that is not ours may hold a path, so only its type and our own line are told.
    """
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk-full", f"no space left for the result (found {name}); free space and run again"
        if isinstance(error, PermissionError):
            return "unreadable", f"a file cannot be read or written (found {name}); check its permissions"
        if isinstance(error, FileNotFoundError):
            return "io", f"a file of the input is no longer there (found {name}); run again"
        return "io", f"reading or writing failed (found {name}); run again"
    if isinstance(error, MedseqError):
        full = isinstance(error, RetryableError) and error.found in ("ENOSPC", "EDQUOT")
        return ("disk-full" if full else error.code), str(error)
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return "memory", "not enough memory; use a smaller --tile or --batch, or a larger machine"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "medseq" in Path(frame.filename).parts]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "unknown place"
    return "bug", f"unexpected {type(error).__name__} in {place}; please report it"


def _stamps(task: ItemTask) -> list[tuple[int, int]]:
    states = [(task.root / relpath).stat() for relpath in task.files]
    return [(state.st_size, state.st_mtime_ns) for state in states]


def _declared(header: VolumeHeader, modality: Modality | None, units: Units) -> tuple[VolumeHeader, list[Flag]]:
    """Take the caller's word for the modality, and say so in the result."""
    if modality is None or header.modality == modality:
        return header, []
    text = f"the file says {header.modality} [{header.units}], the caller {modality} [{units}]"
    return replace(header, modality=modality, units=units), [Flag("modality-declared", text, "info")]


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        # Not fsynced: a power cut may take the pictures of the last items, which the next run or a check notices.
        json.dump(content, stream, separators=(",", ":"))


def _peak_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    # Kilobytes on Linux, bytes on macOS.
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
