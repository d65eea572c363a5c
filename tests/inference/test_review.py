"""The review store: nothing is lost, nothing changes unseen, and the state follows from the events."""

import hashlib
import hmac
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from medseq.errors import InputError, OutputError
from medseq.inference.review import Event, ReviewStore
from medseq.inference.review_key import audit_key, derived
from tests.inference.made_review import KEY


@pytest.fixture
def path(tmp_path):
    return tmp_path / "review.sqlite"


@pytest.fixture
def store(path):
    with ReviewStore(path, KEY) as opened:
        yield opened


def decide(store, reviewer="ann", item="i1", decision="accept", **words):
    return store.append(Event(reviewer, item, words.pop("kind", "decide"), decision=decision, **words))


def forge(path, *statements):
    """What somebody with the file, but without the key, can do."""
    with closing(sqlite3.connect(path)) as connection:
        for name in ("event_never_changes", "event_never_goes", "meta_never_changes", "meta_never_goes"):
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# --- the chain


def test_the_chain_is_an_hmac_over_the_row_and_the_code_before_it(store):
    decide(store, comment="α = β", score=3, view={"low": -160, "high": 240}, geometry=[{"type": "point", "x": 1.5}])
    decide(store, "bob", decision="reject", reason_code="noise-left")
    previous = "0" * 64
    for record in store.records():
        # Written out here, so that the format cannot change without this test: old stores must stay verifiable.
        e = record.event
        row = [record.seq, e.ts_utc, e.reviewer, e.role, e.item_id, e.output_sha256, e.bundle_hash, e.kind, e.decision]
        texts = [
            None if v is None else json.dumps(v, sort_keys=True, separators=(",", ":")) for v in (e.geometry, e.view)
        ]
        row += [e.reason_code, e.score, e.comment, *texts, e.target, record.app_version, previous]
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        assert record.mac == hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()
        assert record.prev_mac == previous
        previous = record.mac
    assert store.verify().ok
    assert store.verify().head == f"2:{previous}" == store.head()


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["UPDATE event SET decision='accept' WHERE seq=2"], "row 2: its content"),
        (["UPDATE event SET comment='harmless' WHERE seq=1"], "row 1: its content"),
        (["UPDATE event SET ts_utc='2020-01-01T00:00:00Z' WHERE seq=3"], "row 3: its content"),
        (["UPDATE event SET reviewer='eve' WHERE seq=3"], "row 3: its content"),
        (["UPDATE event SET output_sha256='x' WHERE seq=3"], "row 3: its content"),
        (["DELETE FROM event WHERE seq=2"], "row 2: missing"),
        (["DELETE FROM event WHERE seq=1"], "row 1: missing"),
        (["UPDATE event SET seq=9 WHERE seq=4"], "row 4: missing"),
        (
            [
                "INSERT INTO event SELECT 5, ts_utc, reviewer, role, item_id, output_sha256, bundle_hash, kind, "
                "decision, reason_code, score, comment, geometry_json, view_json, target, app_version, prev_mac, mac "
                "FROM event WHERE seq=4"
            ],
            "row 5: does not follow",
        ),
        # Renumbered, so that no gap tells.
        (["DELETE FROM event WHERE seq=2", "UPDATE event SET seq=seq-1 WHERE seq>2"], "row 2: does not follow"),
        (["UPDATE event SET mac=prev_mac WHERE seq=2"], "row 2: its content"),
    ],
)
def test_tampering_is_found(store, path, statements, problem):
    for number in range(4):
        decide(store, item=f"i{number}", decision="reject", comment="as it was")
    store.close()
    forge(path, *statements)
    with ReviewStore(path, KEY) as again:
        verdict = again.verify()
    assert not verdict.ok
    assert any(found.startswith(problem) for found in verdict.problems), verdict.problems


def test_rows_cut_off_at_the_end_are_missed_against_the_head(store, path):
    for number in range(4):
        decide(store, item=f"i{number}")
    noted, earlier = store.head(), f"2:{store.records()[1].mac}"
    store.close()
    forge(path, "DELETE FROM event WHERE seq>2")
    with ReviewStore(path, KEY) as again:
        # What is left is a whole chain: only the note tells.
        assert again.verify().ok
        assert again.verify(earlier).ok
        assert "row 4: the noted head is not in the store" in again.verify(noted).problems[0]
        decide(again, item="new", decision="reject")
        decide(again, item="newer", decision="reject")
        assert not again.verify(noted).ok


def test_a_head_that_is_none_is_refused(store):
    for head in ("", "1", "x:" + "0" * 64, "1:abc"):
        with pytest.raises(InputError, match="not a head of a review"):
            store.verify(head)


def test_a_chain_made_with_another_key_is_not_ours(store, path):
    decide(store)
    store.close()
    with pytest.raises(OutputError, match="another audit key"):
        ReviewStore(path, b"another key, as long as the first")
    forge(path, "DELETE FROM meta")
    with ReviewStore(path, b"another key, as long as the first") as stranger:
        assert stranger.verify().problems == ("row 1: its content is not what was written",)
        decide(stranger, "eve")
    with ReviewStore(path, KEY) as again:
        assert again.verify().problems == ("row 2: its content is not what was written",)


def test_rows_cannot_be_changed_while_the_triggers_stand(store, path):
    decide(store)
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "UPDATE event SET comment='x'",
            "DELETE FROM event",
            "DELETE FROM meta",
            "UPDATE meta SET value=1",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_one_in_many_random_changes_of_bytes_does_not_pass(store, path, rng):
    # The text of every row is looked for in the file and one character of it changed: verify must say so.
    for number in range(6):
        decide(store, "reviewer", item=f"item{number}", comment=f"comment number {number}")
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    places = [at for at in range(len(whole)) if whole[at:].startswith(b"comment number ")]
    assert len(places) >= 6
    for at in rng.choice(places, 3, replace=False):
        broken = bytearray(whole)
        broken[at + int(rng.integers(0, 14))] ^= 0x01
        path.write_bytes(bytes(broken))
        with ReviewStore(path, KEY, read_only=True) as again:
            assert not again.verify().ok


# --- several writers


WRITER = """
import sys
from medseq.inference.review import Event, ReviewStore
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with ReviewStore(path, {key!r}) as store:
    for number in range(count):
        store.append(Event(name, f"i{{number % 7}}", "decide", decision="accept", comment=f"{{name}} {{number}}"))
"""


def test_two_processes_that_append_at_once_lose_nothing(path):
    # Neither has created the file: that race is part of the test.
    code = WRITER.format(key=KEY)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name, "60"]) for name in ("ann", "bob")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    with ReviewStore(path, KEY) as store:
        records = store.records()
        assert [record.seq for record in records] == list(range(1, 121))
        said = {record.event.comment for record in records}
        assert said == {f"{name} {number}" for name in ("ann", "bob") for number in range(60)}
        assert store.verify().ok


def test_a_writer_that_is_killed_leaves_a_whole_chain(path):
    code = WRITER.format(key=KEY)
    for number in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path), f"killed{number}", "100000"])
        deadline = time.monotonic() + 60
        before = 0
        while time.monotonic() < deadline and not before:
            time.sleep(0.2)
            if path.exists():
                with ReviewStore(path, KEY, read_only=True) as store:
                    before = sum(record.event.reviewer == f"killed{number}" for record in store.records())
        writer.kill()
        writer.wait()
        with ReviewStore(path, KEY) as store:
            assert store.verify().ok
            # What was seen on the disk before the kill is there after it.
            found = [record.event.comment for record in store.records() if record.event.reviewer == f"killed{number}"]
            assert len(found) >= before > 0
            assert found == [f"killed{number} {k}" for k in range(len(found))]


def test_a_condition_is_asked_while_nobody_else_writes(store):
    first = store.append(Event("w", "i1", "push", role="system", decision="queued"), only_if=lambda found: not found)
    second = store.append(Event("w", "i1", "push", role="system", decision="queued"), only_if=lambda found: not found)
    assert (first, second) == (1, None)
    assert store.last_seq() == 1


def test_clocks_that_disagree_change_nothing_but_the_time(store):
    decide(store, "ann", decision="accept", ts_utc="2031-01-01T00:00:00Z")
    decide(store, "ann", decision="reject", ts_utc="2019-01-01T00:00:00Z")
    # The number decides: the later decision counts, although its clock is behind.
    verdict = store.state("i1").verdicts["ann"]
    assert (verdict.decision, verdict.ts_utc) == ("reject", "2019-01-01T00:00:00Z")
    assert store.verify().ok


# --- where a review stands


def test_what_counts_is_each_readers_last_word(store):
    decide(store, "ann", decision="accept", score=4)
    decide(store, "ann", decision="reject", score=2)
    decide(store, "bob", item="i2")
    state = store.state("i1")
    assert (state.status, state.score, list(state.verdicts)) == ("reject", 2.0, ["ann"])
    assert store.state("i3").status == "unreviewed"
    assert {item: found.status for item, found in store.states(["i1", "i2", "i3"]).items()} == {
        "i1": "reject",
        "i2": "accept",
        "i3": "unreviewed",
    }


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (["accept"], "accept"),
        (["accept", "accept"], "accept"),
        (["accept", "reject"], "disagreement"),
        (["second-look"], "second-look"),
        (["second-look", "accept"], "accept"),
        (["second-look", "accept", "reject"], "disagreement"),
        (["second-look", "second-look"], "second-look"),
    ],
)
def test_readers_together(store, said, status):
    for number, decision in enumerate(said):
        decide(store, f"reader{number}", decision=decision)
    assert store.state("i1").status == status


def test_the_adjudicator_settles_a_disagreement_and_may_take_it_back(store):
    decide(store, "ann", decision="accept")
    decide(store, "bob", decision="reject")
    decide(store, "cem", decision="reject", kind="adjudicate", role="adjudicator")
    assert store.state("i1").status == "reject"
    assert store.state("i1").adjudication.reviewer == "cem"
    assert store.undo("i1", "cem", "adjudicator") == 3
    assert store.state("i1").status == "disagreement"


def test_an_undo_is_an_event_and_the_decision_before_counts_again(store):
    decide(store, decision="accept")
    decide(store, decision="reject")
    assert store.undo("i1", "ann") == 2
    assert store.state("i1").status == "accept"
    assert store.undo("i1", "ann") == 1
    assert store.state("i1").status == "unreviewed"
    assert store.undo("i1", "ann") is None
    # Nothing is gone: the record tells what was decided and taken back.
    assert [record.event.kind for record in store.history("i1")] == ["decide", "decide", "undo", "undo"]
    assert store.verify().ok


@pytest.mark.parametrize(
    ("target", "reviewer", "item", "message"),
    [
        (9, "ann", "i1", "nothing to take back"),
        (1, "bob", "i1", "only its own author"),
        (1, "ann", "i2", "nothing to take back"),
        (2, "ann", "i1", "nothing to take back"),
    ],
)
def test_nobody_takes_back_what_is_not_theirs(store, target, reviewer, item, message):
    decide(store)
    store.append(Event("ann", "i1", "open"))
    with pytest.raises(InputError, match=message):
        store.append(Event(reviewer, item, "undo", target=target))
    assert store.last_seq() == 2


def test_a_verdict_about_other_outputs_is_stale(store):
    decide(store, output_sha256="a" * 64)
    assert not store.state("i1", "a" * 64).is_stale
    assert store.state("i1", "b" * 64).is_stale
    decide(store, output_sha256="b" * 64)
    assert not store.state("i1", "b" * 64).is_stale


def test_annotations_assignment_and_push_are_part_of_the_state(store):
    store.append(
        Event("ann", "i1", "annotate", geometry=[{"type": "box", "x0": 1, "x1": 4}, {"type": "point", "x": 2}])
    )
    store.append(Event("lea", "i1", "assign", decision="ann", role="admin"))
    store.append(Event("w", "i1", "push", role="system", decision="queued"))
    state = store.state("i1")
    assert [(shape["type"], shape["reviewer"]) for shape in state.annotations] == [("box", "ann"), ("point", "ann")]
    assert (state.assignee, state.push) == ("ann", "queued")
    store.undo("i1", "ann")
    store.append(Event("lea", "i1", "assign", decision="", role="admin"))
    state = store.state("i1")
    assert (state.annotations, state.assignee) == ((), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "delete"}, "no such kind"),
        ({"kind": "decide", "decision": "maybe"}, "no such decision"),
        ({"kind": "decide", "decision": None}, "no such decision"),
        ({"kind": "decide", "decision": "accept", "score": 6}, "score is out of range"),
        ({"kind": "decide", "decision": "accept", "score": 0}, "score is out of range"),
        ({"kind": "undo"}, "names the event"),
        ({"kind": "open", "target": 3}, "names the event"),
        ({"kind": "open", "reviewer": ""}, "needs a reviewer"),
        ({"kind": "adjudicate", "decision": "accept"}, "may not do that"),
        ({"kind": "push", "decision": "sent"}, "may not do that"),
        ({"kind": "push", "decision": "sent", "role": "admin"}, "may not do that"),
        ({"kind": "decide", "decision": "accept", "role": "system"}, "may not do that"),
        ({"kind": "open", "role": "king"}, "may not do that"),
        ({"kind": "assign", "decision": "bob"}, "only an admin"),
        ({"kind": "assign", "decision": "bob", "role": "adjudicator"}, "only an admin"),
        ({"kind": "decide", "decision": "accept", "comment": "x" * 10_001}, "too long"),
    ],
)
def test_events_that_make_no_sense_are_refused(words, message):
    values = {"reviewer": "ann", "item_id": "i1", **words}
    with pytest.raises(InputError, match=message):
        Event(**values)


def test_a_reader_takes_a_case_and_gives_it_back(store):
    store.append(Event("ann", "i1", "assign", decision="ann"))
    assert store.state("i1").assignee == "ann"
    store.append(Event("ann", "i1", "assign", decision=""))
    assert store.state("i1").assignee is None


# --- the file


def test_a_store_of_a_newer_version_is_refused_and_not_touched(store, path):
    decide(store)
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA user_version=99")
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(OutputError, match="newer medseq.*version 99.*nothing was changed"):
            ReviewStore(path, KEY, read_only=read_only)
    assert path.read_bytes() == before


def test_a_damaged_store_is_a_message_and_stays_as_it_is(path, rng):
    path.write_bytes(b"SQLite format 3\0" + rng.bytes(5000))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="cannot be read.*nothing was changed"):
        ReviewStore(path, KEY)
    assert path.read_bytes() == before


def test_a_store_that_another_process_holds_is_a_message(store, path, monkeypatch):
    decide(store)
    monkeypatch.setattr("medseq.inference.review._BUSY_S", 0.05)
    with ReviewStore(path, KEY) as second, closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match="held by another process.*try again"):
            decide(second)
        # Reading goes on meanwhile.
        assert second.state("i1").status == "accept"
        holder.execute("ROLLBACK")
        assert decide(second, "bob") == 2


def test_reading_only_writes_nothing_and_needs_no_file(store, path, tmp_path):
    with ReviewStore(tmp_path / "none.sqlite", KEY, read_only=True) as empty:
        assert (empty.records(), empty.verify().rows) == ([], 0)
        with pytest.raises(OutputError, match="for reading only"):
            decide(empty)
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "begun.sqlite").touch()
    with ReviewStore(tmp_path / "begun.sqlite", KEY, read_only=True) as begun:
        assert begun.records() == []
    assert (tmp_path / "begun.sqlite").read_bytes() == b""
    decide(store)
    with ReviewStore(path, KEY, read_only=True) as reader:
        assert reader.state("i1").status == "accept"
        decide(store, decision="reject")
        assert reader.state("i1").status == "reject"


def test_the_store_is_for_its_owner_only(store, path):
    assert path.stat().st_mode & 0o077 == 0


# --- the key


def test_the_key_comes_from_the_environment_or_from_a_file_of_its_owner(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", "0123456789abcdef")
    assert audit_key(tmp_path).secret == b"0123456789abcdef"
    assert audit_key(tmp_path).notice == ""
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", "short")
    with pytest.raises(InputError, match="too short"):
        audit_key(tmp_path)
    monkeypatch.delenv("MEDSEQ_AUDIT_KEY")
    home = tmp_path / "home"
    first = audit_key(tmp_path / "run", home)
    assert first.secret == audit_key(tmp_path / "run", home).secret
    assert len(first.secret) == 64
    assert "MEDSEQ_AUDIT_KEY" in first.notice
    assert (home / "audit.key").stat().st_mode & 0o077 == 0
    assert first.secret.decode() not in repr(first)
    (home / "audit.key").chmod(0o644)
    with pytest.raises(OutputError, match="open to others"):
        audit_key(tmp_path / "run", home)


def test_the_key_never_lies_beside_what_it_protects(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSEQ_AUDIT_KEY", raising=False)
    with pytest.raises(OutputError, match="beside what it protects"):
        audit_key(tmp_path, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_derived_keys_differ_by_purpose():
    assert derived(KEY, "a") != derived(KEY, "b")
    assert derived(KEY, "a") == derived(KEY, "a")
