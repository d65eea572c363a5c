"""The service behind pages and routes, on real files: before and after of a series, pseudonyms, jobs, pushing."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from medseq.errors import InputError
from medseq.inference.found import item_id
from medseq.inference.ledger import Ledger, OutputRow
from medseq.inference.review_config import ReviewConfig
from medseq.inference.review_open import open_recon
from medseq.inference.review_service import Service
from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from medseq.io.dicom_facts import series_facts
from medseq.io.dicom_header import quiet
from tests.inference.made_review import CREATED, KEY, add_item, begin_run, small_run
from tests.io.synthetic import OBLIQUE, PATIENT_ID, PLANTED, save, stack


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", KEY.decode())


def restored(folder, rng, *, images=None):
    """A run over one DICOM series whose result is the series plus one HU; returns run folder, input, result."""
    root, out = folder / "input" / "ct", folder / "out" / "ct"
    inputs = save(images or stack(rng, orientation=OBLIQUE), root)
    [found], _, _ = group_dicom(inputs)
    reader = open_dicom(found)
    name = item_id("dicom", sorted(found.sop_uids))
    words = {"bundle_name": "x", "bundle_hash": "b" * 64, "params_hash": "p" * 64, "version": "0.1.0", "role": "result"}
    writer = DicomSeriesWriter(out / name / "result", created_utc=CREATED, **words)
    writer.begin(reader.header)
    writer.write(0, reader.read(0, reader.header.planes) + 1)
    result = list(writer.commit())
    with begin_run(out) as ledger:
        add_item(ledger, name, root=root, inputs=inputs, outputs=[("result", path) for path in result])
        ledger.note_origin(root)
    return out, inputs, result


def made(out, **words):
    return Service(ReviewConfig(folders=(out,), **words))


def test_before_and_after_of_a_series_lie_over_each_other(tmp_path, rng):
    out, *_ = restored(tmp_path, rng)
    service = made(out)
    token = service.runs.page()[0][0].token
    view = service.series(token)
    assert view.roles == ["before", "after", "difference"]
    assert view.link_refused is None
    assert view.missing == {}
    for plane in ("stack", "axial", "coronal", "sagittal"):
        found = view.roi("difference", plane, 1, (0, 0, 50, 50))
        assert (found["min"], found["max"]) == (1.0, 1.0)
    header = view.info()["header"]
    assert header["body_part"] == "HEAD"
    assert not [word for word in PLANTED if word in str(view.info()).lower()]
    # The same reader asks again: nothing is opened twice.
    assert service.series(token) is view
    service.forget(token)
    assert service.series(token) is not view
    service.close()


def test_pseudonyms_are_the_same_for_a_patient_and_need_the_key(tmp_path, rng, monkeypatch):
    first, *_ = restored(tmp_path / "a", rng)
    second, *_ = restored(tmp_path / "b", rng)
    other = stack(rng)
    for image in other:
        image.PatientID = "another one"
    third, *_ = restored(tmp_path / "c", rng, images=other)

    def pseudonym(out):
        service = made(out)
        found = service.series(service.runs.page()[0][0].token).info()["header"]["pseudonym"]
        service.close()
        return found

    assert pseudonym(first) == pseudonym(second) != pseudonym(third)
    assert PATIENT_ID not in pseudonym(first)
    with_key = pseudonym(first)
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", "another key of 32 bytes, or so ..")
    assert pseudonym(first) != with_key


def test_facts_of_a_series_hold_no_free_text(tmp_path, rng, caplog):
    images = stack(rng, slices=1)
    with quiet():
        images[0].Laterality, images[0].BodyPartExamined = "L", "Knee of Mrs. Smith"
        paths = save(images, tmp_path)
    [found], _, _ = group_dicom(paths)
    facts = series_facts(found.header)
    assert "Smith" not in caplog.text
    assert (facts.laterality, facts.body_part) == ("L", None)
    assert PATIENT_ID not in repr(facts)


def test_an_input_that_is_gone_leaves_the_result_and_says_so(tmp_path, rng):
    out, inputs, _ = restored(tmp_path, rng)
    inputs[0].unlink()
    service = made(out)
    view = service.series(service.runs.page()[0][0].token)
    assert view.roles == ["after"]
    assert "not at hand" in view.missing["before"]
    assert "--input" in view.missing["before"]
    service.close()


def test_a_result_that_is_gone_leaves_the_input_and_says_so(tmp_path, rng):
    out, _, result = restored(tmp_path, rng)
    result[1].unlink()
    service = made(out)
    view = service.series(service.runs.page()[0][0].token)
    assert view.roles == ["before"]
    assert "1 of 5 files missing" in view.missing["after"]
    service.close()


def test_a_run_that_is_computed_again_is_opened_again(tmp_path, rng):
    root, out = tmp_path / "input", tmp_path / "out"
    root.mkdir()
    name = item_id("nifti", ["a.nii"])
    path = out / name / "result.nii"
    path.parent.mkdir(parents=True)

    def written(value):
        nib.save(nib.Nifti1Image(np.full((4, 4, 3), value, "f4"), np.eye(4)), path)

    written(1.0)
    with begin_run(out, modality=("MR",), units="1") as ledger:
        add_item(ledger, name, kind="nifti", outputs=[("result", path)])
    service = made(out)
    token = service.runs.page()[0][0].token
    assert service.series(token).value("stack", 0, 1, 1)["after"] == 1.0
    written(2.0)
    with Ledger(out / "run.sqlite") as ledger:
        ledger.requeue(ids=[name])
        add_again(ledger, name, path)
    service.runs.refresh()
    assert service.series(token).value("stack", 0, 1, 1)["after"] == 2.0
    service.close()


def add_again(ledger, name, path):
    ledger.claim("w", 60, name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    relpath = path.relative_to(path.parents[1]).as_posix()
    ledger.stage_outputs(name, [OutputRow("result", relpath, digest, path.stat().st_size)])
    ledger.finish(name, "w", seconds=1.0, peak_mb=1.0, input_sha256="", metrics={}, flags=[])


def test_items_without_pictures_say_why(tmp_path):
    service = made(small_run(tmp_path / "ct", 1))
    token = service.runs.page()[0][0].token
    with pytest.raises(InputError, match="no picture of this item"):
        service.series(token)
    with pytest.raises(InputError, match="no raw data"):
        open_recon(service.runs, token, None)
    service.close()


def test_decisions_queue_for_the_archive_and_taking_back_withdraws(tmp_path, rng):
    out, *_ = restored(tmp_path, rng)
    service = made(out, push_to="dicom://ARCHIVE@127.0.0.1:9")
    token = service.runs.page()[0][0].token
    service.decide(token, "ann", decision="accept")
    assert service.runs.item(token).push == "queued"
    service.undo(token, "ann")
    assert service.runs.item(token).push == "withdrawn"
    service.close()
    plain = made(out)
    plain.decide(token, "ann", decision="accept")
    assert plain.push is None
    plain.close()


def test_runs_started_from_the_page_join_the_worklist_and_stay(tmp_path, rng):
    service = Service(ReviewConfig(workspace=tmp_path / "work"))
    assert service.runs.page() == ([], 0)
    folder = tmp_path / "work" / "jobs" / ("a" * 16)
    small_run(folder / "out", 2)
    (folder / "job.json").write_text(
        json.dumps(
            {"job_id": "a" * 16, "bundle": "b", "user": "ann", "source": "x", "created_utc": "2026", "state": "done"}
        )
    )
    service.adopt_jobs()
    service.adopt_jobs()
    assert service.runs.page()[1] == 2
    again = Service(ReviewConfig(workspace=tmp_path / "work"))
    assert again.runs.page()[1] == 2
    assert [row.token for row in again.runs.page()[0]] == [row.token for row in service.runs.page()[0]]


def test_nothing_under_review_is_no_error():
    service = Service(ReviewConfig())
    assert service.runs is None
    with pytest.raises(LookupError):
        service.series("a" * 24)
