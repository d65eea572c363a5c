"""A worker process from inside: it loads the model, takes tasks from a pipe and answers with reports, lines of JSON.

Two lanes take items through reading, model and writing; the gate lets one of them compute (`medseq.inference.gated`).
The process ends with its parent, whatever happens to that: at the end of the pipe, and by a signal of the kernel.
Nothing is written to standard output or error: what a library prints may hold a name.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import IO, Any

from medseq.errors import MedseqError
from medseq.inference.plain_errors import refusal

__all__ = ["BEAT_S", "load_predictor", "main"]

BEAT_S = 1.0
_SWITCH_S = 0.0005


def main() -> None:
    """Serve until the pipe ends. First line: how to set up (see `medseq.inference.pool`)."""
    orders, replies = _claim_pipes()
    hello = json.loads(orders.readline())
    answer = _Replies(replies)
    _set_up(hello, answer)
    from medseq.inference.worker import describe_failure

    try:
        predictor = load_predictor(hello)
    except MedseqError as error:
        answer.send({"refused": refusal(error)})
        return
    except Exception as error:  # noqa: BLE001  (whoever waits for this process is told why it ends)
        answer.send({"refused": {"type": "BackendError", "what": describe_failure(error)[1]}})
        return
    _Lanes(predictor, hello, answer).serve(orders)


class _Replies:
    """The pipe back, used by several threads."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            try:
                self._stream.write(json.dumps(message) + "\n")
                self._stream.flush()
            except OSError:
                # The parent is gone, and with it whoever would use the result.
                os._exit(0)


class _Lanes:
    """Threads that take one item each."""

    def __init__(self, predictor: Any, hello: dict[str, Any], answer: _Replies) -> None:
        from medseq.inference.gated import Gate

        self._predictor, self._answer, self._worker = predictor, answer, hello["name"]
        self._count, self._gate, self._stop = int(hello["lanes"]), Gate(), threading.Event()
        self._tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def serve(self, orders: IO[str]) -> None:
        for number in range(self._count):
            threading.Thread(target=self._lane, name=f"lane-{number}", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        self._answer.send({"ready": True})
        for line in orders:
            order = json.loads(line)
            if "task" in order:
                self._tasks.put(order["task"])
            else:
                self._stop.set()
        # Not sys.exit: that would wait for a lane in the middle of an item.
        os._exit(0)

    def _lane(self) -> None:
        from medseq.inference.attempt import attempt
        from medseq.inference.wire import result_to_plain, task_from_plain

        while True:
            task = task_from_plain(self._tasks.get())
            report = attempt(task, self._predictor, self._gate, self._stop.is_set, self._worker, background=True)
            plain = None if report.result is None else result_to_plain(report.result)
            words = {"item": report.item_id, "code": report.code, "reason": report.reason}
            self._answer.send({**words, "result": plain})

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self._answer.send({"beat": True})


class _Forward(logging.Handler):
    """Hands our log lines to the parent; those of libraries stay here, since they may hold names."""

    def __init__(self, answer: _Replies) -> None:
        super().__init__()
        self._reply = answer

    def emit(self, record: logging.LogRecord) -> None:
        self._reply.send({"log": [record.name, record.levelno, record.getMessage()]})


def _claim_pipes() -> tuple[IO[str], IO[str]]:
    """Take standard input and output for the protocol, and leave nothing for libraries to write to."""
    orders, replies = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    return orders, replies


def _set_up(hello: dict[str, Any], answer: _Replies) -> None:
    from medseq.io.privacy import show_identifiers

    # The parent decides when to stop; a signal to the whole group must not end what it still waits for.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent(int(hello["parent"]))
    # A lane that computes must not wait 5 ms for the interpreter whenever the other one prepares a picture.
    sys.setswitchinterval(_SWITCH_S)
    warnings.simplefilter("ignore")
    ours = logging.getLogger("medseq")
    ours.setLevel(int(hello["log_level"]))
    ours.addHandler(_Forward(answer))
    ours.propagate = False
    show_identifiers(bool(hello["show_identifiers"]))


def _die_with_parent(parent: int) -> None:
    """On Linux the kernel ends this process with its parent, even where a lane holds the interpreter for ever."""
    if sys.platform != "linux":
        return
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    # Where memory runs out the kernel should end a worker, whose item is tried again, not the run.
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        logging.getLogger(__name__).debug("the kernel does not let this process be preferred when memory runs out")


def load_predictor(hello: dict[str, Any]) -> Any:
    """The model that `hello` describes (`medseq.inference.enlist.Hire.hello`)."""
    from dataclasses import replace

    import torch

    from medseq.errors import BundleError
    from medseq.inference.bundle import load_bundle
    from medseq.inference.predictors import predictor_for

    torch.set_num_threads(int(hello["threads"]))
    bundle = load_bundle(Path(hello["bundle"]), trust_packages=hello["trust_packages"])
    if bundle.hash != hello["bundle_hash"]:
        raise BundleError("the bundle changed during the run", where=bundle.config.name, remedy="start a new run")
    mapped = Path(hello["mapped"]) if hello["mapped"] else None
    return predictor_for(replace(bundle, mapped=mapped), hello["device"], hello["params"])
