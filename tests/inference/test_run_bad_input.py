"""Bad input as `predict_folder` sees it: the message, and what is left on disk."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from medseq.errors import InputError, OutputError
from medseq.inference.run import check_run, predict_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def run(bundle, folder, **words):
    """Predict `folder`; returns the summary, the reasons of failed items, and the files of results."""
    out = folder.parent / "out"
    summary = predict_folder(bundle, folder, out, **words)
    report = json.loads((out / "report.json").read_text())
    reasons = [item["reason"] for item in report["items"] if item["state"] == "failed"]
    left = sorted(path.name for path in out.rglob("*") if path.suffix in (".dcm", ".gz", ".nii"))
    assert not (out / ".work").exists()
    assert not list(out.rglob("*.partial"))
    assert check_run(out).exit_code == 0, "what is recorded as done must be there"
    return summary, reasons, left


def test_an_empty_folder(ct_bundle, folder):
    with pytest.raises(
        InputError, match=r"nothing to process in the input \(found an empty folder, wanted DICOM images or"
    ):
        predict_folder(ct_bundle, folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()


def test_a_folder_of_text_files(ct_bundle, folder):
    for number in range(3):
        (folder / f"{number}.txt").write_text("hello")
    (folder / ".hidden").write_text("")
    with pytest.raises(InputError, match=r"nothing to process .*found 4 files: 3 not-dicom, 1 hidden"):
        predict_folder(ct_bundle, folder, folder.parent / "deep" / "out")
    assert not (folder.parent / "deep").exists()


def test_an_existing_output_folder_survives_an_empty_input(ct_bundle, folder):
    (folder.parent / "out").mkdir()
    with pytest.raises(InputError, match="nothing to process"):
        predict_folder(ct_bundle, folder, folder.parent / "out")
    assert list((folder.parent / "out").iterdir()) == []


def test_an_input_that_does_not_exist(ct_bundle, folder):
    with pytest.raises(InputError, match="the input does not exist"):
        predict_folder(ct_bundle, folder / "nothing", folder.parent / "out")
    assert not (folder.parent / "out").exists()


def test_a_truncated_dicom_fails_its_series_and_only_it(make, ct_bundle, folder, rng):
    make.series(folder / "good", make.head(rng, 2))
    paths = make.series(folder / "cut", make.head(rng, 3))
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, summary.counts["done"], summary.counts["failed"]) == (3, 1, 1)
    assert "the pixel data are cut short" in reasons[0]
    assert left == ["0001.dcm", "0002.dcm"]


def test_a_dicom_truncated_within_its_header(make, ct_bundle, folder, rng):
    [path] = make.series(folder, make.head(rng, 1))
    path.write_bytes(path.read_bytes()[:900])
    make.series(folder / "good", make.head(rng, 1))
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, len(reasons), left) == (3, 1, ["0001.dcm"])


def test_a_dicom_without_pixels(make, ct_bundle, folder, rng):
    [path] = make.series(folder, make.head(rng, 1))
    ds = dcmread(path)
    del ds.PixelData
    ds.save_as(path)
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, left) == (3, [])
    assert "no pixel" in reasons[0]


def test_mixed_series_in_one_folder_are_kept_apart(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 3), name="x")
    make.series(folder, make.head(rng, 2), name="y")
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, summary.counts["done"], reasons) == (0, 2, [])
    assert len(left) == 5


def test_two_orientations_of_one_series_become_two_results(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 3), series="1.2.3.4", name="axial")
    make.series(folder, make.head(rng, 3), series="1.2.3.4", name="coronal", orientation=(1, 0, 0, 0, 0, -1))
    for path in folder.glob("coronal*"):
        ds = dcmread(path)
        ds.ImagePositionPatient = [-10.0, float(ds.InstanceNumber), 10.0]
        ds.save_as(path)
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, summary.counts["done"], reasons) == (0, 2, [])
    assert len(left) == 6
    assert "series-split" in summary.report_path.read_text()


def test_duplicated_slices(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 4), positions=[0, 2, 2, 4])
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, left) == (3, [])
    assert "same position" in reasons[0]


def test_missing_slices(make, ct_bundle, folder, rng):
    paths = make.series(folder, make.head(rng, 6))
    paths[3].unlink()
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, left) == (3, [])
    assert "missing" in reasons[0]


def test_a_wrong_modality(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 2), modality="MR")
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, left) == (3, [])
    assert "found MR, wanted CT" in reasons[0]
    assert "pass --modality CT" in reasons[0]


def test_a_nifti_that_does_not_say_its_modality(make, mr_bundle, folder, rng):
    make.nifti(folder / "x.nii", make.head(rng, 2))
    summary, reasons, left = run(mr_bundle, folder)
    assert (summary.exit_code, left) == (3, [])
    assert "found unknown, wanted MR" in reasons[0]
    assert "pass --modality MR" in reasons[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_finite(make, mr_bundle, folder, rng, bad):
    make.nifti(folder / "good.nii", make.head(rng, 2))
    array = rng.normal(100, 10, (24, 24, 9)).astype(np.float32)
    array[3, 4, 8] = bad
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "bad.nii")
    summary, reasons, left = run(mr_bundle, folder, modality="MR")
    assert (summary.exit_code, left) == (3, ["result.nii.gz"])
    assert "pixels are NaN or infinite (found 1 of 5184, wanted finite values)" in reasons[0]


def test_damaged_nifti_files(make, mr_bundle, folder, rng):
    good = make.nifti(folder / "good.nii.gz", make.head(rng, 3)).read_bytes()
    (folder / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    (folder / "empty.nii").write_bytes(b"")
    (folder / "text.nii").write_text("hello, I am not an image" * 100)
    summary, reasons, left = run(mr_bundle, folder, modality="MR")
    assert (summary.exit_code, summary.counts["failed"], left) == (3, 3, ["result.nii.gz"])
    assert all(len(reason) > 20 for reason in reasons)


def test_an_image_of_one_pixel(make, ct_bundle, mr_bundle, folder):
    make.series(folder / "d", np.full((1, 1, 1), 1064.0))
    summary, reasons, left = run(ct_bundle, folder)
    assert (summary.exit_code, reasons, left) == (0, [], ["0001.dcm"])
    assert dcmread(next((folder.parent / "out").rglob("0001.dcm"))).pixel_array.shape == (1, 1)
    make.nifti(folder.parent / "nii" / "x.nii", np.full((1, 1, 1), 7.0))
    summary = predict_folder(mr_bundle, folder.parent / "nii", folder.parent / "out2", modality="MR")
    assert summary.exit_code == 0


def test_an_image_of_8192_by_8192(make, folder):
    # The smallest network there is: the test is about tiles, memory and files.
    init = {"in_channels": 1, "out_channels": 1, "dims": [1], "num_blocks": [0]}
    model = {"class_path": "medseq.models.restore_unet.RestoreUNet", "init_args": init}
    from medseq.models.restore_unet import RestoreUNet

    bundle = make.bundle(
        folder.parent / "thin",
        modality=("MR",),
        units="1",
        model=model,
        state=RestoreUNet(**init).state_dict(),
        inference={"tile": 2048, "overlap": 0.05, "batch": 1},
    )
    plane = np.zeros((1, 8192, 8192), dtype=np.uint8)
    plane[:, 100:8000, 200:7000:3] = 90
    make.nifti(folder / "huge.nii", plane, dtype=np.uint8)
    summary, reasons, left = run(bundle, folder, modality="MR", names="source", strength=0.0)
    assert (summary.exit_code, reasons, left) == (0, [], ["huge.nii"])
    result = np.asarray(nib.load(folder.parent / "out" / "huge.nii").dataobj)
    assert result.dtype == np.uint8
    assert np.array_equal(result[..., 0].T, plane[0])


def test_an_unreadable_file(make, mr_bundle, folder, rng, monkeypatch):
    make.nifti(folder / "good.nii", make.head(rng, 2))
    make.nifti(folder / "locked.nii", make.head(rng, 2))
    if os.geteuid() != 0:
        (folder / "locked.nii").chmod(0)
    else:
        # Nothing is unreadable for root: the refusal is injected where files are hashed and opened.
        from medseq.inference import worker

        plain = worker.input_sha256

        def refuse(root, relpaths):
            if "locked.nii" in relpaths:
                raise PermissionError(errno.EACCES, "Permission denied", str(root / "locked.nii"))
            return plain(root, relpaths)

        monkeypatch.setattr(worker, "input_sha256", refuse)
    summary, reasons, left = run(mr_bundle, folder, modality="MR")
    assert (summary.exit_code, left) == (3, ["result.nii.gz"])
    assert reasons == ["a file cannot be read or written (found EACCES); check its permissions"]


def test_an_unreadable_file_as_another_user(make, mr_bundle, tmp_path, rng):
    """The same with real permissions, as nobody: root can read everything."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = os.path.join(name, "in")
        make.nifti(Path(root) / "good.nii", make.head(rng, 1))
        make.nifti(Path(root) / "locked.nii", make.head(rng, 1)).chmod(0)
        shutil.copytree(mr_bundle.folder, os.path.join(name, "tiny-mr"))
        for path in [Path(name), *Path(name).rglob("*")]:
            if path.name != "locked.nii":
                path.chmod(0o777 if path.is_dir() else 0o666)
        script = (
            "import os, sys\n"
            "from medseq.inference.run import predict_folder\n"
            "root = sys.argv[1]\n"
            # As root first: the interpreter's own files may be unreadable for nobody, and modules load late.
            "predict_folder(f'{root}/tiny-mr', f'{root}/in/good.nii', f'{root}/first', modality='MR')\n"
            "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
            "summary = predict_folder(f'{root}/tiny-mr', f'{root}/in', f'{root}/out', modality='MR')\n"
            "sys.stdout.write(f'{summary.exit_code} {summary.counts}')\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, name], capture_output=True, text=True, timeout=120
        )
        report = Path(name, "out", "report.json").read_text() if Path(name, "out").exists() else done.stderr
    assert done.stdout.startswith("3 "), done.stderr
    assert "'done': 1, 'failed': 1" in done.stdout
    assert "check its permissions" in report


def test_an_output_folder_that_cannot_be_written(make, ct_bundle, folder, rng, monkeypatch):
    make.series(folder, make.head(rng, 1))

    def refuse(self, *args, **keywords):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError, match=r"the output folder: cannot be written \(found EROFS\)") as caught:
        predict_folder(ct_bundle, folder, folder.parent / "out")
    assert str(folder.parent) not in str(caught.value)
    assert not (folder.parent / "out").exists()


def test_a_read_only_mount(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 1))
    out = folder.parent / "mounted"
    out.mkdir()
    assert os.geteuid() == 0, "this test mounts a tmpfs: run it as root (the injected variant above runs as anyone)"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(out)], check=True)
    try:
        with pytest.raises(OutputError, match=r"the output folder: cannot be written \(found EROFS\)"):
            predict_folder(ct_bundle, folder, out)
        with pytest.raises(OutputError, match=r"cannot be written \(found EROFS\)"):
            predict_folder(ct_bundle, folder, out / "below")
        assert list(out.iterdir()) == []
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_an_output_folder_inside_the_input(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 1))
    (folder.parent / "link").symlink_to(folder)
    for out in (folder, folder / "out", folder / "a" / ".." / "out", folder.parent / "link" / "out"):
        with pytest.raises(OutputError, match="output folder lies inside the input; choose a folder beside"):
            predict_folder(ct_bundle, folder, out)
    assert [path.name for path in folder.iterdir()] == ["slice0000.dcm"]


def test_an_output_that_is_a_file(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 1))
    (folder.parent / "out").write_text("precious")
    with pytest.raises(OutputError, match="the output is a file"):
        predict_folder(ct_bundle, folder, folder.parent / "out")
    assert (folder.parent / "out").read_text() == "precious"


def test_results_are_readable_by_others_and_the_ledger_is_not(make, ct_bundle, folder, rng):
    make.series(folder, make.head(rng, 1))
    run(ct_bundle, folder)
    out = folder.parent / "out"
    assert stat.S_IMODE((out / "run.sqlite").stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "report.html").stat().st_mode) & 0o044
