"""`medseq review`: the page starts soon and without torch, refuses strangers; its record is verified and exported."""

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.inference.review_runs import Runs
from tests.inference.made_review import KEY, add_item, begin_run, small_run
from tests.io.orthanc import free_port
from tests.io.synthetic import save, stack


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", KEY.decode())


@pytest.fixture
def out(tmp_path):
    """A run that two readers have decided on."""
    folder = small_run(tmp_path / "ct", 4)
    runs = Runs([folder], KEY)
    for number, row in enumerate(runs.page()[0]):
        runs.record(row.token, "ann", "decide", decision="accept" if number % 2 else "reject", score=3, comment="=1+1")
        runs.record(row.token, "bob", "decide", decision="accept" if number > 1 else "reject")
    runs.close()
    return folder


def medseq(*words):
    return CliRunner().invoke(app, ["review", *map(str, words)], prog_name="medseq")


def tampered(out, statement):
    with closing(sqlite3.connect(out / "review.sqlite")) as connection:
        for name in ("event_never_changes", "event_never_goes"):
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        connection.commit()


def test_verify_tells_a_whole_record_from_one_that_was_changed(out):
    done = medseq("verify", out)
    assert done.exit_code == 0
    assert "ct: 8 rows, whole, head 8:" in done.output
    head = done.output.split("head ")[1].strip()
    assert medseq("verify", out, "--head", head).exit_code == 0
    assert json.loads(medseq("verify", out, "--json", "--quiet").stdout)["ct"]["ok"] is True
    tampered(out, "DELETE FROM event WHERE seq>6")
    assert medseq("verify", out).exit_code == 0
    cut = medseq("verify", out, "--head", head)
    assert cut.exit_code == 3
    assert "TAMPERED WITH" in cut.output
    with closing(sqlite3.connect(out / "review.sqlite")) as connection:
        connection.execute("UPDATE event SET decision='accept' WHERE seq=1")
        connection.commit()
    changed = medseq("verify", out, "--quiet")
    assert changed.exit_code == 3
    assert "row 1: its content is not what was written" in changed.output


def test_verify_changes_nothing_and_says_what_is_missing(out, tmp_path):
    before = (out / "review.sqlite").read_bytes()
    medseq("verify", out)
    assert (out / "review.sqlite").read_bytes() == before
    fresh = small_run(tmp_path / "fresh", 1)
    done = medseq("verify", fresh)
    assert (done.exit_code, "nothing was reviewed here" in done.output) == (2, True)
    assert not (fresh / "review.sqlite").exists()
    assert medseq("verify", tmp_path / "nowhere").exit_code == 2
    assert "not a head" in medseq("verify", out, "--head", "12").output


def test_another_key_is_said(out, monkeypatch):
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", "another key of 32 bytes, or so ..")
    done = medseq("verify", out)
    assert done.exit_code == 2
    assert "another audit key" in done.output


def test_exports(out, tmp_path):
    rows = list(csv.DictReader(io.StringIO(medseq("export", out).stdout)))
    assert [row["kind"] for row in rows] == ["decide"] * 8 + ["head"]
    assert rows[0]["comment"] == "'=1+1"
    file = tmp_path / "events.json"
    assert medseq("export", out, "--to", "json", "--file", file).exit_code == 0
    assert json.loads(file.read_text())["head"].startswith("8:")
    assert len(list(csv.DictReader(io.StringIO(medseq("export", out, "--to", "decisions").stdout)))) == 8
    (tmp_path / "truth.csv").write_text(f"case,truth\n{'0' * 16},1\n")
    rows = list(
        csv.DictReader(io.StringIO(medseq("export", out, "--to", "mrmc", "--truth", tmp_path / "truth.csv").stdout))
    )
    assert [row["truth"] for row in rows if row["case"] == "0" * 16] == ["1", "1"]
    assert "need a folder" in medseq("export", out, "--to", "sr").output
    second = small_run(tmp_path / "b", 1)
    assert medseq("export", second, out).exit_code == 0  # only one of them was reviewed


def test_reports_are_written_for_dicom(tmp_path, rng_images):
    out = tmp_path / "run"
    with begin_run(out) as ledger:
        images = save(rng_images, out / ("a" * 16))
        add_item(ledger, "a" * 16, outputs=[("result", path) for path in images])
    runs = Runs([out], KEY)
    runs.record(runs.page()[0][0].token, "ann", "decide", decision="reject", reason_code="noise-left")
    runs.close()
    done = medseq("export", out, "--to", "sr", "--file", tmp_path / "reports")
    assert (done.exit_code, "1 reports" in done.output) == (0, True)
    assert len(list((tmp_path / "reports").iterdir())) == 2


@pytest.fixture
def rng_images(seed):
    import numpy as np

    return stack(np.random.default_rng(seed), slices=2)


def test_agreement_is_told_with_its_interval(out, tmp_path):
    done = medseq("agreement", out)
    assert done.exit_code == 0
    assert "ct: cohen kappa 0.000, 95 % interval" in done.output
    found = json.loads(medseq("agreement", out, "--json").stdout)
    assert found["ct"][0]["cases"] == 4
    assert "no case that two readers" in medseq("agreement", small_run(tmp_path / "x", 1)).output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--address", "0.0.0.0"), "only where people sign in"),
        (("--auth", "/nowhere.toml"), "sign-in file cannot be read"),
        (("--memory", "1"), "64"),
    ],
)
def test_what_is_not_safe_does_not_start(out, words, message):
    done = medseq(out, *words)
    assert done.exit_code == 2
    assert message in done.output


def test_a_log_that_cannot_be_written_is_said_before_the_start(out, tmp_path):
    done = medseq(out, "--access-log", tmp_path)
    assert done.exit_code == 2
    assert "access log" in done.output
    assert str(tmp_path) not in done.output


def test_nothing_to_review_is_said(monkeypatch):
    done = medseq("open")
    assert done.exit_code == 2
    assert "nothing to review" in done.output


def test_help_lists_the_parts():
    done = medseq("--help")
    assert done.exit_code == 0
    for word in ("open", "verify", "export", "agreement"):
        assert word in done.output


def test_the_page_answers_soon_without_torch_and_stops(out, tmp_path):
    port = free_port()
    words = [sys.executable, "-m", "medseq.cli.main", "review", str(out), "--port", str(port), "--quiet"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            status = answered(f"http://127.0.0.1:{port}/", 60)
            seconds = time.monotonic() - started
            with open(f"/proc/{process.pid}/maps") as maps:
                libraries = maps.read()
            with open(f"/proc/{process.pid}/cmdline") as line:
                command = line.read()
            left = list(tmp_path.glob("medseq-review-*"))
        finally:
            process.terminate()
            process.wait(timeout=30)
    assert status == 200
    # The claim is 6 s on two quiet cores (benchmarks/bench_review.py measures it); here others share them.
    assert seconds < 40
    assert "streamlit" in command
    assert "libtorch" not in libraries
    # Paths and secrets are neither in the list of processes nor in a file that stays.
    assert str(out) not in command
    assert left == []
    # Nobody else serves: the command is its server.
    with pytest.raises(URLError):
        urlopen(f"http://127.0.0.1:{port}/", timeout=2)


def answered(address, within_s):
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urlopen(address, timeout=5) as answer:
                return answer.status
        except (URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
