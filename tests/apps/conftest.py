"""One review server and one browser for all tests of the pages; every request of every page is written down."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.apps import made_runs

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "review"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--font-render-hinting=none",
    "--disable-lcd-text",
    "--force-color-profile=srgb",
]
KEY = "test-key-0123456789abcdef"


@pytest.fixture(autouse=True)
def own_main_module() -> Iterator[None]:
    """Streamlit's AppTest puts the page in the place of `__main__`, which processes spawned later would run."""
    own = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = own


STARTS_S = 60.0


@dataclass
class Server:
    """A running review."""

    url: str
    folder: Path
    answered_s: float
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, *words: str, port: int | None = None) -> Server:
    """`medseq review` over the runs in `folder`/out, in a process of its own."""
    port = port or free_port()
    environment = {**os.environ, "MEDSEQ_AUDIT_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medseq.cli.main", "review", str(folder / "out"), "--port", str(port), *words]
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    while time.monotonic() - begun < STARTS_S:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return Server(url, folder, time.monotonic() - begun, process)
        except OSError:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the review did not answer")


def stop(server: Server) -> None:
    # As Ctrl-C: the command stops its server.
    server.process.send_signal(2)
    try:
        server.process.wait(15)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    server.process.stderr.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all three tasks; tests that decide make their own."""
    folder = tmp_path_factory.mktemp("review")
    made_runs.ct_run(folder, items=2)
    made_runs.mr_run(folder)
    made_runs.recon_run(folder)
    made_runs.slide_run(folder)
    return folder


@pytest.fixture(scope="session")
def server(made: Path) -> Iterator[Server]:
    found = start(made, "--user", "anna")
    yield found
    stop(found)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium) -> Iterator[Callable[..., object]]:
    """A page in a browser profile of its own; at the end, no request went elsewhere and no script failed."""
    contexts, hosts, troubles = [], set(), []

    def made(url: str, width: int = 1280, height: int = 800) -> object:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", locale="en-GB"
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
        page.on("websocket", lambda socket: hosts.add(socket.url.split("/")[2]))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        page.locator(".banner").wait_for()
        return page

    yield made
    for context in contexts:
        context.close()
    assert {host.rsplit(":", 1)[0] for host in hosts} <= {"127.0.0.1", "localhost"}
    assert troubles == []


@pytest.fixture
def pages(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """Pages without a browser: Streamlit's AppTest over the same runs, as the reader `anna`."""
    from streamlit.testing.v1 import AppTest

    from medseq.inference.review_service import service

    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", KEY)
    import context

    monkeypatch.setattr(context, "cookie", lambda: "cookie-of-the-test")

    def opened(page: str | None = None, query: dict[str, str] | None = None, **config: object) -> AppTest:
        folders = config.pop("folders", sorted(str(path) for path in (made / "out").iterdir()))
        content = {"folders": folders, "user": "anna", "access_log": str(tmp_path / "access.jsonl"), **config}
        (tmp_path / "config.json").write_text(json.dumps(content))
        monkeypatch.setenv("MEDSEQ_REVIEW_CONFIG", str(tmp_path / "config.json"))
        service.cache_clear()
        test = AppTest.from_file(str(APP / "main.py"), default_timeout=60)
        for name, value in (query or {}).items():
            test.query_params[name] = value
        test.run()
        return test.switch_page(page).run() if page else test

    yield opened
    service.cache_clear()
