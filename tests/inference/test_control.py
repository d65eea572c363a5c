"""Choosing, dividing, previewing and steering runs."""

import threading
import time

import pytest

from medseq.errors import InputError, OutputError
from medseq.inference.check import check_run
from medseq.inference.choice import Choice
from medseq.inference.control import explain_item, pause_run, resume_run, retry_failed_items
from medseq.inference.ledger import Ledger
from medseq.inference.run import predict_folder
from medseq.inference.shards import Shard, merge_shards


@pytest.fixture
def place(make, tmp_path, rng):
    for name in ("one/a.nii", "one/b.nii", "two/a.nii", "two/c.nii.gz", "two/d.nii"):
        make.nifti(tmp_path / "in" / name, make.head(rng, 1, 16))
    return tmp_path


@pytest.fixture
def words(make, mr_bundle, place):
    return {"bundle": mr_bundle, "input": place / "in", "modality": "MR", "created_utc": make.created}


def order(out):
    """Relative paths in the order in which they were begun."""
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        begun = [
            (event.ts, ledger.files(item.id)[0].relpath)
            for item in ledger.items()
            for event in ledger.events(item.id)
            if event.state == "running"
        ]
    return [name for _, name in sorted(begun)]


def test_patterns_choose_and_order(place, words):
    summary = predict_folder(
        output=place / "out", include=["*.nii"], exclude=["two/d*"], priority=["two/*", "b.nii"], **words
    )
    assert (summary.counts["done"], summary.counts["skipped"]) == (3, 2)
    assert order(place / "out") == ["two/a.nii", "one/b.nii", "one/a.nii"]
    assert "left out by --include or --exclude" in summary.report_path.read_text()
    # The rest later: what is done stays.
    assert predict_folder(output=place / "out", **words).processed == 2


def test_a_pattern_with_a_slash_means_the_path_and_one_without_the_name():
    choice = Choice(include=["a.nii", "two/*"])
    assert choice.wants("one/a.nii")
    assert choice.wants("two/deep/x.nii")
    assert not choice.wants("one/b.nii")
    assert not Choice(exclude=["*.NII"]).wants("x.NII")
    assert Choice(first=["x", "y"]).priority(["b/y", "b/x"]) == 2


def test_a_dry_run_tells_and_touches_nothing(place, words):
    plan = predict_folder(output=place / "out", dry_run=True, **words).plan
    assert (plan.items, plan.files, plan.done, plan.kinds["nifti"]) == (5, 5, 0, 5)
    assert plan.bytes == sum(path.stat().st_size for path in (place / "in").rglob("*.nii*"))
    assert plan.seconds > 0
    assert plan.peak_bytes > 0
    assert not (place / "out").exists()
    predict_folder(output=place / "out", include=["one/*"], **words)
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
    plan = predict_folder(output=place / "out", dry_run=True, **words).plan
    assert (plan.items, plan.done) == (3, 2)
    assert "done before  2" in plan.lines()
    assert {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")} == before


def test_shards_are_a_run_in_parts(make, place, words):
    predict_folder(output=place / "whole", **words)
    parts = [predict_folder(output=place / "out", shard=f"{i}/3", **words) for i in (1, 2, 3)]
    assert sum(part.counts["done"] for part in parts) == 5
    merged = merge_shards(place / "out", finished_utc=make.created)
    assert (merged.shards, merged.counts["done"]) == (3, 5)
    assert merged.report_path.is_file()
    assert make.tree(place / "out") == make.tree(place / "whole")
    assert not (place / "out" / "shards").exists()
    assert check_run(place / "out").exit_code == 0
    # It is a run like any other now.
    assert predict_folder(output=place / "out", **words).processed == 0


def test_a_merge_that_is_killed_is_finished_by_the_next(make, place, words, monkeypatch):
    predict_folder(output=place / "whole", **words)
    for i in (1, 2):
        predict_folder(output=place / "out", shard=f"{i}/2", **words)
    plain, calls = Ledger.adopt, []

    def cut(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, *args)

    monkeypatch.setattr(Ledger, "adopt", cut)
    with pytest.raises(KeyboardInterrupt):
        merge_shards(place / "out", finished_utc=make.created)
    monkeypatch.undo()
    assert merge_shards(place / "out", finished_utc=make.created).counts["done"] == 5
    assert make.tree(place / "out") == make.tree(place / "whole")
    assert check_run(place / "out").exit_code == 0


def test_an_incomplete_division_is_not_merged(make, place, words):
    with pytest.raises(OutputError, match="no shards to merge"):
        merge_shards(place / "out", finished_utc=make.created)
    predict_folder(output=place / "out", shard="2/3", **words)
    with pytest.raises(OutputError, match=r"the shards are not complete \(found 1 of 3; missing: 1, 3"):
        merge_shards(place / "out", finished_utc=make.created)
    for wrong in ("0/3", "4/3", "x", "1/0", "1-3"):
        with pytest.raises(InputError, match="not a shard"):
            Shard.parse(wrong)
    assert [sum(Shard(i, 4).owns(f"{n:016x}") for i in (1, 2, 3, 4)) for n in (0, 7, 2**63)] == [1, 1, 1]


def test_a_paused_run_begins_nothing_and_goes_on(place, words):
    out, begun = place / "out", []

    def pause_after_two(done, total, text):
        begun.append(done)
        if done == 2:
            pause_run(out)

    waker = threading.Thread(target=lambda: (time.sleep(1.5), begun.append("awake"), resume_run(out)))
    waker.start()
    summary = predict_folder(output=out, progress=pause_after_two, **words)
    waker.join()
    assert (summary.exit_code, summary.counts["done"]) == (0, 5)
    assert begun == [0, 1, 2, "awake", 3, 4, 5]
    assert resume_run(out) is False
    with pytest.raises(OutputError, match="no run was recorded here"):
        pause_run(place / "in")


def test_explain_and_retry_failed(place, words):
    path = place / "in" / "cut.nii"
    path.write_bytes((place / "in" / "one" / "a.nii").read_bytes()[:-99])
    out = place / "out"
    assert predict_folder(output=out, **words).exit_code == 3
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        [bad] = [item.id for item in ledger.items("failed")]
        good = next(item.id for item in ledger.items("done"))
    told = explain_item(bad[:9], out)
    assert told.item.state == "failed"
    assert [event.state for event in told.events] == ["queued", "running", "failed"]
    assert "medseq run retry-failed OUT" in told.next
    assert "cut.nii" not in "\n".join(told.lines())
    assert "cut.nii" in "\n".join(explain_item(bad, out, show_identifiers=True).lines())
    assert explain_item(good, out).next == "nothing: its results are in place"
    (out / good / "result.nii.gz").unlink()
    assert "missing" in "\n".join(explain_item(good, out).lines())
    for wrong, message in (("zz", "no such item"), ("", "several items begin like this")):
        with pytest.raises(InputError, match=message):
            explain_item(wrong, out)
    assert retry_failed_items(out) == 1
    assert "computed by the run that is working, or by the next" in explain_item(bad, out).next
    assert predict_folder(output=out, **words).processed == 2


def test_every_item_has_a_page_that_the_report_links(place, words):
    (place / "in" / "cut.nii").write_bytes(b"broken")
    out = place / "out"
    page = predict_folder(output=out, **words).report_path.read_text()
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        items = [item for item in ledger.items() if item.state in ("done", "failed")]
    assert len(items) == 6
    for item in items:
        assert f"href='report/{item.id}.html'" in page
        own = (out / "report" / f"{item.id}.html").read_text()
        assert "href='../report.html'" in own
        assert "Research use only" in own
        assert ("After - before" in own) == (item.state == "done")
        assert item.reason is None or item.reason_code in own
        assert "default-src 'none'" in own
        assert "<script" not in own
