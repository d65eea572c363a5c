"""HDF5 files are opened for the first time in a process that may hang or die.

Damage can send libhdf5 into an endless loop or end its process, and discovery runs in the process that holds the whole
run. So a file's structure is read in a child first; one that does not answer in time costs that file, not the run.
Pixels and features are read later, in worker processes, which the engine guards itself. No torch.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from medseq.errors import FormatError, MedseqError
from medseq.inference.plain_errors import as_error, refusal
from medseq.io import privacy

__all__ = ["HDF5_MAGIC", "require_openable", "serve"]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# The child takes over the parent's search path; -P keeps the current folder off it until then.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medseq.inference.h5_guard import serve; serve()"
# The structure of a file of no size is read in milliseconds; indices of raw data grow with it.
_PATIENCE_S = 8.0
_BYTES_A_SECOND = 5e6


def require_openable(path: Path, reads: Literal["kspace", "bag"], fft: str | None = None) -> None:
    """Make sure that opening an HDF5 file ends; files of other kinds pass.

    Args:
        path: A file.
        reads: What will open it: `medseq.io.kspace_open.open_kspace_items` or `medseq.io.features_open.open_bag`.
        fft: See `open_kspace_items`.

    Raises:
        MedseqError: What opening it raised; `FormatError` if the library hung or died of it.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(HDF5_MAGIC)) != HDF5_MAGIC:
                return
        size = path.stat().st_size
    except OSError:
        # Whoever opens it says why it cannot be read.
        return
    shown = privacy.path_label(path)
    answer = _guard.ask({"path": str(path), "reads": reads, "fft": fft}, _PATIENCE_S + size / _BYTES_A_SECOND)
    if answer is None:
        raise FormatError(
            "the file is damaged so that the HDF5 library hangs or dies of it",
            where=shown,
            remedy="copy the file again from its source",
        )
    if answer["error"] is not None:
        raise as_error(answer["error"])


def serve() -> None:
    """Answer requests on standard input until it ends."""
    import warnings

    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        # What a library prints may hold a name, and is no answer.
        os.dup2(nothing, descriptor)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            _open(Path(order["path"]), order["reads"], order["fft"])
            error = None
        except MedseqError as caught:
            error = refusal(caught)
        replies.write(json.dumps({"error": error}) + "\n")
        replies.flush()


def _open(path: Path, reads: str, fft: str | None) -> None:
    if reads == "bag":
        from medseq.io.features_open import open_bag

        open_bag(path)
    else:
        from medseq.io.kspace_open import open_kspace_items

        open_kspace_items(path, fft=fft)


class _Guard:
    """The child: started when it is first needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._lock = 0, threading.Lock()

    def ask(self, order: dict[str, Any], patience_s: float) -> dict[str, Any] | None:
        """The answer; None if it hung or died."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(order).encode() + b"\n")
                process.stdin.flush()
                answer = self._line(process, patience_s)
            except OSError:
                answer = None
            if answer is None:
                self.close()
            return answer

    def _line(self, process: "subprocess.Popen[bytes]", patience_s: float) -> dict[str, Any] | None:
        assert process.stdout is not None
        data, end = b"", time.monotonic() + patience_s
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                return None
            data += piece
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._owner != os.getpid():
            # A forked child has its parent's pipes; two writers on them would mix their requests.
            self._process = None
        if self._process is None:
            pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
            paths = json.dumps([path for path in sys.path if path] or [os.getcwd()])
            environment = {**os.environ, "MEDSEQ_SALT": privacy.salt()}
            command = [sys.executable, "-P", "-c", _START, paths]
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment)
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process, if it is this process's."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            # A pipe to a dead process may hold what was not sent.
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass


_guard = _Guard()
atexit.register(_guard.close)
