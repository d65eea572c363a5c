"""Archives inside an input folder: read in their place, resumed, refused alone; nothing else changes its name."""

import json
import os
import zipfile

import pytest

from medseq.inference.choice import Choice
from medseq.inference.discover import discover
from medseq.inference.input_place import archives_of, input_place
from medseq.inference.run import check_run, predict_folder
from tests.inference.test_unpack import tarred, zipped


@pytest.fixture
def source(make, tmp_path, rng):
    """Plain files at three depths, an archive at two of them, and a link that is nobody's business."""
    root = tmp_path / "in"
    for name in ("top.nii", "site/beside.nii", "other/deep/far.nii"):
        make.nifti(root / name, make.head(rng, 2))
    packed = make.nifti(tmp_path / "p.nii", make.head(rng, 2)).read_bytes()
    zipped(root / "site" / "study.zip", [("a/x.nii", packed), ("notes.txt", b"hello")])
    tarred(root / "more.tar.gz", [("y.nii", packed[:352] + packed[352:][::-1])])
    (root / "other" / "link.nii").symlink_to(root / "top.nii")
    (root / ".hidden").write_text("x")
    return root


def found(source, out):
    out.mkdir()
    with input_place(source, archives_of(source, Choice()), out) as place:
        return {
            item.files[0].relpath: (item.state, item.reason_code, item.item_id, item.files)
            for item in discover(place.folder, links=place.links, broken=place.broken)
        }


def test_packed_files_stand_where_their_archive_lies(source, tmp_path):
    items = found(source, tmp_path / "out")
    assert {name for name, (state, *_) in items.items() if state == "queued"} == {
        *("top.nii", "site/beside.nii", "other/deep/far.nii"),
        *("site/study.zip/a/x.nii", "more.tar.gz/y.nii"),
    }
    reasons = {name: code for name, (state, code, *_) in items.items() if state == "skipped"}
    assert reasons == {".hidden": "hidden", "other/link.nii": "link", "site/study.zip/notes.txt": "not-dicom"}
    assert not (tmp_path / "out" / ".input").exists()
    # What is not packed is the item, and has the size and the time, that it has without any archive.
    for archive in archives_of(source, Choice()):
        archive.unlink()
    plain = found(source, tmp_path / "plain")
    assert {name: items[name] for name in plain} == plain
    assert {"top.nii", "site/beside.nii", "other/deep/far.nii", "other/link.nii"} <= set(plain)


def test_a_run_computes_them_and_resumes(make, mr_bundle, source, tmp_path):
    words = {"modality": "MR", "created_utc": make.created}
    before = sorted((path, path.lstat().st_mtime_ns) for path in source.rglob("*"))
    summary = predict_folder(mr_bundle, source, tmp_path / "out", **words)
    assert (summary.exit_code, summary.processed, summary.counts["done"]) == (0, 5, 5)
    assert check_run(tmp_path / "out").exit_code == 0
    assert predict_folder(mr_bundle, source, tmp_path / "out", **words).processed == 0
    assert predict_folder(mr_bundle, source, tmp_path / "two", workers=2, **words).counts["done"] == 5
    assert make.tree(tmp_path / "out") == make.tree(tmp_path / "two")
    assert sorted((path, path.lstat().st_mtime_ns) for path in source.rglob("*")) == before, "the input is as it was"
    # A file beside an archive that changes is computed again, and only it.
    os.utime(source / "top.nii", (1, 1))
    assert predict_folder(mr_bundle, source, tmp_path / "out", **words).processed == 1


def test_a_bad_archive_fails_alone(make, mr_bundle, source, tmp_path):
    whole = (source / "site" / "study.zip").read_bytes()
    (source / "site" / "study.zip").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(source / "escape.zip", "w") as archive:
        archive.writestr("../../evil.nii", b"x")
    summary = predict_folder(mr_bundle, source, tmp_path / "out", modality="MR")
    assert (summary.exit_code, summary.counts["done"], summary.counts["failed"]) == (3, 4, 2)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    reasons = sorted(item["reason"] for item in report["items"] if item["state"] == "failed")
    assert "a name in the archive leads outside of it" in reasons[0]
    assert "the archive is damaged" in reasons[1]
    assert not list(tmp_path.rglob("evil.nii"))
    assert not (tmp_path / "out" / ".input").exists()


def test_an_archive_that_is_not_wanted_stays_packed(mr_bundle, source, tmp_path):
    summary = predict_folder(mr_bundle, source, tmp_path / "out", modality="MR", exclude=["*.zip"])
    assert (summary.exit_code, summary.counts["done"]) == (0, 4)


def test_a_dry_run_looks_into_archives_and_leaves_nothing(mr_bundle, source, tmp_path):
    summary = predict_folder(mr_bundle, source, tmp_path / "out", modality="MR", dry_run=True)
    assert summary.plan.items == 5
    assert not (tmp_path / "out").exists()
