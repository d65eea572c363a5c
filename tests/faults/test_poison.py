"""Items that take their process along: each fails with a reason, and all others are as if it had never been there."""

import json
import os

import numpy as np
import pytest

from medseq.errors import BackendError, InputError
from medseq.inference.check import check_run
from medseq.inference.ledger import Ledger
from medseq.inference.run import predict_folder


@pytest.fixture
def place(make, tmp_path, rng):
    """Six good volumes in an input folder, and what they become."""
    for number in range(6):
        make.volume(tmp_path / "in" / f"good{number}.nii", rng)
    return tmp_path


def words(place, bundle, out="out", **more):
    given = {"modality": "MR", "trust_packages": ("obedient",), "workers": 1, "created_utc": "2026-01-02T03:04:05Z"}
    return {"bundle": bundle, "input": place / "in", "output": place / out, **given, **more}


def items(out):
    """Reason code (None if done), attempts and events of each item, by label of its one file."""
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        return {ledger.files(item.id)[0].relpath: (item, ledger.events(item.id)) for item in ledger.items()}


def test_workers_write_the_bytes_of_one_process_and_leave_nothing(make, place):
    bundle = make.bundle(place / "tiny")
    assert predict_folder(**words(place, bundle, "one", workers=0)).exit_code == 0
    summary = predict_folder(**words(place, bundle, "two", workers=2))
    assert (summary.exit_code, summary.processed) == (0, 6)
    assert make.tree(place / "two") == make.tree(place / "one")
    assert not (place / "two" / ".work").exists()
    assert check_run(place / "two").exit_code == 0
    owners = {event.worker.partition("-")[0] for _, events in items(place / "two").values() for event in events[1:]}
    assert owners <= {"w1", "w2"}


def test_items_that_kill_their_worker_or_hang_fail_and_all_others_are_done(make, place, rng):
    bundle = make.bundle(place / "tiny")
    make.volume(place / "in" / "b_segfault.nii", rng, order=make.orders.segfault)
    make.volume(place / "in" / "h_hang.nii", rng, order=make.orders.hang)
    summary = predict_folder(**words(place, bundle, workers=2, item_timeout=6.0, retries=1))
    assert (summary.exit_code, summary.counts["done"], summary.counts["failed"]) == (3, 6, 2)
    for name, code, reason in (
        ("b_segfault.nii", "crash", r"the worker process died (SIGSEGV) while it computed this item"),
        ("h_hang.nii", "timeout", "it took longer than --item-timeout allows (6 s)"),
    ):
        item, events = items(place / "out")[name]
        assert (item.reason_code, item.reason) == (code, reason)
        assert item.attempts == 2
        assert [event.state for event in events] == ["queued", "running", "queued", "running", "failed"]
        assert [event.code for event in events] == [None, None, code, None, code]
        assert code in (place / "out" / "report.html").read_text()
    # Whoever was beside them was interrupted once at most, by each.
    assert all(item.attempts <= 3 for item, _ in items(place / "out").values())
    assert check_run(place / "out").exit_code == 0
    # A later run does not walk into them again unless it is told to.
    assert predict_folder(**words(place, bundle)).processed == 0


def test_an_item_that_takes_all_memory_is_tried_with_smaller_tiles(make, place, rng):
    bundle = make.bundle(place / "tiny")
    make.volume(place / "in" / "large.nii", rng, size=96, order=make.orders.eat)
    summary = predict_folder(**words(place, bundle, max_memory="1500M", tile=96, retries=3))
    assert (summary.exit_code, summary.counts["done"]) == (0, 7)
    item, events = items(place / "out")["large.nii"]
    assert "memory" in [event.code for event in events]
    assert "smaller-tiles" in [flag["code"] for flag in item.flags]
    assert "computed with smaller tiles" in (place / "out" / "report.json").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_memory_error_is_answered_with_smaller_tiles(make, place, rng, workers):
    bundle = make.bundle(place / "tiny")
    make.volume(place / "in" / "large.nii", rng, size=96, order=make.orders.oom)
    refused = predict_folder(**words(place, bundle, "none", retries=0, workers=0))
    assert (refused.exit_code, refused.counts["failed"]) == (3, 1)
    summary = predict_folder(**words(place, bundle, retries=2, workers=workers))
    assert (summary.exit_code, summary.counts["done"]) == (0, 7)
    item, _ = items(place / "out")["large.nii"]
    assert item.attempts == 2
    assert [flag["code"] for flag in item.flags if flag["level"] == "warn"] == ["smaller-tiles"]
    # A shift is the same in tiles of any size.
    assert np.array_equal(volume(place / "out" / item.id), volume(place / "in" / "large.nii") + 3)


def volume(path):
    import nibabel as nib

    return np.asarray(nib.load(path / "result.nii.gz" if path.is_dir() else path).dataobj)


def test_an_item_whose_estimate_is_above_the_limit_is_not_begun(make, place, rng):
    bundle = make.bundle(place / "tiny", tile=2048)
    make.volume(place / "in" / "huge.nii", rng, slices=1, size=1200)
    summary = predict_folder(**words(place, bundle, max_memory="700M", retries=0))
    assert (summary.exit_code, summary.counts["done"], summary.counts["failed"]) == (3, 6, 1)
    item, _ = items(place / "out")["huge.nii"]
    assert item.reason_code == "memory"
    assert "needs more memory than it may take (found" in item.reason


def test_corrupt_input_is_never_tried_again(make, place):
    bundle = make.bundle(place / "tiny")
    path = place / "in" / "cut.nii"
    path.write_bytes((place / "in" / "good0.nii").read_bytes()[:-500])
    summary = predict_folder(**words(place, bundle, retries=5))
    assert summary.counts["failed"] == 1
    item, events = items(place / "out")["cut.nii"]
    assert item.attempts == 1
    assert [event.state for event in events] == ["queued", "running", "failed"]


def test_what_the_workers_cannot_load_is_said_once_and_nothing_is_lost(make, place):
    bundle = make.bundle(place / "tiny")
    with pytest.raises(BackendError, match="CUDA"):
        predict_folder(**words(place, bundle, device="cuda"))
    with Ledger(place / "out" / "run.sqlite", read_only=True) as ledger:
        assert ledger.counts()["queued"] == 6
    assert predict_folder(**words(place, bundle)).counts["done"] == 6


def test_limits_are_checked_at_the_door(make, place):
    bundle = make.bundle(place / "tiny")
    for more, message in (
        ({"workers": -1}, "workers is out of range"),
        ({"workers": 0, "item_timeout": 5.0}, "limits of time and memory need worker processes"),
        ({"max_memory": "much"}, r"not a size \(found much, wanted a number with K, M, G or T"),
        ({"workers": 2, "max_memory": "100M"}, "the memory is not enough for the workers"),
    ):
        with pytest.raises(InputError, match=message):
            predict_folder(**words(place, bundle, "refused", **more))


def test_a_log_of_a_run_with_crashes_holds_no_name(make, place, rng, caplog):
    make.volume(place / "in" / "DOE_JOHN.nii", rng, order=make.orders.segfault)
    predict_folder(**words(place, make.bundle(place / "tiny"), retries=0))
    report = json.loads((place / "out" / "report.json").read_text())
    assert "crash" in caplog.text
    assert "DOE_JOHN" not in caplog.text + json.dumps(report) + os.fsdecode(b"")
