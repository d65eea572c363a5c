"""Kills of workers and of the run, at random and at the worst moments; the bytes in the end are always the same."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from medseq.errors import OutputError
from medseq.inference import engine, pool
from medseq.inference.check import check_run
from medseq.inference.ledger import Ledger
from medseq.inference.run import predict_folder

ITEMS = 24
# One process a run that may be killed: the command's own way in, and the folder of the test's model.
SCRIPT = """
import json, sys
words = json.loads(sys.argv[1])
sys.path.insert(0, words.pop("path"))
from medseq.inference.run import predict_folder
sys.exit(predict_folder(**words).exit_code)
"""


def words(place, bundle, out):
    return {
        "bundle": str(bundle.folder),
        "input": str(place / "in"),
        "output": str(place / out),
        "modality": "MR",
        "trust_packages": ["obedient"],
        "workers": 2,
        "created_utc": "2026-01-02T03:04:05Z",
    }


@pytest.fixture
def place(make, tmp_path, rng):
    fill(make, tmp_path, rng, ITEMS)
    (tmp_path / "in" / "broken.nii").write_bytes(b"broken")
    return tmp_path


def fill(make, folder, rng, items):
    for number in range(items):
        make.volume(folder / "in" / f"v{number:03d}.nii", rng, slices=2)


def start(order):
    package = next(path for path in sys.path if os.path.exists(os.path.join(path, "obedient.py")))
    arguments = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps({**order, "path": package})]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def states(out):
    """State and attempts of every item; {} where the run was killed before it had recorded anything."""
    try:
        with Ledger(out / "run.sqlite", read_only=True) as ledger:
            return {item.id: (item.state, item.attempts) for item in ledger.items()}
    except OutputError as error:
        if "no run was recorded here" in str(error):
            return {}
        raise


def workers_of(process):
    """Worker processes of a run; none once it is gone."""
    try:
        return [child for child in psutil.Process(process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []


def kill_at_random(process, draw, out):
    """After a while, kill the run or one of its workers; returns what was killed, or None if the run had ended."""
    # Half of the kills hit a run in work, not its start: at least one more item is done before.
    done = sum(state == "done" for state, _ in states(out).values())
    patience = time.monotonic() + 30
    if draw.random() < 0.5:
        while process.poll() is None and time.monotonic() < patience:
            if sum(state == "done" for state, _ in states(out).values()) > done:
                break
            time.sleep(0.05)
    time.sleep(draw.uniform(0, 0.3))
    if process.poll() is not None:
        return None
    workers = workers_of(process)
    if workers and draw.random() < 0.6:
        try:
            draw.choice(workers).send_signal(draw.choice((signal.SIGKILL, signal.SIGSEGV)))
        except psutil.Error:
            return None
        return "worker"
    process.kill()
    process.wait()
    return "run"


def ragged(place, bundle, seed, kills, items=ITEMS):
    """A run under random kills; returns what was killed, most of them while it was in work."""
    draw, killed, out = random.Random(seed), [], place / "rough"
    order, process = words(place, bundle, "rough"), None
    for _ in range(kills):
        if process is None or process.poll() is not None:
            if process is not None:
                process.stderr.close()
            if sum(state == "done" for state, _ in states(out).values()) == items:
                break
            process = start(order)
        killed.append(kill_at_random(process, draw, out))
    if process.poll() is None:
        process.wait(300)
    process.stderr.close()
    return killed


def require_the_same(place, bundle, make, killed, items=ITEMS):
    """The bytes of an undisturbed run; returns how many items were begun again."""
    out = place / "rough"
    final = predict_folder(**{**words(place, bundle, "rough"), "workers": 0})
    assert (final.exit_code, final.counts["done"], final.counts["failed"]) == (3, items, 1)
    assert make.tree(out) == make.tree(place / "calm")
    assert check_run(out).exit_code == 0
    assert not (out / ".work").exists()
    # Whatever was in work at a kill is computed again, and nothing else: two items a worker, two workers a run.
    extra = sum(attempts - 1 for state, attempts in states(out).values() if state == "done")
    assert extra <= killed.count("worker") * pool.LANES + killed.count("run") * 2 * pool.LANES
    return extra


def test_random_kills_of_workers_and_of_the_run(make, place, seed):
    bundle = make.bundle(place / "tiny", delay_s=0.05)
    calm = predict_folder(**{**words(place, bundle, "calm"), "workers": 0})
    assert (calm.exit_code, calm.counts["done"]) == (3, ITEMS)
    killed = ragged(place, bundle, seed, 12)
    assert len([what for what in killed if what]) >= 2
    require_the_same(place, bundle, make, killed)


@pytest.mark.slow
def test_a_hundred_random_kills(make, place, rng, seed, monkeypatch):
    """The log of the model counts planes: what a kill costs in computation, not in attempts."""
    items, calm = 150, make.bundle(place / "fast" / "tiny")
    fill(make, place, rng, items)
    assert predict_folder(**{**words(place, calm, "calm"), "workers": 0}).counts["done"] == items
    monkeypatch.setenv("OBEDIENT_LOG", str(place / "planes.log"))
    bundle = make.bundle(place / "tiny", delay_s=0.4)
    killed = ragged(place, bundle, seed, 100, items)
    extra = require_the_same(place, bundle, make, killed, items)
    workers, runs = killed.count("worker"), killed.count("run")
    planes = len((place / "planes.log").read_text().splitlines()) - 2 * items
    died = workers + 2 * runs
    print(f"seed {seed}: killed {workers} workers and {runs} runs of two, {items} items")
    print(
        f"{extra} items were begun again, {planes / 2:.1f} items' worth of planes computed twice, {died} workers died"
    )
    assert workers + runs >= 90
    # One computation of two planes in a worker that died; what the other of its two items had is seldom more.
    assert planes <= 2 * died


def test_workers_end_with_their_run(make, place):
    process = start(words(place, make.bundle(place / "tiny", delay_s=0.2), "out"))
    deadline = time.monotonic() + 120
    while not any(state == "running" for state, _ in states(place / "out").values()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stderr.close()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_a_second_run_is_refused_while_the_first_one_works(make, place):
    bundle = make.bundle(place / "tiny")
    refused = []

    def second(done, total, text):
        if done == 3 and not refused:
            with pytest.raises(OutputError, match="another run is working in the output folder"):
                predict_folder(**{**words(place, bundle, "out"), "workers": 0})
            refused.append(done)

    summary = predict_folder(**{**words(place, bundle, "out"), "workers": 0}, progress=second)
    assert refused == [3]
    assert (summary.counts["done"], summary.counts["failed"]) == (ITEMS, 1)


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_clock_that_jumps_changes_nothing(make, place, monkeypatch, hours):
    bundle = make.bundle(place / "tiny")
    calm = predict_folder(**{**words(place, bundle, "calm"), "workers": 0})
    plain, jumped = time.time, threading.Event()
    monkeypatch.setattr(time, "time", lambda: plain() + (hours * 3600 if jumped.is_set() else 0))

    def jump(done, total, text):
        if done == 4:
            jumped.set()

    summary = predict_folder(**words(place, bundle, "out"), progress=jump)
    assert summary.counts == calm.counts
    assert make.tree(place / "out") == make.tree(place / "calm")
    assert {attempts for state, attempts in states(place / "out").values() if state == "done"} == {1}


@pytest.mark.parametrize("moment", ["before the rename", "between rename and row"])
def test_a_power_cut_at_the_worst_moment(make, place, monkeypatch, moment):
    """The machine stops between writing and renaming, or between renaming and the row that says so."""
    bundle = make.bundle(place / "tiny")
    predict_folder(**{**words(place, bundle, "calm"), "workers": 0})
    owner, name = (engine, "publish") if moment == "before the rename" else (Ledger, "finish")
    plain, calls = getattr(owner, name), []

    def cut(*args, **keywords):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(*args, **keywords)

    monkeypatch.setattr(owner, name, cut)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(**{**words(place, bundle, "out"), "workers": 0})
    monkeypatch.undo()
    assert [state for state, _ in states(place / "out").values()].count("running") == 1
    assert predict_folder(**{**words(place, bundle, "out"), "workers": 0}).counts["done"] == ITEMS
    assert make.tree(place / "out") == make.tree(place / "calm")
    assert check_run(place / "out").exit_code == 0
