import json
import logging
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from medseq.errors import BundleError, InputError, OutputError
from medseq.inference.ledger import Ledger
from medseq.inference.run import check_run, predict_folder


@pytest.fixture
def place(make, tmp_path, rng):
    """An input folder with two CT series and a text file."""
    make.series(tmp_path / "in" / "a", make.head(rng, 3))
    make.series(tmp_path / "in" / "b", make.head(rng, 2))
    (tmp_path / "in" / "notes.txt").write_text("hello")
    return tmp_path


def states(out):
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        return {item.id: (item.state, item.attempts) for item in ledger.items() if item.kind != "other"}


def test_a_folder_of_dicom_becomes_a_folder_of_dicom(place, ct_bundle, make):
    summary = predict_folder(ct_bundle, place / "in", place / "out")
    assert (summary.exit_code, summary.processed) == (0, 2)
    assert summary.counts == {"queued": 0, "running": 0, "done": 2, "failed": 0, "skipped": 1}
    assert summary.report_path == place / "out" / "report.html"
    top = {path.name for path in (place / "out").iterdir()}
    assert top == {"run.sqlite", "report.json", "report.html", "report", ".run.lock", *states(place / "out")}
    for item_id in states(place / "out"):
        series = sorted((place / "out" / item_id / "result").iterdir())
        assert [path.name for path in series] == [f"{n:04d}.dcm" for n in range(1, len(series) + 1)]
        first = dcmread(series[0])
        assert first.SeriesDescription.startswith("RUO medseq tiny-ct")
        assert (place / "out" / item_id / "preview.json").is_file()


def test_nifti_in_gives_nifti_out(make, mr_bundle, tmp_path, rng):
    array = 200 + 100 * rng.random((4, 20, 24))
    path = make.nifti(tmp_path / "in" / "brain.nii", array)
    summary = predict_folder(mr_bundle, tmp_path / "in", tmp_path / "out", modality="MR", strength=0.0)
    assert summary.exit_code == 0
    [item_id] = states(tmp_path / "out")
    source, result = nib.load(path), nib.load(tmp_path / "out" / item_id / "result.nii.gz")
    np.testing.assert_array_equal(result.affine, source.affine)
    # Strength 0: the input, back in its own integers.
    np.testing.assert_array_equal(np.asarray(result.dataobj), np.asarray(source.dataobj))


def test_a_second_run_does_nothing_and_changes_nothing(place, ct_bundle, make):
    predict_folder(ct_bundle, place / "in", place / "out")
    before = make.tree(place / "out")
    times = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*.dcm")}
    summary = predict_folder(ct_bundle, place / "in", place / "out")
    assert (summary.exit_code, summary.processed) == (0, 0)
    assert make.tree(place / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_two_runs_write_the_same_bytes(place, ct_bundle, make):
    for name in ("out1", "out2"):
        predict_folder(ct_bundle, place / "in", place / name, created_utc=make.created, difference=True)
    assert make.tree(place / "out1") == make.tree(place / "out2")


def test_a_new_item_is_added_and_a_changed_one_is_repeated(place, ct_bundle, mr_bundle, make, rng):
    make.nifti(place / "nii" / "x.nii", make.head(rng, 2))
    make.nifti(place / "nii" / "y.nii", make.head(rng, 2))
    predict_folder(mr_bundle, place / "nii", place / "out", modality="MR")
    before = make.tree(place / "out")
    make.nifti(place / "nii" / "y.nii", make.head(rng, 2) + 7)
    os.utime(place / "nii" / "y.nii", ns=(1, 1))
    make.nifti(place / "nii" / "z.nii", make.head(rng, 2))
    summary = predict_folder(mr_bundle, place / "nii", place / "out", modality="MR")
    assert (summary.processed, summary.counts["done"]) == (2, 3)
    after = make.tree(place / "out")
    assert sum(before[name] == after[name] for name in before) == 2
    assert len(after) == 6


def test_an_input_that_went_away_leaves_its_result(place, ct_bundle, make):
    predict_folder(ct_bundle, place / "in", place / "out")
    before = make.tree(place / "out")
    (place / "in" / "b").rename(place / "b")
    summary = predict_folder(ct_bundle, place / "in", place / "out")
    assert (summary.exit_code, summary.counts["done"]) == (0, 2)
    assert make.tree(place / "out") == before
    assert "its input is no longer in the folder" in summary.report_path.read_text()


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_result_that_went_away_is_made_again(place, ct_bundle, make, damage):
    predict_folder(ct_bundle, place / "in", place / "out", created_utc=make.created)
    before = make.tree(place / "out")
    victim = next((place / "out").glob("*/result/0001.dcm"))
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-10])
    summary = predict_folder(ct_bundle, place / "in", place / "out")
    assert summary.processed == 1
    assert make.tree(place / "out") == before


def test_verify_hashes_results_and_inputs_again(place, ct_bundle, make):
    predict_folder(ct_bundle, place / "in", place / "out")
    before = make.tree(place / "out")
    victim = next((place / "out").glob("*/result/0001.dcm"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert predict_folder(ct_bundle, place / "in", place / "out").processed == 0, "sizes and times are trusted"
    assert predict_folder(ct_bundle, place / "in", place / "out", verify=True).processed == 1
    assert make.tree(place / "out") == before
    source = place / "in" / "a" / "slice0000.dcm"
    status, data = source.stat(), bytearray(source.read_bytes())
    data[-1] ^= 1
    source.write_bytes(data)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert predict_folder(ct_bundle, place / "in", place / "out").processed == 0
    assert predict_folder(ct_bundle, place / "in", place / "out", verify=True).processed == 1


def test_check_run_finds_every_kind_of_damage(place, ct_bundle):
    out = place / "out"
    predict_folder(ct_bundle, place / "in", out)
    good = check_run(out)
    assert (good.exit_code, good.verified, good.problems) == (0, 7, ())
    series = sorted(out.glob("*/result/*.dcm"))
    series[0].unlink()
    data = bytearray(series[1].read_bytes())
    data[-1] ^= 1
    series[1].write_bytes(data)
    bad = check_run(out)
    assert (bad.exit_code, bad.verified) == (3, 5)
    assert sorted(problem.what for problem in bad.problems) == ["changed", "missing"]
    assert {problem.item_id for problem in bad.problems} <= set(states(out))
    with Ledger(out / "run.sqlite") as ledger:
        ledger.requeue(ids=list(states(out))[:1])
    assert "not finished" in {problem.what for problem in check_run(out).problems}
    with pytest.raises(OutputError, match="no run was recorded here"):
        check_run(place / "in")


def test_another_bundle_or_other_parameters_are_refused_unless_a_new_run_is_asked_for(place, ct_bundle, make):
    out = place / "out"
    predict_folder(ct_bundle, place / "in", out)
    before = make.tree(out)
    other = make.bundle(place / "other-ct", weights_seed=5)
    with pytest.raises(OutputError, match=r"another bundle .*\(--new-run\)"):
        predict_folder(other, place / "in", out)
    with pytest.raises(OutputError, match=r"another parameters .*strength was 1.0, is 0.5; .*\(--new-run\)"):
        predict_folder(ct_bundle, place / "in", out, strength=0.5)
    assert make.tree(out) == before
    summary = predict_folder(other, place / "in", out, new_run=True)
    assert (summary.exit_code, summary.processed) == (0, 2)
    assert make.tree(out / "previous" / "1") == before
    assert check_run(out / "previous" / "1").exit_code == 0
    assert check_run(out).exit_code == 0
    assert (out / "previous" / "1" / "report.html").is_file()
    predict_folder(ct_bundle, place / "in", out, new_run=True)
    assert check_run(out / "previous" / "2").exit_code == 0


def test_source_names_are_kept(make, ct_bundle, tmp_path, rng):
    make.series(tmp_path / "in" / "p1" / "scan", make.head(rng, 2))
    make.nifti(tmp_path / "in" / "p2" / "brain.v2.nii.gz", make.head(rng, 2))
    out = tmp_path / "out"
    words = {"names": "source", "modality": "CT", "difference": True}
    summary = predict_folder(ct_bundle, tmp_path / "in", out, **words)
    assert summary.exit_code == 0
    [series_id] = [item_id for item_id in states(out) if (out / "p1" / "scan" / item_id).is_dir()]
    names = set(make.tree(out))
    assert {name for name in names if not name.startswith("preview/")} == {
        *(f"p1/scan/{series_id}/{role}/{n:04d}.dcm" for role in ("result", "difference") for n in (1, 2)),
        f"p1/scan/{series_id}/difference_map/0001.dcm",
        "p2/brain.v2.nii.gz",
        "p2/brain.v2_difference.nii.gz",
    }
    assert len([name for name in names if name.startswith("preview/")]) == 2
    assert check_run(out).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert "brain" not in json.dumps(report)
    assert predict_folder(ct_bundle, tmp_path / "in", out, **words).processed == 0


def test_source_names_never_replace_a_foreign_file(make, mr_bundle, tmp_path, rng):
    make.nifti(tmp_path / "in" / "x.nii", make.head(rng, 1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.nii").write_bytes(b"precious")
    summary = predict_folder(mr_bundle, tmp_path / "in", tmp_path / "out", names="source", modality="MR")
    assert summary.exit_code == 3
    assert (tmp_path / "out" / "x.nii").read_bytes() == b"precious"
    assert "a file of this name is already in the output folder" in summary.report_path.read_text()


def test_retry_failed_tries_again_only_when_asked(make, mr_bundle, tmp_path, rng):
    path = make.nifti(tmp_path / "in" / "x.nii", make.head(rng, 2))
    good = path.read_bytes()
    status = path.stat()
    path.write_bytes(b"\0" * len(good))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    words = {"modality": "MR"}
    first = predict_folder(mr_bundle, tmp_path / "in", tmp_path / "out", **words)
    assert (first.exit_code, first.processed) == (3, 1)
    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert predict_folder(mr_bundle, tmp_path / "in", tmp_path / "out", **words).processed == 0
    again = predict_folder(mr_bundle, tmp_path / "in", tmp_path / "out", retry_failed=True, **words)
    assert (again.exit_code, again.processed) == (0, 1)


def test_a_modality_said_by_the_caller_is_recorded(make, ct_bundle, tmp_path, rng):
    make.series(tmp_path / "in", make.head(rng, 2), modality="MR")
    refused = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out1")
    assert refused.exit_code == 3
    assert "found MR, wanted CT" in (tmp_path / "out1" / "report.html").read_text()
    summary = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out2", modality="CT")
    assert summary.exit_code == 0
    assert "modality-declared" in (tmp_path / "out2" / "report.html").read_text()
    with pytest.raises(InputError, match=r"bundle is for another modality \(found MR, wanted CT\)"):
        predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out3", modality="MR")
    with pytest.raises(InputError, match="modality is unknown .*found XR"):
        predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out3", modality="XR")
    with pytest.raises(InputError, match="names is unknown"):
        predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out3", names="patient")
    assert not (tmp_path / "out3").exists()


def test_uneven_slices_stay_dicom_or_are_resampled_to_nifti(make, ct_bundle, tmp_path, rng):
    make.series(tmp_path / "in", make.head(rng, 5), positions=[0, 2, 4.5, 6, 8])
    kept = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out1")
    assert kept.exit_code == 0
    assert len(list((tmp_path / "out1").glob("*/result/*.dcm"))) == 5
    resampled = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out2", resample=True)
    assert resampled.exit_code == 0
    [path] = (tmp_path / "out2").glob("*/result.nii.gz")
    assert nib.load(path).shape == (48, 48, 5)
    assert "interpolated from uneven spacing" in resampled.report_path.read_text()


def test_progress_counts_up_and_ends(place, ct_bundle):
    calls = []
    predict_folder(ct_bundle, place / "in", place / "out", progress=lambda *args: calls.append(args))
    assert [call[:2] for call in calls] == [(0, 2), (1, 2), (2, 2)]


def test_a_single_file_can_be_predicted(make, mr_bundle, tmp_path, rng):
    path = make.nifti(tmp_path / "x.nii.gz", make.head(rng, 1))
    summary = predict_folder(mr_bundle, path, tmp_path / "out", modality="MR")
    assert (summary.exit_code, summary.counts["done"]) == (0, 1)


def test_a_bad_bundle_leaves_nothing(place, ct_bundle):
    (ct_bundle.folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="weights were changed"):
        predict_folder(str(ct_bundle.folder), place / "in", place / "out")
    assert not (place / "out").exists()


def test_no_planted_identifier_reaches_a_message_a_log_or_the_report(make, ct_bundle, tmp_path, rng, caplog):
    """Names stand in headers, folder names and file names of good, broken and foreign files."""
    caplog.set_level(logging.DEBUG)
    person = make.planted[2]
    folder = tmp_path / "in" / person
    make.series(folder / "good", make.head(rng, 2), name=person)
    broken = make.series(folder / "cut", make.head(rng, 3), name=person)
    broken[1].write_bytes(broken[1].read_bytes()[:1500])
    double = make.series(folder / "twice", make.head(rng, 2), positions=[0, 0], name=person)
    make.series(folder / "gap", make.head(rng, 4), positions=[0, 2, 4, 10], name=person)
    make.series(folder / "mr", make.head(rng, 2), modality="MR", name=person)
    make.nifti(folder / f"{person}.nii.gz", make.head(rng, 2))
    (folder / f"{person}_empty.nii").write_bytes(b"")
    (folder / f"{person}.txt").write_text(person)
    (folder / f"{person}_link").symlink_to(double[0])
    summary = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out")
    assert summary.exit_code == 3
    assert summary.counts["failed"] >= 4
    told = caplog.text + repr(summary) + "".join(str(problem) for problem in check_run(tmp_path / "out").problems)
    for name in ("report.json", "report.html"):
        told += (tmp_path / "out" / name).read_text()
    for preview in (tmp_path / "out").glob("*/preview.json"):
        told += preview.read_text()
    told += "".join(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    with Ledger(tmp_path / "out" / "run.sqlite", read_only=True) as ledger:
        told += "".join(f"{item.label}{item.reason}{item.flags}" for item in ledger.items())
    for planted in make.planted:
        assert planted not in told
        assert planted.lower() not in told.lower()


def test_show_identifiers_is_not_left_on(place, ct_bundle):
    from medseq.io.privacy import label

    predict_folder(ct_bundle, place / "in", place / "out", show_identifiers=True)
    assert label("someone") != "someone"


def test_a_cold_prediction_of_one_small_image_is_quick(make, ct_bundle, tmp_path, rng):
    make.series(tmp_path / "in", make.head(rng, 1, 64))
    script = (
        "import resource, sys\n"
        "from medseq.inference.run import predict_folder\n"
        "summary = predict_folder(sys.argv[1], sys.argv[2], sys.argv[3])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "sys.stdout.write(f'{summary.exit_code} {used.ru_utime + used.ru_stime:.2f} {\"monai\" in sys.modules}')\n"
    )
    arguments = [sys.executable, "-c", script, ct_bundle.folder, tmp_path / "in", tmp_path / "out"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    code, seconds, monai = re.split(" ", done.stdout) if done.stdout else pytest.fail(done.stderr)
    assert (code, monai) == ("0", "False")
    assert float(seconds) <= 12
