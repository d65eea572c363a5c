"""A predictor whose model computes one item at a time while others read and write.

A worker process has two lanes. Each takes an item through all of its steps; what belongs to the model is guarded by a
gate that one lane holds, and gives up whenever it reads planes or writes them. So the model of a process never waits
for a disk as long as another item is at hand, and never computes two items at once, which would only fight for caches.

The predictor knows nothing of it: it is handed a reader and a sink that open the gate around their own work.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from medseq.errors import MemoryLimitError
from medseq.inference.background import BackgroundWriter
from medseq.inference.predictor import Estimate, Flag, Prediction, Predictor, Sink

__all__ = ["Gate", "GatedPredictor"]

# Methods of readers and writers that touch files.
_FILE_METHODS = frozenset({"read", "valid", "region", "begin", "write", "commit", "abort"})


class Gate:
    """A lock that its holder can open for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute: nobody else does."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let others compute meanwhile; nothing happens in a thread that does not hold the gate."""
        if self._holder != threading.get_ident():
            yield
            return
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def _enter(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()

    def _leave(self) -> None:
        self._holder = None
        self._lock.release()


class GatedPredictor:
    """A predictor behind a gate, within a limit of memory; see `medseq.inference.predictor.Predictor`.

    Args:
        predictor: What computes.
        gate: Shared by all items of a process.
        memory: Bytes that an item may take beyond the loaded model; None for no limit.
        smaller: How many times the footprint is reduced, after an item that did not fit.
        background: Volumes are written by threads of their own (`medseq.inference.background`).
    """

    def __init__(
        self,
        predictor: Predictor,
        gate: Gate,
        *,
        memory: int | None = None,
        smaller: int = 0,
        background: bool = False,
    ) -> None:
        self._predictor, self._gate, self._memory, self._smaller = predictor, gate, memory, smaller
        self._background = background
        self.accepts = predictor.accepts

    def estimate(self, header: Any) -> Estimate:
        """See `Predictor.estimate`."""
        return self._predictor.estimate(header)

    def predict(self, reader: Any, sink: Sink, *, should_stop: Callable[[], bool]) -> Prediction:
        """See `Predictor.predict`.

        Raises:
            MemoryLimitError: The estimate is above the limit; nothing was begun.
        """
        # What an estimate is made from: the header of an image, or the reader itself.
        header = getattr(reader, "header", reader)
        predictor = _reduced(self._predictor, header, self._smaller)
        self._require_room(predictor.estimate(header))
        with self._gate.held():
            opened = _Opened(reader, self._gate)
            opened_sink = _OpenedSink(sink, self._gate, self._background)
            prediction = predictor.predict(opened, opened_sink, should_stop=should_stop)
        if predictor is self._predictor:
            return prediction
        text = "memory was short: computed with smaller tiles; the last digits differ from those of larger ones"
        return Prediction(prediction.outputs, prediction.metrics, (*prediction.flags, Flag("smaller-tiles", text)))

    def _require_room(self, estimate: Estimate) -> None:
        if self._memory is not None and estimate.peak_bytes > self._memory:
            raise MemoryLimitError(
                "the item needs more memory than it may take",
                found=f"{estimate.peak_bytes / 1e9:.2f} GB",
                wanted=f"{self._memory / 1e9:.2f} GB at most",
                remedy="raise --max-memory, lower --workers, or use a smaller --tile",
            )


def _reduced(predictor: Predictor, header: Any, times: int) -> Predictor:
    """The predictor with its footprint reduced, as far as it can be; itself if it cannot."""
    for _ in range(times):
        smaller = predictor.smaller(header) if hasattr(predictor, "smaller") else None
        if smaller is None:
            break
        predictor = smaller
    return predictor


class _Opened:
    """A reader or a writer that opens the gate around its own work; all else is the original's."""

    def __init__(self, original: Any, gate: Gate) -> None:
        self._original, self._gate = original, gate

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._original, name)
        if name not in _FILE_METHODS:
            return value

        def with_open_gate(*args: Any, **keywords: Any) -> Any:
            with self._gate.open():
                return value(*args, **keywords)

        return with_open_gate


class _OpenedSink:
    """A sink whose writers open the gate."""

    def __init__(self, sink: Sink, gate: Gate, background: bool) -> None:
        self._sink, self._gate, self._background = sink, gate, background

    def volume(self, role: Any) -> Any:
        return self._opened(self._sink.volume(role))

    def series(self, label: str) -> Any:
        return self._opened(self._sink.series(label))

    def file(self, role: Any, suffix: str) -> Any:
        return self._sink.file(role, suffix)

    def object(self, role: Any) -> Any:
        return self._sink.object(role)

    def provenance(self, role: Any) -> Any:
        return self._sink.provenance(role)

    def seen(self, plane: int, image: Any) -> None:
        self._sink.seen(plane, image)

    def _opened(self, writer: Any) -> Any:
        return BackgroundWriter(writer, self._gate.open) if self._background else _Opened(writer, self._gate)
