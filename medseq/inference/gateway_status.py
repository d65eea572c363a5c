"""`/healthz` and `/metrics` of the gateway, on the loopback address only; numbers, no identifiers."""

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from medseq.errors import InputError
from medseq.inference.gateway import Gateway
from medseq.inference.spool import Spool

__all__ = ["StatusServer", "render_metrics"]

_HELP = {
    "images_received_total": "Images that were stored.",
    "bytes_received_total": "Bytes that were stored.",
    "images_refused_total": "Images that were refused: disk nearly full, or not understood.",
    "images_pushed_total": "Results that an archive took.",
    "studies_done_total": "Jobs that were finished.",
    "studies_dead_total": "Jobs that were given up.",
    "series_skipped_total": "Series that no route matched.",
    "retries_total": "Attempts that failed and are repeated.",
    "purged_total": "Done jobs that were deleted.",
    "studies_incoming": "Studies that are arriving.",
    "studies_working": "Jobs in progress or waiting for another attempt.",
    "studies_in_dead_letter": "Jobs in the dead-letter folder.",
    "disk_free_bytes": "Space left for the spool.",
    "paused": "1 while the disk is nearly full and nothing is taken.",
    "last_step_timestamp_seconds": "When the loop last turned.",
}


def render_metrics(gateway: Gateway) -> str:
    """All numbers in the Prometheus text format.

    Reference:
        Prometheus exposition format 0.0.4.
    """
    counters, spool = gateway.counters, gateway.spool
    values = {f"{name}_total": value for name, value in vars(counters).items() if f"{name}_total" in _HELP}
    values |= {
        "images_refused_total": gateway.receiver.refused if gateway.receiver is not None else 0,
        "studies_incoming": len(spool.waiting()),
        "studies_working": _count(spool, "work"),
        "studies_in_dead_letter": _count(spool, "dead"),
        "disk_free_bytes": spool.free_bytes(),
        "paused": int(counters.paused),
        "last_step_timestamp_seconds": round(counters.last_step, 3),
    }
    lines = []
    for name, text in _HELP.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP medseq_{name} {text}", f"# TYPE medseq_{name} {kind}", f"medseq_{name} {values[name]}"]
    return "\n".join(lines) + "\n"


class StatusServer:
    """The two pages, in threads of their own.

    Args:
        gateway: What they tell about.
        port: Port on 127.0.0.1; 0 takes a free one (see `port`).
        stalled_s: The loop counts as stalled after so long; a large study may take a while.
    """

    def __init__(self, gateway: Gateway, port: int, *, stalled_s: float = 3600.0):
        def health() -> tuple[HTTPStatus, str]:
            if gateway.counters.paused:
                return HTTPStatus.SERVICE_UNAVAILABLE, "paused: the disk is nearly full\n"
            if gateway.clock() - gateway.counters.last_step > stalled_s:
                return HTTPStatus.SERVICE_UNAVAILABLE, "stalled: the loop does not turn\n"
            return HTTPStatus.OK, "ok\n"

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/healthz":
                    self._answer(*health(), "text/plain; charset=utf-8")
                elif self.path == "/metrics":
                    self._answer(HTTPStatus.OK, render_metrics(gateway), "text/plain; version=0.0.4; charset=utf-8")
                else:
                    self._answer(HTTPStatus.NOT_FOUND, "/healthz or /metrics\n", "text/plain; charset=utf-8")

            def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the library prints every request."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise InputError("cannot listen", where=f"port {port}", found=error.strerror) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="medseq-status")

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "StatusServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _count(spool: Spool, state: str) -> int:
    return sum(1 for entry in (spool.root / state).iterdir() if entry.is_dir())
