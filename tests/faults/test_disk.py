"""Disks and shares that refuse: space, permissions, renames, injected where a machine cannot be made to."""

import errno
import os
from pathlib import Path

import pytest

from medseq.inference.check import check_run
from medseq.inference.ledger import Ledger
from medseq.inference.ledger_file import is_network
from medseq.inference.run import predict_folder


@pytest.fixture
def place(make, tmp_path, rng):
    for number in range(5):
        make.volume(tmp_path / "in" / f"v{number}.nii", rng)
    return tmp_path


def words(place, make, out="out", **more):
    bundle = place / "tiny"
    bundle = make.bundle(bundle) if not bundle.exists() else bundle
    given = {"modality": "MR", "trust_packages": ("obedient",), "workers": 0, "created_utc": make.created}
    return {"bundle": bundle, "input": place / "in", "output": place / out, **given, **more}


def failing(monkeypatch, owner, name, error, when):
    """Calls of `owner.name` number `when` raise."""
    plain, calls = getattr(owner, name), []

    def call(*args, **keywords):
        calls.append(1)
        if len(calls) in when:
            raise OSError(error, os.strerror(error), "/somewhere/DOE_JOHN")
        return plain(*args, **keywords)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_a_rename_that_fails_once_is_tried_again(make, place, monkeypatch, caplog):
    """As on NFS, where a busy server answers EIO or ESTALE and the next try succeeds."""
    predict_folder(**words(place, make, "calm"))
    for number, error in enumerate((errno.EIO, errno.ESTALE)):
        failing(monkeypatch, os, "replace", error, {4 + number})
        summary = predict_folder(**words(place, make, f"out{number}"))
        monkeypatch.undo()
        assert (summary.exit_code, summary.counts["done"]) == (0, 5)
        assert make.tree(place / f"out{number}") == make.tree(place / "calm")
    assert "will be tried again (retry)" in caplog.text
    assert "DOE_JOHN" not in caplog.text


def test_permission_lost_in_mid_run_fails_what_it_hits_and_says_so(make, place, monkeypatch):
    given = words(place, make)
    failing(monkeypatch, os, "replace", errno.EACCES, range(5, 999))
    summary = predict_folder(**given)
    monkeypatch.undo()
    assert summary.exit_code == 3
    assert summary.counts["done"] >= 1
    assert summary.counts["done"] + summary.counts["failed"] == 5
    with Ledger(place / "out" / "run.sqlite", read_only=True) as ledger:
        reasons = {item.reason for item in ledger.items("failed")}
    assert all("cannot be written (found EACCES); choose a folder that can be written" in reason for reason in reasons)
    assert check_run(place / "out").exit_code == 0
    # Permission is back.
    assert predict_folder(**words(place, make), retry_failed=True).counts["done"] == 5
    assert check_run(place / "out").exit_code == 0


def test_a_full_disk_is_not_waited_for_and_the_next_run_goes_on(make, place, monkeypatch):
    given = words(place, make)
    failing(monkeypatch, os, "fsync", errno.ENOSPC, {2})
    summary = predict_folder(**given)
    monkeypatch.undo()
    assert (summary.counts["done"], summary.counts["failed"]) == (4, 1)
    assert "free space and run again" in (place / "out" / "report.json").read_text()
    summary = predict_folder(**words(place, make))
    assert (summary.exit_code, summary.processed, summary.counts["done"]) == (0, 1, 5)


def test_on_a_network_share_the_ledger_needs_no_shared_memory(make, place, monkeypatch):
    monkeypatch.setattr("medseq.inference.ledger_file.is_network", lambda folder: True)
    seen = []

    def look(done, total, text):
        seen.extend(path.suffix for path in (place / "out").glob("run.sqlite-*"))
        seen.extend(path.name.rpartition("-")[2] for path in (place / "out").glob("run.sqlite-*"))

    summary = predict_folder(**words(place, make), progress=look)
    assert (summary.exit_code, summary.counts["done"]) == (0, 5)
    assert not {"wal", "shm"} & set(seen)
    assert sorted(path.name for path in (place / "out").glob("run.sqlite*")) == ["run.sqlite"]
    monkeypatch.undo()
    assert predict_folder(**words(place, make)).processed == 0


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/", False), ("/data", True), ("/data/deep/er", True), ("/data/local", False), ("/my share/x", True)],
)
def test_network_shares_are_known_by_their_mounts(folder, expected):
    mounts = "\n".join(
        [
            "/dev/sda1 / ext4 rw 0 0",
            "server:/export /data nfs4 rw,vers=4.2 0 0",
            "/dev/sdb1 /data/local xfs rw 0 0",
            "//server/share /my\\040share cifs rw 0 0",
        ]
    )
    assert is_network(Path(folder), mounts) is expected
