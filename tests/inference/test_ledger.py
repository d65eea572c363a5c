import os
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing

import pytest

from medseq.errors import OutputError
from medseq.inference.ledger import FileRow, Ledger, OutputRow, RunRow
from medseq.inference.ledger_schema import MIGRATIONS, VERSION

RUN = RunRow("b" * 64, {"strength": 1.0}, "p" * 64, "0.1.0", "2026-01-02T03:04:05Z")
FILES = [FileRow("a/one.dcm", 10, 111), FileRow("a/two.dcm", 20, 222)]


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "run.sqlite") as ledger:
        yield ledger


def finish(ledger, item_id, **changes):
    values = {"seconds": 1.5, "peak_mb": 100.0, "input_sha256": "c" * 64, "metrics": {"mean_shift": 0.5}, "flags": []}
    ledger.finish(item_id, "w1", **(values | changes))


def test_tables_and_version_are_those_of_the_design(ledger):
    with sqlite3.connect(ledger.path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        columns = {
            table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            for table in ("run", "file", "item", "output", "event")
        }
    db.close()
    assert columns == {
        "run": ["id", "bundle_hash", "params_json", "params_hash", "version", "created_utc"],
        "file": ["item_id", "relpath", "size", "mtime_ns"],
        "item": [
            *("id", "kind", "label", "state", "reason_code", "reason", "attempts", "lease_owner", "lease_until"),
            *("seconds", "peak_mb", "input_sha256", "metrics_json", "flags_json", "priority"),
        ],
        "output": ["item_id", "role", "relpath", "sha256", "bytes"],
        "event": ["ts", "item_id", "state", "worker", "code"],
    }


def test_only_the_owner_can_read_the_file_names(ledger):
    assert stat.S_IMODE(os.stat(ledger.path).st_mode) == 0o600


def test_an_item_runs_through_its_states_and_leaves_events(ledger):
    assert ledger.add_item("i1", "dicom", "id-1", FILES) == "queued"
    item = ledger.claim("w1", 60)
    assert (item.id, item.state, item.attempts) == ("i1", "running", 1)
    assert ledger.claim("w2", 60) is None
    row = OutputRow("result", "i1/result.nii.gz", "d" * 64, 123)
    ledger.stage_outputs("i1", [row])
    assert ledger.item("i1").state == "running"
    assert ledger.owner(row.relpath) == "i1"
    finish(ledger, "i1", flags=[{"code": "x", "message": "y", "level": "warn"}])
    item = ledger.item("i1")
    assert (item.state, item.seconds, item.metrics, item.flags[0]["code"]) == ("done", 1.5, {"mean_shift": 0.5}, "x")
    assert ledger.outputs("i1") == [row]
    assert ledger.files("i1") == FILES
    assert [(event.state, event.worker) for event in ledger.events("i1")] == [
        ("queued", None),
        ("running", "w1"),
        ("done", "w1"),
    ]
    assert ledger.counts() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "skipped": 0}


def test_a_failure_forgets_outputs_and_keeps_its_reason(ledger):
    ledger.add_item("i1", "dicom", "id-1", FILES)
    ledger.claim("w1", 60)
    ledger.stage_outputs("i1", [OutputRow("result", "i1/r", "d" * 64, 1)])
    ledger.fail("i1", "w1", "format", "it is broken", seconds=0.1)
    item = ledger.item("i1")
    assert (item.state, item.reason_code, item.reason) == ("failed", "format", "it is broken")
    assert ledger.outputs("i1") == []


def test_items_are_claimed_in_the_order_they_were_found(ledger):
    for name in ("c", "a", "b"):
        ledger.add_item(name, "nifti", name, [FileRow(name, 1, 1)])
    assert [ledger.claim("w", 60).id for _ in range(3)] == ["c", "a", "b"]


def test_an_expired_lease_is_taken_over_and_a_live_one_is_not(ledger):
    ledger.add_item("i1", "dicom", "id-1", FILES)
    ledger.claim("dead", 0.05)
    assert ledger.claim("w2", 60) is None
    time.sleep(0.1)
    item = ledger.claim("w2", 60)
    assert (item.id, item.attempts) == ("i1", 2)


def test_unchanged_items_keep_their_state_and_changed_ones_start_anew(ledger):
    ledger.add_item("i1", "dicom", "id-1", FILES)
    ledger.claim("w1", 60)
    finish(ledger, "i1")
    assert ledger.add_item("i1", "dicom", "id-1", FILES[::-1]) == "done"
    assert ledger.add_item("i1", "dicom", "id-1", [FILES[0], FileRow("a/two.dcm", 20, 223)]) == "queued"
    item = ledger.item("i1")
    assert (item.attempts, item.seconds, item.input_sha256, item.metrics) == (0, None, None, {})


def test_a_verdict_of_discovery_gives_way_to_a_newer_one(ledger):
    def found(**verdict):
        return ledger.add_item("i1", "dicom", "id-1", FILES, **verdict)

    assert found(state="failed", reason_code="unreadable", reason="no") == "failed"
    assert found(state="failed", reason_code="unreadable", reason="no") == "failed"
    assert len(ledger.events("i1")) == 1
    # Permissions were repaired: same size, same time, readable now.
    assert found() == "queued"
    ledger.claim("w1", 60)
    ledger.fail("i1", "w1", "format", "broken")
    # A failed attempt over the same files stands until somebody asks for a retry.
    assert found() == "failed"


def test_inputs_that_went_away_are_skipped_but_finished_results_stay(tmp_path):
    path = tmp_path / "run.sqlite"
    with Ledger(path) as ledger:
        for name in ("done", "failed", "queued", "kept"):
            ledger.add_item(name, "nifti", name, [FileRow(name, 1, 1)])
        ledger.claim("w", 60)
        finish(ledger, "done")
        ledger.claim("w", 60)
        ledger.fail("failed", "w", "format", "bad")
    with Ledger(path) as ledger:
        ledger.add_item("kept", "nifti", "kept", [FileRow("kept", 1, 1)])
        assert ledger.mark_gone() == 2
        states = {item.id: (item.state, item.reason_code) for item in ledger.items()}
        assert states["done"] == ("done", "gone")
        assert states["kept"] == ("queued", None)
        assert states["failed"] == states["queued"] == ("skipped", "gone")
    with Ledger(path) as ledger:
        for name in ("done", "failed", "kept"):
            ledger.add_item(name, "nifti", name, [FileRow(name, 1, 1)])
        ledger.mark_gone()
        states = {item.id: (item.state, item.reason_code) for item in ledger.items()}
        assert states["done"] == ("done", None)
        assert states["failed"] == ("queued", None)
        assert states["queued"] == ("skipped", "gone")


def test_requeue_selects_by_state_code_and_id(ledger):
    for name in ("a", "b", "c"):
        ledger.add_item(name, "nifti", name, [FileRow(name, 1, 1)])
        ledger.claim("w", 60)
    ledger.fail("a", "w", "disk-full", "x")
    ledger.fail("b", "w", "format", "x")
    ledger.add_item("never", "nifti", "never", [FileRow("n", 1, 1)], state="failed", reason_code="format", reason="x")
    assert ledger.requeue(states=["failed"], codes=["disk-full", "io"]) == 1
    assert ledger.item("a").state == "queued"
    assert ledger.item("b").state == "failed"
    assert ledger.requeue(states=["failed"]) == 1
    # What discovery refused has nothing to be attempted with.
    assert ledger.item("never").state == "failed"
    assert ledger.requeue(ids=["c"]) == 1


def test_a_batch_is_recorded_whole_or_not_at_all(ledger):
    def half_a_discovery():
        with ledger.batch():
            ledger.add_item("i1", "dicom", "id-1", FILES)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half_a_discovery()
    assert ledger.item("i1") is None
    with ledger.batch():
        ledger.add_item("i1", "dicom", "id-1", FILES)
    assert ledger.item("i1").state == "queued"


def test_a_folder_holds_one_run(ledger):
    assert ledger.begin_run(RUN) == RUN
    later = RunRow(RUN.bundle_hash, RUN.params, RUN.params_hash, RUN.version, "2030-01-01T00:00:00Z")
    assert ledger.begin_run(later) == RUN, "a resumed run keeps its first date"
    for name, message in (
        ("bundle_hash", "another bundle .*--new-run"),
        ("params_hash", "another parameters .*strength was 1.0, is 0.5; .*--new-run"),
        ("version", "another medseq version"),
    ):
        other = RunRow(**{**vars(RUN), name: "0.9", "params": {"strength": 0.5 if name == "params_hash" else 1.0}})
        with pytest.raises(OutputError, match=message):
            ledger.begin_run(other)


def test_a_newer_ledger_is_refused_and_not_touched(tmp_path):
    path = tmp_path / "run.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            OutputError, match=r"newer medseq \(found ledger version 99, wanted 3 at most\); update medseq"
        ):
            Ledger(path, read_only=read_only)
    assert path.read_bytes() == before


def test_a_damaged_or_missing_ledger_is_refused(tmp_path):
    path = tmp_path / "run.sqlite"
    with pytest.raises(OutputError, match="no run was recorded here"):
        Ledger(path, read_only=True)
    path.write_bytes(b"this is not a database, but it is long enough to be read as one" * 20)
    with pytest.raises(OutputError, match=r"ledger cannot be read .*not a database.*move it away"):
        Ledger(path)


def test_a_read_only_ledger_reads_and_does_not_write(tmp_path):
    path = tmp_path / "run.sqlite"
    with Ledger(path) as ledger:
        ledger.begin_run(RUN)
        ledger.add_item("i1", "dicom", "id-1", FILES)
    with Ledger(path, read_only=True) as ledger:
        assert ledger.run() == RUN
        assert ledger.counts()["queued"] == 1
        with pytest.raises(OutputError, match="cannot be opened for writing"):
            ledger.requeue(states=["queued"], ids=["i1"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.sqlite"]


def test_a_killed_writer_loses_nothing_that_was_recorded(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from medseq.inference.ledger import Ledger, FileRow\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for i in range(20): ledger.add_item(f'i{i}', 'nifti', 'x', [FileRow(str(i), 1, 1)])\n"
        "ledger._connection.execute('BEGIN IMMEDIATE')\n"
        "ledger._connection.execute('DELETE FROM item')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "run.sqlite"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert killed.returncode == -9
    with Ledger(path) as ledger:
        assert ledger.counts()["queued"] == 20


@pytest.mark.parametrize(
    "module",
    ["ledger", "report", "report_json", "zoo", "discover", "check", "preview", "outputs", "plan", "run", "bundle"],
)
def test_modules_off_the_model_path_import_no_torch(module):
    script = f"import sys, medseq.inference.{module}; print(sorted({{'torch', 'monai'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_the_prediction_path_imports_neither_monai_nor_lightning():
    script = (
        "import sys, medseq.inference.run, medseq.inference.restore; "
        "print(sorted({'monai', 'lightning', 'pytorch_lightning', 'nibabel', 'pydicom'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_a_ledger_without_tables_is_no_run(tmp_path):
    """What a kill between the creation of the file and that of its tables leaves."""
    path = tmp_path / "run.sqlite"
    for content in (b"", None):
        if content is None:
            sqlite3.connect(path).execute("PRAGMA journal_mode=WAL").connection.close()
        else:
            path.write_bytes(content)
        with pytest.raises(OutputError, match="no run was recorded here"):
            Ledger(path, read_only=True)
    with Ledger(path) as ledger:
        assert ledger.run() is None


def test_a_ledger_of_the_first_version_is_read_as_it_is_and_brought_up_to_date_by_a_run(tmp_path):

    path = tmp_path / "run.sqlite"
    db = sqlite3.connect(path)
    db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version=1;")
    db.execute("INSERT INTO item(id, kind, label, state, attempts) VALUES ('i1', 'nifti', 'x', 'queued', 1)")
    db.execute("INSERT INTO event VALUES (5.0, 'i1', 'queued', NULL)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with Ledger(path, read_only=True) as ledger:
        assert ledger.item("i1").state == "queued"
        assert [(event.state, event.code) for event in ledger.events("i1")] == [("queued", None)]
    assert path.read_bytes() == before
    with Ledger(path) as ledger:
        assert ledger.claim("w", 60).id == "i1"
        ledger.fail("i1", "w", "io", "x")
        assert [event.code for event in ledger.events("i1")] == [None, None, "io"]
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()


def test_priority_comes_before_the_order_of_discovery(ledger):
    for name, priority in (("a", 0), ("b", 2), ("c", 1), ("d", 2)):
        ledger.add_item(name, "nifti", name, [FileRow(name, 1, 1)], priority=priority)
    ledger.add_item("a", "nifti", "a", [FileRow("a", 1, 1)], priority=3)
    assert [ledger.claim("w", 60).id for _ in range(4)] == ["a", "b", "d", "c"]


def test_a_held_item_is_only_claimed_by_its_name(ledger):
    for name in ("a", "b"):
        ledger.add_item(name, "nifti", name, [FileRow(name, 1, 1)])
    ledger.hold("a")
    assert ledger.claim("w", 60).id == "b"
    assert ledger.claim("w", 60) is None
    assert ledger.has_queued()
    assert ledger.claim("w", 60, "a").attempts == 1
    # In work and held: a lease that ran out, by a clock that jumped, gives it to nobody.
    ledger.renew(["a"], -10)
    assert ledger.claim("w2", 60) is None
    ledger.let_go("a")
    assert ledger.claim("w2", 60).id == "a"


def test_a_renewed_lease_is_not_taken_over(ledger):
    ledger.add_item("a", "nifti", "a", [FileRow("a", 1, 1)])
    ledger.claim("w1", -1)
    ledger.renew(["a"], 60)
    assert ledger.claim("w2", 60) is None
    ledger.release("a", "w1", "crash")
    assert (ledger.item("a").state, ledger.events("a")[-1].code) == ("queued", "crash")


def test_claiming_does_not_walk_over_what_is_done(ledger):
    plan = ledger._connection.execute(
        "EXPLAIN QUERY PLAN SELECT id FROM item WHERE state='queued' AND id NOT IN (SELECT id FROM held) "
        "ORDER BY priority DESC, rowid LIMIT 1"
    ).fetchall()
    text = " ".join(row[3] for row in plan)
    assert "USING INDEX item_next" in text
    assert "TEMP B-TREE" not in text


def test_the_input_folder_is_remembered_and_an_older_ledger_has_none(tmp_path):
    name = tmp_path / "scans \udcff"
    with Ledger(tmp_path / "run.sqlite") as ledger:
        assert ledger.origin() is None
        ledger.note_origin(tmp_path / "elsewhere")
        ledger.note_origin(name)
        # Whatever bytes it is called by, and the last one counts.
        assert ledger.origin() == name
    with closing(sqlite3.connect(tmp_path / "old.sqlite")) as db:
        db.executescript(f"{MIGRATIONS[0]} PRAGMA user_version=1;")
    with Ledger(tmp_path / "old.sqlite", read_only=True) as old:
        assert old.origin() is None
