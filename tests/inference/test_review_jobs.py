"""Runs started from the page: what may be run, over what, how far it is, and that it stops when asked."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from medseq.errors import InputError, OutputError
from medseq.inference.review_jobs import Job, JobLimits, Jobs
from tests.inference.made_review import add_item, begin_run


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    (folder / "scans" / "a").mkdir(parents=True)
    (folder / "scans" / "a" / "x.nii").write_bytes(b"x" * 1000)
    (tmp_path / "secret").mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def jobs(tmp_path, root):
    made = Jobs(tmp_path / "work", [root])
    yield made
    for job in made.list():
        if job.state == "running":
            os.kill(job.pid, signal.SIGKILL)
            ended(made, job)


def stand_in(monkeypatch, code):
    """A process that runs `code` in place of `medseq predict`; its words are kept."""
    real, called = subprocess.Popen, []

    def popen(command, **words):
        called.append(command)
        return real([sys.executable, "-c", code], **words)

    monkeypatch.setattr("medseq.inference.review_jobs.subprocess.Popen", popen)
    return called


def ended(jobs, job):
    deadline = time.monotonic() + 120
    while (found := jobs.get(job.job_id)).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_folders_are_chosen_below_admitted_roots_only(jobs, root, tmp_path):
    assert jobs.folders() == ["0"]
    assert jobs.folders(["0"]) == ["scans"]  # neither the link nor files
    assert jobs.resolve(["0", "scans", "a"]) == root / "scans" / "a"
    for way in (
        ["1"],
        ["x"],
        ["-1"],
        [],
        ["0", ".."],
        ["0", "..", "secret"],
        ["0", "link"],
        ["0", "/etc"],
        ["0", "none"],
    ):
        with pytest.raises(InputError, match="no such folder"):
            jobs.resolve(way)
    for source in (tmp_path / "secret", root / "link", root.parent, root / ".." / "secret", tmp_path / "work"):
        with pytest.raises(InputError, match="may not read"):
            jobs.start("ct-denoise", source, "ann")
    assert jobs.list() == []


def test_only_known_models_and_switches_run(jobs, root):
    for bundle in ("nothing", "../ct-denoise", "/etc", "--help"):
        with pytest.raises(InputError, match="no such model"):
            jobs.start(bundle, root / "scans", "ann")
    assert "ct-denoise" in jobs.bundles()


def test_a_run_is_started_in_the_background_and_watched(jobs, root, monkeypatch, tmp_path):
    called = stand_in(monkeypatch, "import time; time.sleep(0.5)")
    started = time.monotonic()
    job = jobs.start("ct-denoise", root / "scans", "ann", ["--difference"])
    assert time.monotonic() - started < 5
    assert job.state == "running"
    assert jobs.get(job.job_id).state == "running"
    [command] = called
    assert command[1:5] == ["-m", "medseq.cli.main", "predict", "ct-denoise"]
    assert command[5:] == [str(root / "scans"), str(jobs.out(job.job_id)), "--quiet", "--difference"]
    assert jobs.progress(job.job_id).share == 0.0
    with begin_run(jobs.out(job.job_id)) as ledger:
        add_item(ledger, "1" * 16)
        add_item(ledger, "2" * 16, state="failed")
        add_item(ledger, "3" * 16, state="queued")
        add_item(ledger, "4" * 16, state="queued")
    progress = jobs.progress(job.job_id)
    assert progress.share == 0.5
    assert progress.counts["queued"] == 2
    assert ended(jobs, job).state == "done"
    assert [found.job_id for found in jobs.list()] == [job.job_id]
    # Another server on the same workspace knows it, too.
    assert Jobs(tmp_path / "work", [root]).get(job.job_id).state == "done"


@pytest.mark.parametrize(
    ("code", "state", "message"),
    [
        ("raise SystemExit(0)", "done", ""),
        ("raise SystemExit(3)", "done", ""),
        ("raise SystemExit(130)", "cancelled", ""),
        (
            "import sys; print('medseq: nothing to read; give a folder', file=sys.stderr); sys.exit(2)",
            "failed",
            "nothing to read; give a folder",
        ),
        ("raise RuntimeError('/secret/path')", "failed", "the run ended without a word"),
    ],
)
def test_how_a_run_ends(jobs, root, monkeypatch, code, state, message):
    stand_in(monkeypatch, code)
    found = ended(jobs, jobs.start("ct-denoise", root / "scans", "ann"))
    assert (found.state, found.message) == (state, message)


def test_cancelling_asks_the_run_to_stop(jobs, root, monkeypatch):
    # Whatever started the tests may have its children ignore the signal; a run listens to it, as this one.
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
    code += "except KeyboardInterrupt:\n    raise SystemExit(130)"
    stand_in(monkeypatch, code)
    job = jobs.start("ct-denoise", root / "scans", "ann")
    log = jobs.out(job.job_id).parent / "log.txt"
    deadline = time.monotonic() + 60
    while "ready" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert jobs.cancel(job.job_id)
    assert ended(jobs, job).state == "cancelled"
    assert not jobs.cancel(job.job_id)
    assert not jobs.cancel("0" * 16)


def test_a_number_that_another_process_has_now_is_not_signalled(jobs, root, monkeypatch, tmp_path):
    """The server was restarted, the run is gone, and its number belongs to this very process."""
    stand_in(monkeypatch, "pass")
    job = jobs.start("ct-denoise", root / "scans", "ann")
    ended(jobs, job)
    after = Jobs(tmp_path / "work", [root])
    forged = Job(**{**job.__dict__, "pid": os.getpid(), "started": 1.0, "state": "running"})
    after._save(forged)
    signalled = []
    monkeypatch.setattr("medseq.inference.review_jobs.os.kill", lambda *words: signalled.append(words))
    assert not after.cancel(job.job_id)
    assert after.get(job.job_id).state == "interrupted"
    assert signalled == []


def test_one_run_at_a_time_and_within_limits(tmp_path, root, monkeypatch):
    stand_in(monkeypatch, "import time; time.sleep(30)")
    small = Jobs(tmp_path / "small", [root], limits=JobLimits(bytes=999))
    with pytest.raises(InputError, match="too large"):
        small.start("ct-denoise", root / "scans", "ann")
    few = Jobs(tmp_path / "few", [root], limits=JobLimits(files=0))
    with pytest.raises(InputError, match="too large"):
        few.start("ct-denoise", root / "scans", "ann")
    full = Jobs(tmp_path / "full", [root], limits=JobLimits(free_bytes=1 << 60))
    with pytest.raises(OutputError, match="too little space"):
        full.start("ct-denoise", root / "scans", "ann")
    jobs = Jobs(tmp_path / "work", [root])
    job = jobs.start("ct-denoise", root / "scans", "ann")
    with pytest.raises(OutputError, match="another run is working"):
        jobs.start("ct-denoise", root / "scans", "bob")
    with pytest.raises(InputError, match="no such option"):
        Jobs(tmp_path / "more", [root]).start("ct-denoise", root / "scans", "ann", ["--trust-package"])
    os.kill(job.pid, signal.SIGKILL)
    assert ended(jobs, job).state == "failed"


def test_uploads_keep_neither_name_nor_more_than_they_may(tmp_path, root):
    jobs = Jobs(tmp_path / "work", [root], limits=JobLimits(bytes=5000))
    folder = jobs.save_upload("Plantedname^Anna.NII.GZ", io.BytesIO(b"x" * 4000), "ann")
    assert [path.name for path in folder.iterdir()] == ["upload.nii.gz"]
    assert "planted" not in str(folder).lower()
    archive = jobs.save_upload("a.zip", io.BytesIO(b"x"), "ann")
    assert archive.name == "upload.zip"
    assert archive.parent.stat().st_mode & 0o077 == 0
    uploads = tmp_path / "work" / "uploads"
    count = len(list(uploads.iterdir()))
    for name, content, message in (
        ("a.exe", b"x", "kind of file"),
        ("noname", b"x", "kind of file"),
        ("a.nii", b"", "found nothing"),
        ("a.nii", b"x" * 5001, "more than"),
    ):
        with pytest.raises(InputError, match=message):
            jobs.save_upload(name, io.BytesIO(content), "ann")
    assert len(list(uploads.iterdir())) == count


@pytest.mark.parametrize("job_id", ["", "..", "../../etc", "0" * 15, "g" * 16, "0" * 16])
def test_ids_that_are_none_lead_nowhere(jobs, job_id):
    assert jobs.get(job_id) is None
    with pytest.raises(InputError, match="no such job"):
        jobs.out(job_id)


def test_a_real_run_over_an_empty_folder_fails_in_words(jobs, root):
    (root / "empty").mkdir()
    found = ended(jobs, jobs.start("ct-denoise", root / "empty", "ann"))
    assert found.state == "failed"
    assert found.message
    assert str(root) not in found.message
