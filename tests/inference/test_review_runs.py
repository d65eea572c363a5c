"""The worklist: pages, filters, blinded studies, runs that go on, broken ledgers, files that changed."""

import hashlib
import os
import sqlite3
import threading
from contextlib import closing

import pytest

from medseq.errors import InputError, OutputError
from medseq.inference.ledger import Ledger
from medseq.inference.ledger_schema import FileRow, OutputRow
from medseq.inference.review import ReviewStore
from medseq.inference.review_run import find_runs
from medseq.inference.review_runs import Runs, Study
from medseq.inference.review_source import find_root, input_path
from tests.inference.made_review import KEY, add_item, begin_run, small_run


@pytest.fixture
def out(tmp_path):
    return small_run(tmp_path / "out" / "ct", 5)


def labels(rows):
    return [row.label for row in rows]


def test_a_page_shows_part_and_tells_the_whole(out):
    runs = Runs([out], KEY)
    rows, total = runs.page(limit=2)
    assert (len(rows), total) == (2, 5)
    seen = [row.item_id for offset in (0, 2, 4) for row in runs.page(offset=offset, limit=2)[0]]
    assert seen == [f"{number:016x}" for number in range(5)]
    # Beyond the end stands the last page, not nothing.
    assert [row.item_id for row in runs.page(offset=90, limit=2)[0]] == [f"{4:016x}"]
    row = rows[1]
    assert (row.task, row.modality, row.method, row.state) == ("restore", "CT", "ct-denoise 1.0", "done")
    assert (row.key_value, row.key_text) == (-90.0, "noise -90 %")


def test_filters_and_orders(tmp_path):
    with begin_run(tmp_path / "a") as ledger:
        add_item(
            ledger,
            "1" * 16,
            label="id-one",
            metrics={"noise_sd_before": 10.0, "noise_sd_after": 2.0, "uncertainty": 3.0},
        )
        add_item(
            ledger, "2" * 16, label="id-two", flags=[{"code": "clipped", "level": "warn", "message": "50% clipped"}]
        )
        add_item(ledger, "3" * 16, kind="kspace", label="id-three", metrics={"residual_over_noise": 2.0})
        add_item(ledger, "4" * 16, kind="slide", label="id-four", metrics={"call": 1.0, "probability_1": 0.75})
        add_item(ledger, "5" * 16, label="id-five", state="failed")
        add_item(ledger, "6" * 16, kind="other", label="id_six", state="skipped")
    runs = Runs([tmp_path / "a"], KEY)
    assert labels(runs.page("clipped")[0]) == ["id-two"]
    # What a person types is text, not a pattern.
    assert labels(runs.page("50%")[0]) == ["id-two"]
    assert labels(runs.page("d_s")[0]) == ["id_six"]
    assert labels(runs.page("%")[0]) == ["id-one", "id-two"]
    assert runs.page("_")[1] == 1
    assert runs.page("!")[1] == 0
    assert labels(runs.page("ID-T done")[0]) == ["id-two", "id-three"]
    assert labels(runs.page("id-t failed")[0]) == []
    assert labels(runs.page("id-t kspace")[0]) == ["id-three"]
    assert labels(runs.page("'; DROP TABLE work; --")[0]) == []
    assert labels(runs.page(task="mil")[0]) == ["id-four"]
    assert labels(runs.page(state="failed")[0]) == ["id-five"]
    assert labels(runs.page(sort="-uncertainty")[0])[0] == "id-one"
    assert labels(runs.page(sort="uncertainty")[0])[0] == "id-one"  # those without a number stand last either way
    assert labels(runs.page(sort="-flags")[0])[0] == "id-two"
    assert labels(runs.page(sort="label")[0])[:2] == ["id-five", "id-four"]
    assert runs.counts("task") == {"restore": 4, "recon": 1, "mil": 1}
    assert {row.label: row.key_text for row in runs.page(task="recon")[0] + runs.page(task="mil")[0]} == {
        "id-three": "misfit 2.00 x noise",
        "id-four": "class 1: 0.75",
    }
    with pytest.raises(InputError, match="no such order"):
        runs.page(sort="label; DROP TABLE work")


def test_decisions_are_in_the_worklist_at_once(out):
    runs = Runs([out], KEY)
    rows, _ = runs.page()
    runs.record(rows[1].token, "ann", "decide", decision="reject", reason_code="noise-left", score=2)
    runs.record(rows[2].token, "ann", "assign", decision="bob", role="admin")
    assert labels(runs.page(decision="reject")[0]) == [rows[1].label]
    assert labels(runs.page(assignee="bob")[0]) == [rows[2].label]
    assert runs.page(assignee="")[1] == 4
    assert runs.page(decision="unreviewed")[1] == 4
    assert runs.item(rows[1].token, "ann").mine == "reject"
    assert runs.item(rows[1].token, "bob").mine is None
    assert runs.counts("status") == {"reject": 1, "unreviewed": 4}
    assert runs.counts(reviewer="bob") == {"unreviewed": 5}
    assert runs.undo(rows[1].token, "ann") == 1
    assert runs.page(decision="reject")[1] == 0


def test_what_another_server_recorded_is_seen(out):
    ours, theirs = Runs([out], KEY), Runs([out], KEY)
    token = ours.page()[0][0].token
    theirs.record(token, "bob", "decide", decision="accept")
    assert ours.page(decision="accept")[1] == 1
    ours.record(token, "ann", "decide", decision="reject")
    assert theirs.page(decision="disagreement")[1] == 1


def test_a_decision_remembers_what_was_shown(out):
    runs = Runs([out], KEY)
    token = runs.page()[0][0].token
    runs.record(token, "ann", "decide", decision="accept", view={"low": -160.0, "high": 240.0})
    event = runs.store(token).records()[0].event
    assert event.output_sha256 == runs.output_hash(token)
    assert event.bundle_hash == runs.run_of(token).bundle_hash
    assert event.view == {"low": -160.0, "high": 240.0}


def test_several_runs_are_one_worklist(tmp_path):
    first, second = (
        small_run(tmp_path / "out" / "a", 2),
        small_run(tmp_path / "out" / "b", 2, name="other", strength=0.5),
    )
    runs = Runs([tmp_path / "out"], KEY)
    assert [info.method for info in runs.runs()] == ["ct-denoise 1.0", "other 1.0"]
    rows, total = runs.page()
    assert total == 4
    # The same input in two runs: the same item, two tokens.
    assert rows[0].item_id == rows[2].item_id
    assert rows[0].token != rows[2].token
    assert runs.page(run=1)[1] == 2
    runs.record(rows[2].token, "ann", "decide", decision="accept")
    with ReviewStore(second / "review.sqlite", KEY) as store:
        assert store.last_seq() == 1
    assert not (first / "review.sqlite").exists()
    assert find_runs([tmp_path / "out", first]) == [first, second]
    with pytest.raises(OutputError, match="no run was recorded here"):
        Runs([tmp_path / "nothing"], KEY)


def test_tokens_are_opaque_stable_and_of_this_key(out):
    row = Runs([out], KEY).page()[0][0]
    assert Runs([out], KEY).page()[0][0].token == row.token
    assert Runs([out], KEY[::-1]).page()[0][0].token != row.token
    assert row.item_id not in row.token
    assert len(row.token) == 24
    runs = Runs([out], KEY)
    for wrong in ("", row.item_id, "../../etc/passwd", row.token[:-1], row.token + "0"):
        with pytest.raises(InputError, match="no such item"):
            runs.item(wrong)
        with pytest.raises(InputError, match="no such item"):
            runs.outputs(wrong)


def test_neighbours_follow_the_order_of_the_page(out):
    runs = Runs([out], KEY)
    tokens = [row.token for row in runs.page(sort="-label")[0]]
    assert runs.neighbours(tokens[2], sort="-label") == (tokens[1], tokens[3])
    assert runs.neighbours(tokens[0], sort="-label") == (None, tokens[1])
    assert runs.neighbours(tokens[4], sort="-label") == (tokens[3], None)
    assert runs.neighbours("nobody") == (None, None)


# --- studies


def test_a_study_hides_methods_and_the_other_readers(tmp_path):
    out = small_run(tmp_path / "a", 12)
    plain = Runs([out], KEY)
    token = plain.page()[0][3].token
    plain.record(token, "bob", "decide", decision="reject", score=1)
    runs = Runs([out], KEY, study=Study("s1"))
    row = runs.item(token, "ann")
    assert (row.method, row.key_value, row.key_text, row.score, row.readers, row.status) == (
        None,
        None,
        None,
        None,
        0,
        "unreviewed",
    )
    assert (row.metrics, row.flags) == ({}, [])
    assert runs.page(decision="unreviewed", reviewer="ann")[1] == 12
    assert runs.page(decision="reject", reviewer="bob")[1] == 1
    for order in ("method", "-key", "score", "flags"):
        with pytest.raises(InputError, match="would tell the methods"):
            runs.page(sort=order)


def test_a_study_has_another_order_for_every_reader_and_the_same_every_time(tmp_path):
    out = small_run(tmp_path / "a", 12)

    def order(reader, name="s1"):
        return [row.item_id for row in Runs([out], KEY, study=Study(name)).page(reviewer=reader)[0]]

    found = [order("ann"), order("bob"), order("ann", "s2"), [f"{number:016x}" for number in range(12)]]
    assert order("ann") == found[0]
    assert len({tuple(one) for one in found}) == 4
    assert {tuple(sorted(one)) for one in found} == {tuple(found[3])}


def test_the_search_of_a_study_does_not_tell_what_is_hidden(tmp_path):
    runs = Runs([small_run(tmp_path / "a", 3)], KEY, study=Study("s1"))
    # Method, numbers and flags are not shown, so they are not found either.
    assert runs.page("ct-denoise", reviewer="ann")[1] == 0
    assert runs.page("noise", reviewer="ann")[1] == 0
    assert runs.page("id-0000", reviewer="ann")[1] == 3


# --- runs that are not well


def test_a_run_that_goes_on_is_shown_as_it_is_now(tmp_path):
    ledger = begin_run(tmp_path / "a")
    add_item(ledger, "1" * 16, state="queued")
    add_item(ledger, "2" * 16, state="queued")
    runs = Runs([tmp_path / "a"], KEY)
    assert runs.runs()[0].live
    assert runs.counts("state") == {"queued": 2}
    ledger.claim("w", 60, "1" * 16)
    assert [row.state for row in runs.page()[0]] == ["running", "queued"]
    ledger.finish(
        "1" * 16,
        "w",
        seconds=1.0,
        peak_mb=1.0,
        input_sha256="",
        metrics={"noise_sd_before": 4.0, "noise_sd_after": 1.0},
        flags=[],
    )
    ledger.fail("2" * 16, "w", "shape", "too thin")
    add_item(ledger, "3" * 16, state="queued")
    rows, total = runs.page()
    assert total == 3
    assert [(row.state, row.reason) for row in rows] == [("done", None), ("failed", "too thin"), ("queued", None)]
    assert rows[0].key_text == "noise -75 %"
    ledger.close()
    assert runs.page()[1] == 3


def test_a_corrupt_ledger_is_a_message_and_is_not_written_to(out):
    runs = Runs([out], KEY)
    path = out / "run.sqlite"
    broken = b"SQLite format 3\0" + b"\7" * 3000
    path.write_bytes(broken)
    # What was read before stays; the message says that it may be old.
    assert runs.page()[1] == 5
    assert "cannot be read" in runs.runs()[0].message
    assert path.read_bytes() == broken
    fresh = Runs([out], KEY)
    assert fresh.page()[1] == 0
    assert "cannot be read" in fresh.runs()[0].message
    assert path.read_bytes() == broken


def test_a_ledger_of_a_newer_version_is_a_message(out):
    with closing(sqlite3.connect(out / "run.sqlite")) as connection:
        connection.execute("PRAGMA user_version=99")
    assert "newer medseq" in Runs([out], KEY).runs()[0].message


def test_a_ledger_that_a_run_holds_alone_is_a_message(out, monkeypatch):
    monkeypatch.setattr("medseq.inference.ledger_file._BUSY_S", 0.05)
    with closing(sqlite3.connect(out / "run.sqlite", isolation_level=None)) as holder:
        # As on a network file system; see `medseq.inference.ledger_file`.
        holder.execute("PRAGMA journal_mode=DELETE")
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        (out / "run.sqlite-journal").touch()
        assert "held by a run" in Runs([out], KEY).runs()[0].message
        holder.execute("ROLLBACK")
        holder.close()
    (out / "run.sqlite-journal").unlink(missing_ok=True)
    assert Runs([out], KEY).page()[1] == 5


def test_a_review_of_another_key_leaves_the_worklist_readable(out):
    runs = Runs([out], KEY)
    token = runs.page()[0][0].token
    runs.record(token, "ann", "decide", decision="accept")
    stranger = Runs([out], KEY[::-1])
    assert stranger.page()[1] == 5
    info = stranger.runs()[0]
    assert "another audit key" in info.message
    assert not info.writable


def test_outputs_that_changed_or_went_are_named(out):
    runs = Runs([out], KEY)
    rows, _ = runs.page()
    assert [file.problem for file in runs.outputs(rows[0].token)] == [None]
    files = [out / row.item_id / "result.bin" for row in rows]
    files[0].write_bytes(files[0].read_bytes()[::-1])  # the same size
    files[1].write_bytes(b"longer than it was")
    files[2].unlink()
    assert [runs.outputs(row.token)[0].problem for row in rows] == ["changed", "changed", "missing", None, None]
    # Without hashing, a change that keeps the size is not seen: what a page of a list may ask.
    assert runs.outputs(rows[0].token, rehash=False)[0].problem is None


def test_outputs_computed_again_make_verdicts_stale(out):
    runs = Runs([out], KEY)
    row = runs.page()[0][0]
    runs.record(row.token, "ann", "decide", decision="accept")
    assert not runs.state(row.token).is_stale
    with Ledger(out / "run.sqlite") as ledger:
        ledger.requeue(ids=[row.item_id])
        (out / row.item_id / "result.bin").write_bytes(b"another result")
        ledger.claim("w", 60, row.item_id)
        digest = hashlib.sha256(b"another result").hexdigest()
        ledger.stage_outputs(row.item_id, [OutputRow("result", f"{row.item_id}/result.bin", digest, 14)])
        ledger.finish(row.item_id, "w", seconds=1.0, peak_mb=1.0, input_sha256="", metrics={}, flags=[])
    assert runs.state(row.token).is_stale
    assert runs.state(row.token).verdicts["ann"].stale


# --- the input


def test_the_input_is_found_where_it_was_where_it_is_said_to_be_or_not_at_all(tmp_path):
    root = tmp_path / "in" / "scans"
    root.mkdir(parents=True)
    (root / "a.dcm").write_bytes(b"pixels")
    with begin_run(tmp_path / "o" / "ct") as ledger:
        add_item(ledger, "1" * 16, root=root, inputs=[root / "a.dcm"])
    runs = Runs([tmp_path / "o" / "ct"], KEY)
    token = runs.page()[0][0].token
    with pytest.raises(InputError, match="not at hand.*--input FOLDER"):
        runs.input_files(token)
    assert Runs([tmp_path / "o" / "ct"], KEY, inputs=[root]).input_files(token)[0] == root
    with Ledger(tmp_path / "o" / "ct" / "run.sqlite") as ledger:
        ledger.note_origin(root)
    found, files = runs.input_files(token)
    assert found == root
    assert [row.relpath for row in files] == ["a.dcm"]
    status = (root / "a.dcm").stat()
    os.utime(root / "a.dcm", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(InputError, match="changed since the run"):
        runs.input_files(token)


def test_a_ledger_cannot_lead_out_of_the_input_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    root = tmp_path / "in"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    for relpath in ("../secret", "link", str(tmp_path / "secret")):
        with pytest.raises(InputError, match="outside of the input folder"):
            input_path(root, relpath)
        with pytest.raises(InputError, match="outside of the input folder"):
            find_root([root], [FileRow(relpath, 1, 1)])


def test_threads_share_a_worklist(out):
    """As the pages of several readers do: every decision is there once, and no page breaks meanwhile."""
    runs = Runs([out], KEY)
    tokens = [row.token for row in runs.page()[0]]
    errors = []

    def read(reader):
        try:
            for number in range(15):
                runs.page(sort="-key", reviewer=reader)
                runs.record(tokens[number % 5], reader, "decide", decision="accept" if number % 2 else "reject")
                runs.counts("status")
        except Exception as error:  # noqa: BLE001  (whatever it is, the test tells it)
            errors.append(repr(error))

    readers = [threading.Thread(target=read, args=(f"reader{number}",)) for number in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert errors == []
    store = runs.store(tokens[0])
    assert store.last_seq() == 6 * 15
    assert store.verify().ok
    assert all(row.readers == 6 for row in runs.page()[0])
