"""One worker process as its parent sees it: pipes with a thread each, so that nobody waits for a worker that hangs."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medseq.inference.worker import ItemTask
from medseq.io import privacy

__all__ = ["Message", "WorkerProcess"]

# The worker takes over the parent's search path; -P keeps the current folder off it until then.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medseq.inference.pool_worker import main; main()"
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CLOSE_S = 5.0

# A worker and what it says; None at the end of its pipe.
Message = tuple["WorkerProcess", dict[str, Any] | None]


@dataclass
class InWork:
    """An item given to a worker."""

    task: ItemTask
    since: float = field(default_factory=time.monotonic)


class WorkerProcess:
    """A started worker.

    Args:
        name: For the ledger; the process id is added.
        hello: How it sets itself up (`medseq.inference.pool_worker`).
        inbox: Where everything that it says is put, with this object.
    """

    def __init__(self, name: str, hello: Mapping[str, Any], inbox: "queue.SimpleQueue[Message]") -> None:
        threads = str(hello["threads"])
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, threads), "MEDSEQ_SALT": privacy.salt()}
        paths = json.dumps([path for path in sys.path if path] or [os.getcwd()])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.name, self.pid = f"{name}-{self._process.pid}", self._process.pid
        self.ready, self.heard = False, time.monotonic()
        self.in_work: dict[str, InWork] = {}
        # Why it was ended on purpose: code and reason.
        self.sentence: tuple[str, str] | None = None
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()
        threading.Thread(target=self._receive, args=(inbox,), daemon=True).start()
        self.tell({**hello, "name": self.name, "parent": os.getpid()})

    def tell(self, order: dict[str, Any]) -> None:
        """Send an order, without waiting for it to be read."""
        self._outbox.put(json.dumps(order) + "\n")

    def end(self, code: str, reason: str) -> None:
        """Kill it; the end of its pipe follows."""
        self.sentence = (code, reason)
        self._process.kill()

    def rss(self) -> int:
        """Resident memory in bytes; 0 if it is gone."""
        import psutil

        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def exit_status(self) -> tuple[str, str]:
        """How it ended, after the end of its pipe: reason code and words."""
        try:
            status = self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self.sentence is not None:
            return self.sentence
        if status == -signal.SIGKILL:
            return "killed", "the worker process was killed from outside, or for want of memory (SIGKILL)"
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return "crash", f"the worker process died ({how}) while it computed this item"

    def close(self) -> None:
        """Ask it to end; kill it if it does not."""
        self._outbox.put(None)
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            while (line := self._outbox.get()) is not None:
                stream.write(line.encode())
                stream.flush()
            stream.close()
        except OSError:
            # It died: its other pipe says so.
            return

    def _receive(self, inbox: "queue.SimpleQueue[Message]") -> None:
        stream = self._process.stdout
        assert stream is not None
        with stream:
            for line in stream:
                # A line cut by a crash ends without its newline.
                if line.endswith(b"\n"):
                    inbox.put((self, json.loads(line)))
        inbox.put((self, None))
