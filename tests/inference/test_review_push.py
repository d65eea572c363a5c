"""Accepted series go to the archive once; rejected ones never; what changed since is refused."""

import threading
import time

import pydicom
import pytest

from medseq.errors import InputError, RetryableError
from medseq.inference.review_push import PushQueue, to_archive
from medseq.inference.review_runs import Runs
from medseq.io.pacs_receiver import Receiver
from tests.inference.made_review import KEY, add_item, begin_run
from tests.io.orthanc import free_port
from tests.io.synthetic import save, stack


@pytest.fixture
def runs(tmp_path, rng):
    out = tmp_path / "ct"
    with begin_run(out) as ledger:
        for number in range(3):
            images = save(stack(rng, slices=2), out / f"{number:016x}")
            add_item(ledger, f"{number:016x}", outputs=[("result", path) for path in images])
        (out / "n.nii").write_bytes(b"x")
        add_item(ledger, "f" * 16, kind="nifti", outputs=[("result", out / "n.nii")])
    return Runs([out], KEY)


@pytest.fixture
def tokens(runs):
    return [row.token for row in runs.page()[0]]


class Archive:
    """Takes files, and fails as often as it is told to."""

    def __init__(self, *failures):
        self.sent, self.failures = [], list(failures)

    def __call__(self, paths):
        if self.failures:
            raise self.failures.pop(0)
        self.sent += [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def decide(runs, queue, token, decision, reader="ann"):
    runs.record(token, reader, "decide", decision=decision)
    return queue.offer(token, reader)


def states(runs):
    return [row.push for row in runs.page()[0]]


def test_accepted_series_are_sent_once_and_rejected_ones_never(runs, tokens):
    archive = Archive()
    queue = PushQueue(runs, archive)
    assert decide(runs, queue, tokens[0], "accept") == "queued"
    assert decide(runs, queue, tokens[1], "reject") is None
    assert decide(runs, queue, tokens[2], "second-look") is None
    assert states(runs) == ["queued", None, None, None]
    assert queue.step()
    assert states(runs) == ["sent", None, None, None]
    assert len(archive.sent) == 2
    # Accepting again, by the same or another reader, sends nothing again.
    assert decide(runs, queue, tokens[0], "accept", "bob") == "sent"
    assert decide(runs, queue, tokens[0], "accept") == "sent"
    assert not queue.step()
    assert len(archive.sent) == 2
    events = [record.event.decision for record in runs.store(tokens[0]).records() if record.event.kind == "push"]
    assert events == ["queued", "sent"]
    assert runs.store(tokens[0]).verify().ok


def test_what_is_taken_back_before_it_was_sent_is_withdrawn(runs, tokens):
    archive = Archive()
    queue = PushQueue(runs, archive)
    decide(runs, queue, tokens[0], "accept")
    runs.undo(tokens[0], "ann")
    assert queue.offer(tokens[0], "ann") == "withdrawn"
    decide(runs, queue, tokens[1], "accept")
    assert decide(runs, queue, tokens[1], "reject", "bob") == "withdrawn"
    assert not queue.step()
    assert archive.sent == []
    # And accepted again after all.
    assert decide(runs, queue, tokens[0], "accept") == "queued"
    assert queue.step()
    assert len(archive.sent) == 2


def test_a_disagreement_that_arises_while_it_waits_is_not_sent(runs, tokens):
    archive = Archive()
    queue = PushQueue(runs, archive)
    decide(runs, queue, tokens[0], "accept")
    runs.record(tokens[0], "bob", "decide", decision="reject")  # recorded, and the offer was lost with its process
    assert queue.step()
    assert (states(runs)[0], archive.sent) == ("withdrawn", [])
    runs.record(tokens[0], "cem", "adjudicate", decision="accept", role="adjudicator")
    assert queue.offer(tokens[0], "cem") == "queued"


def test_files_that_are_not_what_was_accepted_are_refused(runs, tokens):
    archive = Archive()
    queue = PushQueue(runs, archive)
    decide(runs, queue, tokens[0], "accept")
    path = runs.outputs(tokens[0])[0].path
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    decide(runs, queue, tokens[1], "accept")
    runs.outputs(tokens[1])[1].path.unlink()
    decide(runs, queue, tokens[3], "accept")
    assert queue.step()
    assert states(runs) == ["refused", "refused", None, "refused"]
    assert archive.sent == []
    why = [runs.store(token).state(runs.item(token).item_id) for token in tokens]
    assert all(state.status == "accept" for state in (why[0], why[1], why[3]))
    comments = {
        record.event.comment for record in runs.store(tokens[0]).records() if record.event.decision == "refused"
    }
    assert comments == {"the files are not what was accepted", "the result is no DICOM series"}


def test_trouble_that_may_pass_is_tried_again_later_and_ends(runs, tokens):
    clock, busy = Clock(), RetryableError("the archive is busy")
    archive = Archive(busy, busy)
    queue = PushQueue(runs, archive, attempts=3, wait_s=10, clock=clock)
    decide(runs, queue, tokens[0], "accept")
    assert not queue.step()
    assert states(runs)[0] == "queued"
    assert not queue.step()  # not yet due
    assert len(archive.failures) == 1
    clock.now = 10
    queue.step()
    clock.now = 29
    queue.step()
    assert archive.sent == []
    clock.now = 30
    assert queue.step()
    assert (states(runs)[0], len(archive.sent)) == ("sent", 2)
    archive.failures = [busy] * 3
    decide(runs, queue, tokens[1], "accept")
    for _ in range(3):
        queue.step()
        clock.now += 100
    assert states(runs)[1] == "failed"
    assert decide(runs, queue, tokens[1], "accept") == "queued"
    assert queue.step()
    assert states(runs)[1] == "sent"


def test_a_permanent_error_is_told_at_once(runs, tokens):
    queue = PushQueue(runs, Archive(InputError("the archive refuses this class")))
    decide(runs, queue, tokens[0], "accept")
    assert queue.step()
    [event] = [record.event for record in runs.store(tokens[0]).records() if record.event.decision == "failed"]
    assert event.comment == "the archive refuses this class"


def test_two_servers_send_an_item_once(runs, tokens):
    """One is in the middle of sending when the other looks."""
    inside, go, sent = threading.Event(), threading.Event(), []

    def slow(paths):
        inside.set()
        go.wait(10)
        sent.append(len(paths))

    first = PushQueue(runs, slow)
    second = PushQueue(Runs([runs.folder(tokens[0])], KEY), lambda paths: sent.append(-len(paths)))
    decide(runs, first, tokens[0], "accept")
    working = threading.Thread(target=first.step)
    working.start()
    assert inside.wait(10)
    assert not second.step()
    go.set()
    working.join(10)
    assert not second.step()
    assert sent == [2]


def test_the_worker_runs_until_it_is_stopped(runs, tokens):
    archive, stop = Archive(), threading.Event()
    queue = PushQueue(runs, archive)
    worker = threading.Thread(target=queue.run, args=(stop, 0.02))
    worker.start()
    decide(runs, queue, tokens[0], "accept")
    deadline = time.monotonic() + 20
    while states(runs)[0] != "sent" and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    worker.join(10)
    assert states(runs)[0] == "sent"


def test_to_a_real_receiver_over_the_network(runs, tokens, tmp_path):
    """C-STORE over loopback; a second server that lost its memory sends nothing new under other names."""
    port = free_port()
    receiver = Receiver(tmp_path / "received", port=port, ae_title="ARCHIVE")
    with receiver:
        queue = PushQueue(runs, to_archive(f"dicom://ARCHIVE@127.0.0.1:{port}"))
        decide(runs, queue, tokens[0], "accept")
        assert queue.step()
    assert states(runs)[0] == "sent"
    received = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "received").rglob("*.dcm")}
    own = {pydicom.dcmread(file.path).SOPInstanceUID for file in runs.outputs(tokens[0])}
    assert received == own


def test_an_archive_that_is_not_there_leaves_the_series_queued(runs, tokens):
    queue = PushQueue(runs, to_archive(f"dicom://ARCHIVE@127.0.0.1:{free_port()}"), attempts=2)
    decide(runs, queue, tokens[0], "accept")
    assert not queue.step()
    assert states(runs)[0] == "queued"
    with pytest.raises(InputError, match="address"):
        to_archive("ftp://somewhere")
