"""A writer whose work is done by a thread of its own, so that a model goes on while its result is compressed.

One piece is written while the next waits; a model that is faster than the disk waits for the third. What goes wrong in
the thread is raised where the result is awaited: by the next `write`, or by `commit`.
"""

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BackgroundWriter"]

_WAITING = 1


class BackgroundWriter:
    """A `VolumeWriter` around another; see `medseq.io.volume.VolumeWriter`.

    Args:
        writer: Does the work.
        around: Called with nothing, returns a context in which the caller waits for the thread.
    """

    def __init__(self, writer: Any, around: Any) -> None:
        self._writer, self._around = writer, around
        self._pieces: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        # What the original counted, such as `clipped`.
        return getattr(self._writer, name)

    def begin(self, header: Any) -> None:
        """See `VolumeWriter.begin`; done at once, since it tells whether the volume can be written at all."""
        with self._around():
            self._writer.begin(header)
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def write(self, lo: int, planes: np.ndarray) -> None:
        """See `VolumeWriter.write`; the planes are copied."""
        if self._thread is None:
            self._writer.write(lo, planes)
            return
        piece = (lo, np.array(planes, copy=True))
        try:
            self._pieces.put_nowait(piece)
        except queue.Full:
            with self._around():
                self._pieces.put(piece)
        self._raise()

    def commit(self) -> Sequence[Path]:
        """See `VolumeWriter.commit`; waits for what is not written yet."""
        with self._around():
            self._finish()
            self._raise()
            paths: Sequence[Path] = self._writer.commit()
            return paths

    def abort(self) -> None:
        """See `VolumeWriter.abort`; the thread ends first."""
        with self._around():
            self._finish()
            self._writer.abort()

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self._error is None:
                try:
                    self._writer.write(*piece)
                except BaseException as error:  # noqa: BLE001  (raised again by whoever waits)
                    self._error = error

    def _finish(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._pieces.put(None)
            thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
