"""Pull studies from an archive and push files to one: retried, resumed, in parallel, within a bandwidth.

Resuming needs no memory of its own: a pull leaves out images that are on the disk, a push those that the archive has.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from medseq.errors import InputError, MedseqError, RetryableError
from medseq.io.atomic import clear, publish_bytes
from medseq.io.pacs import Archive, Instance, Stored
from medseq.io.pacs_dimse import DimseArchive
from medseq.io.pacs_receiver import Receiver, uid_name
from medseq.io.pacs_web import WebArchive
from medseq.io.privacy import label, path_label

__all__ = ["Pace", "TransferSummary", "commit", "image_path", "pull", "push", "retried"]

T = TypeVar("T")
_BATCH = 64


@dataclass
class TransferSummary:
    """What a transfer did.

    Attributes:
        done: Images transferred.
        already: Images that were there before.
        failures: Label and reason of each that failed.
    """

    done: int = 0
    already: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all there, 2 nothing to transfer, 3 some failed."""
        return 3 if self.failures else (0 if self.done or self.already else 2)


class Pace:
    """Keeps transfers of several threads together below a number of bytes a second.

    Args:
        bytes_per_s: The limit; None for none.
        clock: Time in seconds; tests replace it.
        sleep: Waits; tests replace it.
    """

    def __init__(
        self,
        bytes_per_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise InputError("a bandwidth must be positive", found=bytes_per_s)
        self._rate, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._free_at, self._lock = clock(), threading.Lock()

    def spend(self, count: int) -> None:
        """Book `count` bytes and wait until they may have passed."""
        if self._rate is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, self._clock()) + count / self._rate
            wait = self._free_at - self._clock()
        if wait > 0:
            self._sleep(wait)


def retried(
    call: Callable[[], T],
    *,
    attempts: int = 4,
    wait_s: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call again after a `RetryableError`, waiting twice as long each time; the last one is raised."""
    for attempt in range(attempts):
        try:
            return call()
        except RetryableError:
            if attempt == attempts - 1:
                raise
            sleep(wait_s * 2**attempt)
    raise AssertionError("at least one attempt")


def image_path(folder: Path, instance: Instance) -> Path:
    """Where an image lies below a folder: hashes of study, series and image UID."""
    return folder / uid_name(instance.study) / uid_name(instance.series) / f"{uid_name(instance.sop)}.dcm"


def pull(
    archive: Archive,
    studies: Iterable[str],
    folder: Path,
    *,
    parallel: int = 4,
    pace: Pace | None = None,
    wait_s: float = 1.0,
    receiver: Receiver | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> TransferSummary:
    """Fetch whole studies; images that are on the disk are left out.

    Args:
        archive: Where from.
        studies: Study UIDs.
        folder: Where to.
        parallel: Images fetched at one time (DICOMweb).
        pace: Bandwidth, for DICOMweb; with C-MOVE it is the archive that sends.
        wait_s: First wait before a request is repeated.
        receiver: For DIMSE: a running receiver whose folder is `folder` and whose title the archive knows.
        progress: Called with (images done, images, label).
    """
    wanted: list[Instance] = []
    for study in studies:
        wanted += retried(lambda study=study: archive.instances(study), wait_s=wait_s)  # type: ignore[misc]
    summary = TransferSummary()
    missing = [instance for instance in wanted if not image_path(folder, instance).exists()]
    summary.already = len(wanted) - len(missing)
    if isinstance(archive, DimseArchive):
        if receiver is None:
            raise InputError("C-MOVE needs a receiver", remedy="pass --port and --ae as the archive knows them")
        _move(archive, missing, folder, summary, receiver.ae_title, wait_s, progress)
    elif isinstance(archive, WebArchive):
        pace = pace or Pace(None)

        def fetch(instance: Instance) -> None:
            data = retried(lambda: archive.fetch(instance), wait_s=wait_s)
            target = image_path(folder, instance)
            publish_bytes(clear(target), target, data)
            pace.spend(len(data))

        _in_threads([(label(i.sop), lambda i=i: fetch(i)) for i in missing], parallel, summary, progress)  # type: ignore[misc]
    return summary


def push(
    archive: Archive,
    paths: Sequence[Path],
    *,
    parallel: int = 2,
    pace: Pace | None = None,
    wait_s: float = 1.0,
    resume: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[TransferSummary, list[Stored]]:
    """Send files; those that the archive has are left out.

    Args:
        archive: Where to.
        paths: DICOM files.
        parallel: Batches sent at one time.
        pace: Bandwidth.
        wait_s: First wait before a request is repeated.
        resume: Ask first what the archive has.
        progress: Called with (batches done, batches, label).

    Returns:
        The summary, and an answer for every file, those that the archive had included.
    """
    summary, pace = TransferSummary(), pace or Pace(None)
    answers = _present_there(archive, paths, wait_s) if resume else []
    summary.already = len(answers)
    paths = sorted(set(paths) - {one.path for one in answers})
    lock = threading.Lock()

    def send(batch: Sequence[Path]) -> None:
        stored = retried(lambda: archive.store(batch), wait_s=wait_s)
        with lock:
            answers.extend(stored)
            summary.failures += [(path_label(one.path), one.problem) for one in stored if one.problem]
        pace.spend(sum(path.stat().st_size for path in batch))

    batches = [paths[lo : lo + _BATCH] for lo in range(0, len(paths), _BATCH)]
    counted = TransferSummary()
    work = [(f"{len(batch)} files", lambda batch=batch: send(batch)) for batch in batches]
    _in_threads(work, parallel, counted, progress)
    summary.failures += counted.failures
    summary.done = sum(one.problem is None for one in answers) - summary.already
    return summary, answers


def commit(
    archive: Archive, receiver: Receiver, stored: Sequence[Stored], *, timeout_s: float = 60.0
) -> list[tuple[str, str]]:
    """Have a DIMSE archive confirm that it keeps what it was sent; returns what it does not, with reasons.

    Raises:
        RetryableError: It has not answered in time.
        InputError: It speaks DICOMweb, which has no storage commitment here.
    """
    if not isinstance(archive, DimseArchive):
        raise InputError("storage commitment is a DIMSE service", remedy="use a dicom:// destination")
    kept = [one for one in stored if one.problem is None]
    if not kept:
        return []
    transaction = retried(lambda: archive.request_commitment(kept))
    answers = receiver.wait_for_commitment(transaction, timeout_s)
    if answers is None:
        raise RetryableError("has not confirmed in time", where="storage commitment", found=f"{timeout_s:.0f} s")
    bad = [(label(one.sop_uid), answers.get(one.sop_uid, "not named in the report")) for one in kept]
    return [(name, reason) for name, reason in bad if reason is not None]


def _move(
    archive: DimseArchive,
    missing: list[Instance],
    folder: Path,
    summary: TransferSummary,
    local_ae: str,
    wait_s: float,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    series: dict[tuple[str, str], list[Instance]] = {}
    for instance in missing:
        series.setdefault((instance.study, instance.series), []).append(instance)
    for done, ((study, name), images) in enumerate(series.items(), start=1):
        for lo in range(0, len(images), _BATCH):
            part = images[lo : lo + _BATCH]
            uids = [instance.sop for instance in part]
            try:
                retried(lambda: archive.move(study, name, uids, local_ae), wait_s=wait_s)  # noqa: B023
                reason = "the archive did not send it"
            except MedseqError as error:
                reason = str(error)
            arrived = [instance for instance in part if image_path(folder, instance).exists()]
            summary.done += len(arrived)
            summary.failures += [(label(i.sop), reason) for i in part if i not in arrived]
        if progress:
            progress(done, len(series), "series")


def _present_there(archive: Archive, paths: Sequence[Path], wait_s: float) -> list[Stored]:
    """Those of the files that the archive has."""
    from pydicom import dcmread

    from medseq.io.dicom_header import understood

    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    found: dict[tuple[str, str], list[Stored]] = {}
    for path in paths:
        with understood(path_label(path), "not a DICOM file that can be sent"):
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
            study, series, sop_class, sop = (str(dataset[keyword].value) for keyword in keywords)
        found.setdefault((study, series), []).append(Stored(path, sop_class, sop))
    present = []
    for (study, series), files in sorted(found.items()):
        there = {instance.sop for instance in _asked(archive, study, series, wait_s)}
        present += [one for one in files if one.sop_uid in there]
    return present


def _asked(archive: Archive, study: str, series: str, wait_s: float) -> list[Instance]:
    try:
        return retried(lambda: archive.instances(study, series), wait_s=wait_s)
    except InputError:
        # An archive that stores but cannot be asked, or says 404 for what it has not: send everything.
        return []


def _in_threads(
    work: Sequence[tuple[str, Callable[[], None]]],
    parallel: int,
    summary: TransferSummary,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Run jobs a few at a time; a job that fails is noted, and the others go on."""
    if parallel < 1:
        raise InputError("at least one transfer at a time is needed", found=parallel)
    with ThreadPoolExecutor(parallel, thread_name_prefix="medseq-pacs") as pool:
        for done, (name, future) in enumerate(_bounded(pool, work, 2 * parallel), start=1):
            try:
                future.result()
                summary.done += 1
            except MedseqError as error:
                summary.failures.append((name, str(error)))
            if progress:
                progress(done, len(work), "")


def _bounded(
    pool: ThreadPoolExecutor, work: Sequence[tuple[str, Callable[[], None]]], most: int
) -> Iterator[tuple[str, Future]]:
    """Submit no more than `most` jobs ahead, so that a Ctrl-C does not wait for thousands."""
    waiting: list[tuple[str, Future]] = []
    for name, call in work:
        waiting.append((name, pool.submit(call)))
        if len(waiting) >= most:
            yield waiting.pop(0)
    wait_for([future for _, future in waiting])
    yield from waiting
