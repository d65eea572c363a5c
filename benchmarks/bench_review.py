"""How quickly the review answers: a worklist of 10 000 items, the start of the server, and 20 clients with 3 browsers.

    .venv/bin/python benchmarks/bench_review.py            # about two minutes; --seconds 10 for a look

Prints each claim with what was measured, and exits with 1 if one is not met. The load test needs Chromium.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np

KEY = "a key of the benchmark, not secret"
ITEMS = 10_000
PAGE_MS, PORT_S, P95_S = 300.0, 6.0, 1.0
CLIENTS, BROWSERS = 20, 3
SIZE = (96, 256, 256)
_failed: list[str] = []


def claim(text: str, value: float, limit: float, unit: str) -> None:
    """Print a claim and remember one that is not met."""
    met = value <= limit
    print(f"{text}: {value:.3g} {unit}, claimed <= {limit:g} {unit}: {'met' if met else 'NOT MET'}", flush=True)
    if not met:
        _failed.append(text)


# --- the worklist


def many_items(out: Path, count: int) -> None:
    """A finished run of so many items, most of them done."""
    from medseq import __version__
    from medseq.inference.ledger import Ledger
    from medseq.inference.ledger_schema import FileRow, RunRow

    out.mkdir(parents=True)
    rng = random.Random(1)
    with Ledger(out / "run.sqlite") as ledger:
        ledger.begin_run(RunRow("b" * 64, {"names": "id"}, "p" * 64, __version__, "2026-01-01T00:00:00Z"))
        with ledger.batch():
            for number in range(count):
                item_id = f"{number:016x}"
                ledger.add_item(item_id, "dicom", f"id-{rng.getrandbits(40):010x}", [FileRow(f"{number}.dcm", 1, 1)])
                if rng.random() < 0.02:
                    ledger.fail(item_id, "w", "shape", "too thin")
                    continue
                flags = [{"code": "clipped", "level": "warn", "message": "pixels were clipped"}] * (number % 7 == 0)
                metrics = {"noise_sd_before": 10.0, "noise_sd_after": 10 * rng.random(), "uncertainty": rng.random()}
                ledger.finish(item_id, "w", seconds=1.0, peak_mb=1.0, input_sha256="", metrics=metrics, flags=flags)


def worklist(folder: Path) -> None:
    """Every interaction of a worklist, over a run that has been reviewed in part."""
    from medseq.inference.review_runs import Runs, Study

    many_items(folder / "many", ITEMS)
    started = time.perf_counter()
    runs = Runs([folder / "many"], KEY.encode())
    print(f"first look at {ITEMS} items: {1000 * (time.perf_counter() - started):.0f} ms")
    tokens = [row.token for row in runs.page(limit=500)[0]]
    for number, token in enumerate(tokens[:200]):
        runs.record(token, f"reader{number % 3}", "decide", decision="accept" if number % 3 else "reject", score=3)
    study = Runs([folder / "many"], KEY.encode(), study=Study("s"))
    acts: dict[str, Callable[[], object]] = {
        "a page": lambda: runs.page(offset=random.randrange(ITEMS), limit=50, reviewer="ann"),
        "search": lambda: runs.page(f"id-{random.randrange(256):02x}", limit=50),
        "filter": lambda: runs.page(state="done", decision="unreviewed", limit=50),
        "sort by number": lambda: runs.page(sort="-key", limit=50, offset=5000),
        "sort by flags": lambda: runs.page(sort="-flags", limit=50),
        "counts": lambda: (runs.counts("status"), runs.counts("state"), runs.counts(reviewer="reader1")),
        "a decision": lambda: runs.record(random.choice(tokens), "ann", "decide", decision="accept"),
        "an item and its state": lambda: (runs.item(tokens[7], "ann"), runs.state(tokens[7])),
        "the next case": lambda: runs.neighbours(random.choice(tokens)),
        "a page of a blinded study": lambda: study.page(reviewer="ann", offset=random.randrange(ITEMS), limit=50),
    }
    for name, act in acts.items():
        spent = []
        for _ in range(20):
            started = time.perf_counter()
            act()
            spent.append(1000 * (time.perf_counter() - started))
        claim(f"worklist of {ITEMS}: {name}, 95th percentile of 20", sorted(spent)[18], PAGE_MS, "ms")


# --- the server


def looked_at(folder: Path) -> list[Path]:
    """A run with a volume and one with a slide, on real files."""
    import hashlib

    import nibabel as nib
    import tifffile

    from medseq import __version__
    from medseq.inference.ledger import Ledger
    from medseq.inference.ledger_schema import FileRow, OutputRow, RunRow

    rng = np.random.default_rng(1)
    made = []
    for name, kind in (("mr", "nifti"), ("wsi", "slide")):
        root, out = folder / "input" / name, folder / "out" / name
        root.mkdir(parents=True)
        (out / "item").mkdir(parents=True)
        if kind == "nifti":
            source, result = root / "a.nii", out / "item" / "result.nii"
            for path in (source, result):
                volume = rng.normal(500, 100, SIZE).astype(np.float32)
                nib.save(nib.Nifti1Image(volume.T, np.diag([-1.0, -1.0, 1.5, 1.0])), path)
        else:
            source, result = root / "a.tif", out / "item" / "scores.json"
            picture = rng.integers(0, 256, (6000, 8000, 3), dtype=np.uint8)
            words = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
            words |= {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
            with tifffile.TiffWriter(source) as writer:
                for factor in (1, 4, 16):
                    writer.write(
                        np.ascontiguousarray(picture[::factor, ::factor]), subfiletype=int(factor > 1), **words
                    )
            result.write_text(json.dumps({"classes": ["a", "b"], "probabilities": [0.3, 0.7], "call": "b"}))
        status = source.stat()
        with Ledger(out / "run.sqlite") as ledger:
            ledger.begin_run(RunRow("b" * 64, {"names": "id"}, kind[0] * 64, __version__, "2026-01-01T00:00:00Z"))
            ledger.add_item("a" * 16, kind, "id-bench", [FileRow(source.name, status.st_size, status.st_mtime_ns)])
            ledger.claim("w", 60)
            digest = hashlib.sha256(result.read_bytes()).hexdigest()
            role = "result" if kind == "nifti" else "scores"
            row = OutputRow(role, result.relative_to(out).as_posix(), digest, result.stat().st_size)
            ledger.stage_outputs("a" * 16, [row])
            ledger.finish("a" * 16, "w", seconds=1.0, peak_mb=1.0, input_sha256="", metrics={}, flags=[])
        made.append(out)
    return made


def free_port() -> int:
    """A port that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`medseq review` as a person starts it."""

    def __init__(self, outs: list[Path]) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        words = [sys.executable, "-m", "medseq.cli.main", "review", *map(str, outs), "--port", str(port), "--quiet"]
        started = time.perf_counter()
        self.process = subprocess.Popen(words, start_new_session=True)
        while True:
            try:
                with urlopen(self.url, timeout=5):
                    break
            except (URLError, ConnectionError):
                time.sleep(0.02)
        claim("the port answers after", time.perf_counter() - started, PORT_S, "s")

    def close(self) -> None:
        """As Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(timeout=30)


def addresses(server: Server, outs: list[Path], cookie: str) -> list[str]:
    """Signed addresses of slices of all planes and of tiles of all levels."""
    from medseq.inference.review_access import Access
    from medseq.inference.review_key import derived
    from medseq.inference.review_runs import Runs

    runs = Runs(outs, KEY.encode(), read_only=True)
    access = Access(derived(KEY.encode(), "medseq review addresses"))
    volume, slide = (runs.page(task=task)[0][0].token for task in ("restore", "mil"))
    found = []
    for plane, count in (("axial", SIZE[0]), ("coronal", SIZE[1]), ("sagittal", SIZE[2])):
        for role in ("before", "after", "difference"):
            path = f"/api/slice/{volume}"
            found += [access.address(path, cookie, volume, role=role, plane=plane, index=k) for k in range(count)]
    for level, cols, rows in ((13, 32, 24), (12, 16, 12), (11, 8, 6)):
        for col in range(cols):
            path = f"/api/slide/{slide}_files/{level}"
            found += [access.address(f"{path}/{col}_{row}.jpeg", cookie, slide) for row in range(rows)]
    return [server.url + address for address in found]


def browse(server: Server, stop: threading.Event, cookies: list[str], errors: list[str]) -> None:
    """A browser that has the page open and moves about in it."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("pageerror", lambda error: errors.append(str(error)[:200]))
        try:
            page.goto(server.url, timeout=120_000)
            page.wait_for_selector("[data-testid='stApp'] p, [data-testid='stApp'] h1", timeout=120_000)
            page.wait_for_timeout(1500)
            cookies += [c["value"] for c in page.context.cookies() if c["name"] == "medseq_session"]
            while not stop.is_set():
                page.keyboard.press("ArrowDown")
                page.wait_for_timeout(500)
        except Error as error:
            errors.append(str(error)[:200])
        browser.close()


def ask_for(wanted: list[str], cookie: str, seconds: float, errors: list[str]) -> list[float]:
    """All clients at once; the seconds of every request."""
    spent, until = list[float](), time.monotonic() + seconds

    def ask(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            request = Request(rng.choice(wanted), headers={"Cookie": f"medseq_session={cookie}"})
            started = time.perf_counter()
            try:
                with urlopen(request, timeout=30) as answer:
                    answer.read()
            except (HTTPError, URLError, ConnectionError, TimeoutError) as error:
                errors.append(str(error))
            spent.append(time.perf_counter() - started)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return spent


def load(server: Server, outs: list[Path], seconds: float) -> None:
    """Clients and browsers at once."""
    stop, cookies, errors = threading.Event(), list[str](), list[str]()
    browsers = [threading.Thread(target=browse, args=(server, stop, cookies, errors)) for _ in range(BROWSERS)]
    for browser in browsers:
        browser.start()
    deadline = time.monotonic() + 180
    while len(cookies) < BROWSERS and not errors and time.monotonic() < deadline:
        time.sleep(0.2)
    if not cookies:
        print("no browser opened the page:", errors)
        _failed.append("load")
        stop.set()
        return
    spent = ask_for(addresses(server, outs, cookies[0]), cookies[0], seconds, errors)
    stop.set()
    for browser in browsers:
        browser.join()
    ordered = sorted(spent)
    middle = statistics.median(spent)
    print(f"{len(spent)} requests in {seconds:.0f} s, median {middle:.3f} s, slowest {ordered[-1]:.2f} s")
    text = f"{CLIENTS} clients and {BROWSERS} browsers"
    claim(f"{text}: 95th percentile", ordered[int(0.95 * len(ordered))], P95_S, "s")
    claim(f"{text}: errors", len(errors), 0, "errors")
    if errors:
        print("first error:", errors[0])


def main() -> int:
    """Run all parts; 1 if a claim is not met."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=60.0, help="length of the load test; 0 leaves it out")
    seconds = words.parse_args().seconds
    os.environ["MEDSEQ_AUDIT_KEY"] = KEY
    with tempfile.TemporaryDirectory() as folder:
        worklist(Path(folder))
        outs = looked_at(Path(folder))
        server = Server(outs)
        try:
            if seconds:
                load(server, outs, seconds)
        finally:
            server.close()
    print("all claims met" if not _failed else f"not met: {', '.join(_failed)}")
    return 1 if _failed else 0


if __name__ == "__main__":
    sys.exit(main())
