"""What is left when a run is killed, interrupted, runs out of space, or meets an unexpected error."""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medseq.errors import OutputError, RetryableError
from medseq.inference import attempt, engine, run_report
from medseq.inference.ledger import Ledger
from medseq.inference.restore import RestorePredictor
from medseq.inference.run import check_run, predict_folder

# Imports once, then forks one child a line of its input: a fresh interpreter a kill would cost seconds each.
RUNNER = """
import json, os, signal, sys, time
from medseq.inference import engine, run, run_folder, run_report, worker
from medseq.inference.ledger import Ledger
import medseq.inference.restore, medseq.models.restore_unet
import medseq.io.dicom, medseq.io.dicom_write, medseq.io.nifti_write

def die(*args, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def after(call, number):
    calls = [0]
    def wrapped(*args, **keywords):
        calls[0] += 1
        if calls[0] == number:
            die()
        return call(*args, **keywords)
    return wrapped

POINTS = {
    "finish": (Ledger, "finish"), "stage": (Ledger, "stage_outputs"), "claim": (Ledger, "claim"),
    "publish": (engine, "publish"), "register": (run, "register"), "report": (run_report, "write_parts"),
    "model": (medseq.inference.restore.RestorePredictor, "_run_model"), "preview": (worker, "preview"),
}

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        if "point" in order:
            owner, name = POINTS[order["point"]]
            setattr(owner, name, after(getattr(owner, name), order["number"]))
        summary = run.predict_folder(**order["words"])
        os._exit(summary.exit_code)
    if "seconds" in order:
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Runs `predict_folder` in a child that may be killed; returns its exit code, -9 if it was."""
    folder = tmp_path_factory.mktemp("runner")
    (folder / "runner.py").write_text(RUNNER)
    command = [sys.executable, "-W", "ignore", str(folder / "runner.py")]
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def order(words, **kill):
        process.stdin.write(json.dumps({"words": {key: str(value) for key, value in words.items()}, **kill}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        return int(answer) if answer else pytest.fail((folder / "stderr").read_text())

    yield order
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def fill(make, folder, rng):
    """Four series and a broken one below ``folder/in``."""
    for name, slices in (("a", 6), ("b", 3), ("c", 5), ("d", 4)):
        make.series(folder / "in" / name, make.head(rng, slices))
    broken = make.series(folder / "in" / "e", make.head(rng, 3))
    broken[1].write_bytes(broken[1].read_bytes()[:1500])


@pytest.fixture
def place(make, tmp_path, rng):
    fill(make, tmp_path, rng)
    return tmp_path


@pytest.fixture(scope="module")
def ground(make, tmp_path_factory, runner):
    """One input for all tests with kills: its folder, its bundle, and the results of an undisturbed run."""
    folder = tmp_path_factory.mktemp("ground")
    fill(make, folder, np.random.default_rng())
    bundle = make.bundle(folder / "tiny-ct")
    assert runner(words(folder, bundle, "calm", make)) == 3
    return folder, bundle, make.tree(folder / "calm")


def words(place, bundle, out, make):
    return {"bundle": bundle.folder, "input": place / "in", "output": place / out, "created_utc": make.created}


def states(out):
    """State of every item; {} where the run was killed before it had recorded anything."""
    try:
        with Ledger(out / "run.sqlite", read_only=True) as ledger:
            return {item.id: item.state for item in ledger.items()}
    except OutputError as error:
        if "no run was recorded here" in str(error):
            return {}
        raise


def require_clean(out):
    """Nothing but results, ledger and report."""
    assert not (out / ".work").exists()
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob("*.replaced"))
    known = {"run.sqlite", "report.json", "report.html", "report", ".run.lock"}
    assert {path.name for path in out.iterdir()} - known == {
        key for key, state in states(out).items() if state == "done"
    }


def test_random_kills_leave_the_bytes_of_an_undisturbed_run(ground, make, runner, seed):
    place, bundle, calm = ground
    started = time.monotonic()
    assert runner(words(place, bundle, "timed", make)) == 3
    # Half of what an undisturbed run takes here: the first kill hits a running one on any machine.
    latest = (time.monotonic() - started) / 2
    rough = words(place, bundle, "rough", make)
    draw, killed = random.Random(seed), 0
    for _ in range(12):
        killed += runner(rough, seconds=draw.uniform(0, latest)) == -9
        done = [key for key, state in states(place / "rough").items() if state == "done"]
        assert all((place / "rough" / item_id / "result").is_dir() for item_id in done), "done only when it is there"
    assert killed >= 1
    assert runner(rough) == 3
    assert make.tree(place / "rough") == calm
    assert check_run(place / "rough").exit_code == 0
    require_clean(place / "rough")


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("register", 1),
        ("claim", 3),
        ("model", 2),
        ("preview", 2),
        ("stage", 2),
        ("publish", 2),
        ("finish", 2),
        ("report", 2),
    ],
)
def test_a_kill_at_each_step_is_made_good(ground, make, runner, point, number):
    """Between write and rename, between rename and ledger, and everywhere else."""
    place, bundle, calm = ground
    out = f"killed-{point}"
    order = words(place, bundle, out, make)
    assert runner(order, point=point, number=number) == -9
    assert runner(order) == 3
    assert make.tree(place / out) == calm
    assert check_run(place / out).exit_code == 0
    require_clean(place / out)


def test_a_kill_between_the_renames_of_source_names_is_made_good(make, mr_bundle, tmp_path, rng, runner):
    make.nifti(tmp_path / "in" / "sub" / "x.nii", make.head(rng, 3))
    order = {**words(tmp_path, mr_bundle, "out", make), "names": "source", "modality": "MR"}
    assert runner(order, point="finish", number=1) == -9
    assert (tmp_path / "out" / "sub" / "x.nii").exists()
    assert runner(order) == 0
    assert check_run(tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_cleanly_and_the_item_waits(place, ct_bundle, make, monkeypatch, number):
    calm = words(place, ct_bundle, "calm", make)
    predict_folder(**calm)
    plain, calls = RestorePredictor._run_model, []

    def interrupted(self, *args):
        calls.append(1)
        # Series a is two batches of four planes: this is the first one of b.
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return plain(self, *args)

    monkeypatch.setattr(RestorePredictor, "_run_model", interrupted)
    before = signal.getsignal(number)
    order = words(place, ct_bundle, "out", make)
    summary = predict_folder(**order)
    assert (summary.exit_code, summary.processed, summary.counts["queued"]) == (130, 1, 3)
    assert summary.counts["running"] == 0
    assert signal.getsignal(number) is before, "handlers are given back"
    require_clean(place / "out")
    assert "Run the same command again" in summary.report_path.read_text()
    assert {problem.what for problem in check_run(place / "out").problems} == {"not finished"}
    summary = predict_folder(**order)
    assert (summary.exit_code, summary.processed) == (3, 3)
    assert make.tree(place / "out") == make.tree(place / "calm")


def test_a_second_interrupt_stops_at_once(place, ct_bundle, make, monkeypatch):
    def interrupted(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RestorePredictor, "_run_model", interrupted)
    order = words(place, ct_bundle, "out", make)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(**order)
    monkeypatch.undo()
    assert predict_folder(**order).counts["done"] == 4
    require_clean(place / "out")


def test_two_runs_in_one_folder_are_refused(place, ct_bundle, make):
    order = words(place, ct_bundle, "out", make)
    (place / "out").mkdir()
    with (place / "out" / ".run.lock").open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is working in the output folder; wait for it"):
            predict_folder(**order)
    assert predict_folder(**order).counts["done"] == 4


def test_a_full_disk_fails_what_does_not_fit_and_the_rest_goes_on(make, mr_bundle, tmp_path, rng):
    make.nifti(tmp_path / "in" / "a.nii", make.head(rng, 2))
    make.nifti(tmp_path / "in" / "b_large.nii", rng.integers(0, 30000, (8, 512, 512)))
    make.nifti(tmp_path / "in" / "c.nii", make.head(rng, 2))
    out = tmp_path / "out"
    out.mkdir()
    assert os.geteuid() == 0, "this test mounts a tmpfs: run it as root (the injected variant below runs as anyone)"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(out)], check=True)
    try:
        order = {"bundle": mr_bundle, "input": tmp_path / "in", "output": out, "modality": "MR", "tile": 512}
        summary = predict_folder(**order)
        assert (summary.exit_code, summary.counts["done"], summary.counts["failed"]) == (3, 2, 1)
        assert check_run(out).exit_code == 0
        require_clean(out)
        page = summary.report_path.read_text()
        assert "disk-full" in page
        assert "free space and run again" in page
        # Space appears: the next run tries the item again by itself.
        subprocess.run(["mount", "-o", "remount,size=32m", str(out)], check=True)
        summary = predict_folder(**order)
        assert (summary.exit_code, summary.processed, summary.counts["done"]) == (0, 1, 3)
        assert check_run(out).exit_code == 0
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("step", ["write", "publish"])
def test_no_space_injected_at_each_step(place, ct_bundle, make, monkeypatch, step):
    from medseq.inference import outputs

    calls = []

    def full(plain):
        def call(*args, **keywords):
            calls.append(1)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/DOE_JOHN")
            return plain(*args, **keywords)

        return call

    owner, name = {"write": (outputs._TappedWriter, "write"), "publish": (engine, "publish")}[step]
    monkeypatch.setattr(owner, name, full(getattr(owner, name)))
    order = words(place, ct_bundle, "out", make)
    summary = predict_folder(**order)
    assert (summary.counts["done"], summary.counts["failed"]) == (3, 2)
    text = (place / "out" / "report.json").read_text()
    assert "no space left for the result (found ENOSPC); free space and run again" in text
    assert "DOE_JOHN" not in text
    require_clean(place / "out")
    assert check_run(place / "out").exit_code == 0
    assert predict_folder(**order).counts["done"] == 4


def test_a_report_that_cannot_be_written_does_not_hide_the_results(place, ct_bundle, make, monkeypatch):
    def full(path, text):
        raise RetryableError("cannot be written", where="the report", found="ENOSPC")

    monkeypatch.setattr(run_report, "write_parts", full)
    summary = predict_folder(**words(place, ct_bundle, "out", make))
    assert (summary.exit_code, summary.report_path, summary.counts["done"]) == (3, None, 4)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), "memory", "not enough memory; use a smaller --tile or --batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory", "not enough memory"),
        (KeyError("/data/DOE_JOHN/x.dcm"), "bug", r"unexpected KeyError in attempt.py:\d+; please report it"),
        (RetryableError("the server is busy"), "retry", "the server is busy"),
        (OSError(errno.EIO, "Input/output error", "/data/DOE_JOHN"), "io", "reading or writing failed .found EIO."),
    ],
)
def test_an_unexpected_error_fails_one_item_and_tells_no_names(
    place, ct_bundle, make, monkeypatch, error, code, message, caplog
):
    import re

    plain, calls = attempt.run_item, []

    def odd(*args):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return plain(*args)

    monkeypatch.setattr(attempt, "run_item", odd)
    order = words(place, ct_bundle, "out", make)
    summary = predict_folder(**order, retries=0)
    assert (summary.exit_code, summary.counts["done"]) == (3, 3)
    report = json.loads((place / "out" / "report.json").read_text())
    [failed] = [item for item in report["items"] if item["state"] == "failed" and item["attempts"]]
    assert failed["reason_code"] == code
    assert re.search(message, failed["reason"])
    assert "DOE_JOHN" not in json.dumps(report) + caplog.text
    # Trouble from outside is tried again by itself, the rest when asked for.
    assert predict_folder(**order).processed == (0 if code == "bug" else 1)
    assert predict_folder(**order, retry_failed=True).counts["done"] == 4


def test_a_failed_item_takes_its_older_result_along(make, mr_bundle, tmp_path, rng):
    """The input changed and can no longer be read: a result of what it was must not stay."""
    path = make.nifti(tmp_path / "in" / "x.nii", make.head(rng, 2))
    order = {"bundle": mr_bundle, "input": tmp_path / "in", "output": tmp_path / "out", "modality": "MR"}
    assert predict_folder(**order).exit_code == 0
    path.write_bytes(b"broken")
    assert predict_folder(**order).exit_code == 3
    assert make.tree(tmp_path / "out") == {}


def test_an_input_that_changes_while_it_is_read_is_not_believed(make, mr_bundle, tmp_path, rng, monkeypatch):
    path = make.nifti(tmp_path / "in" / "x.nii", make.head(rng, 2))
    plain = RestorePredictor.predict

    def slow(self, *args, **keywords):
        result = plain(self, *args, **keywords)
        os.utime(path, ns=(1, 1))
        return result

    monkeypatch.setattr(RestorePredictor, "predict", slow)
    order = {"bundle": mr_bundle, "input": tmp_path / "in", "output": tmp_path / "out", "modality": "MR"}
    summary = predict_folder(**order, retries=0)
    assert summary.exit_code == 3
    assert "the input changed while it was read" in summary.report_path.read_text()
    assert make.tree(tmp_path / "out") == {}


def test_a_result_lost_during_the_run_is_not_reported_as_done(place, ct_bundle, make):
    order = words(place, ct_bundle, "out", make)

    def lose(done, total, text):
        if done == 4 and text:
            next((place / "out").glob("*/result/0001.dcm")).unlink()

    summary = predict_folder(**order, progress=lose)
    assert (summary.exit_code, summary.counts["done"], summary.counts["failed"]) == (3, 3, 2)
    assert "its result was lost after it was written" in Path(summary.report_path).read_text()


def test_a_new_run_killed_while_the_old_one_is_moved_is_finished_by_the_next(place, ct_bundle, make, monkeypatch):
    order = words(place, ct_bundle, "out", make)
    predict_folder(**order)
    before = make.tree(place / "out")
    plain, calls = Path.rename, []

    def cut(self, target):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(**order, strength=0.5, new_run=True)
    monkeypatch.undo()
    assert predict_folder(**order, strength=0.5, new_run=True).counts["done"] == 4
    assert make.tree(place / "out" / "previous" / "1") == before
    assert check_run(place / "out" / "previous" / "1").exit_code == 0
