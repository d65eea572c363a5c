"""Raw data whose header says enough become a DICOM series as well: valid, in the right place, the same every time."""

import shutil
import subprocess

import h5py
import ismrmrd
import nibabel as nib
import numpy as np
import pydicom
import pytest

from medseq.inference.ledger import Ledger
from medseq.inference.run import check_run, predict_folder
from medseq.io.dicom import group_dicom, open_dicom
from tests.inference.test_recon_folder import PLANTED
from tests.io.kspace_synthetic import head_kspace, header_xml

ROWS, COLS, SLICES = 24, 20, 2
STUDY = f"""<subjectInformation><patientName>{PLANTED}</patientName><patientID>P17</patientID></subjectInformation>
<studyInformation><studyDate>2026-11-22</studyDate><studyInstanceUID>1.2.826.0.1.3680043.8.498.7</studyInstanceUID>
</studyInformation><measurementInformation><patientPosition>HFS</patientPosition><protocolName>t2_tse</protocolName>
</measurementInformation>"""


def mrd(path, rng, study=STUDY, contrasts=1, axes=None, step=5.0):
    """Oblique slices, every line sampled but a few."""
    size, fov = (ROWS, COLS, 1), (ROWS * 1.5, COLS * 0.8, 4.0)
    xml = header_xml(size, size, fov, fov).replace("<encoding>", study + "<encoding>", 1)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] if axes is None else axes
    data = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    data.write_xml_header(xml.encode())
    for contrast in range(contrasts):
        kspace = head_kspace(rng, SLICES, 3, ROWS, COLS)
        for number in range(SLICES):
            for ky in range(COLS):
                line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[number, :, :, ky]))
                line.center_sample, line.position[:] = ROWS // 2, axes[:, 2] * step * number + 7
                line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = axes.T
                line.idx.kspace_encode_step_1, line.idx.slice, line.idx.contrast = ky, number, contrast
                data.append_acquisition(line)
    data.close()


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def rows(out):
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        return [(item, ledger.files(item.id)[0].relpath, ledger.outputs(item.id)) for item in ledger.items("done")]


def errors(path):
    tool = shutil.which("dciodvfy")
    assert tool, "dciodvfy is missing: apt-get install dicom3tools (make system-test-deps)"
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.startswith("MRImage") for line in lines), lines
    return [line for line in lines if line.startswith("Error")]


@pytest.fixture
def folder(tmp_path, rng):
    """Two contrasts in one file, a scan repeated as another file, and one without a study."""
    (tmp_path / "in" / "day1").mkdir(parents=True)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    mrd(tmp_path / "in" / "day1" / "two.mrd", rng, contrasts=2, axes=axes)
    mrd(tmp_path / "in" / "day1" / "again.mrd", rng, axes=axes)
    mrd(tmp_path / "in" / "nobody.mrd", rng, study="")
    np.save(tmp_path / "in" / "plain.npy", head_kspace(rng, 1, 2, ROWS, COLS))
    (tmp_path / "in" / "plain.yaml").write_text("axes: [slice, coil, row, col]\n")
    return tmp_path / "in"


def test_the_series_says_what_the_other_results_say(folder, tmp_path, recon_bundle, caplog):
    summary = predict_folder(recon_bundle, folder, tmp_path / "out", orientations=1)
    assert summary.counts["done"] == 5
    series, flags = {}, {}
    for item, name, outputs in rows(tmp_path / "out"):
        paths = [tmp_path / "out" / row.relpath for row in outputs if row.relpath.endswith(".dcm")]
        flags[name] = {flag["code"]: flag["message"] for flag in item.flags}
        if not paths:
            continue
        assert [row.role for row in outputs if row.relpath.endswith(".dcm")] == ["result"] * SLICES
        assert [errors(path) for path in paths] == [[]] * SLICES
        (stack,), _, _ = group_dicom(paths)
        volume = open_dicom(stack)
        other = nib.load(tmp_path / "out" / item.id / "result.nii.gz")
        images, found = other.get_fdata().transpose(2, 1, 0), volume.read(0, SLICES)
        for i in range(SLICES):
            # The same pixel lies at the same place, whichever way the slices are sorted.
            place = other.affine @ [3, 5, i, 1]
            k = int(np.argmin([np.linalg.norm(volume.header.affine @ [3, 5, n, 1] - place) for n in range(SLICES)]))
            np.testing.assert_allclose(volume.header.affine @ [3, 5, k, 1], place, atol=1e-3)
            assert np.abs(found[k] - images[i]).max() <= 0.51 * images.max() / 32767, "half a stored unit"
        image = pydicom.dcmread(paths[0])
        assert (str(image.PatientName), image.StudyInstanceUID) == (PLANTED, "1.2.826.0.1.3680043.8.498.7")
        series[item.id] = image.SeriesInstanceUID
    assert len(series) == 3
    assert len(set(series.values())) == 3, "contrasts and repeated scans are series of their own"
    assert "studyInstanceUID" in flags["nobody.mrd"]["no-dicom"]
    assert "no-dicom" not in flags["plain.npy"], "an array never had a study"
    told = (tmp_path / "out" / "report.html").read_text() + (tmp_path / "out" / "report.json").read_text() + caplog.text
    assert PLANTED not in told
    assert check_run(tmp_path / "out").problems == ()


@pytest.mark.parametrize("names", ["id", "source"])
def test_a_second_run_writes_the_same_bytes(folder, tmp_path, recon_bundle, make, names):
    for out in ("out", "again"):
        words = {"names": names, "orientations": 1, "created_utc": make.created}
        predict_folder(recon_bundle, folder / "day1", tmp_path / out, **words)
    assert make.tree(tmp_path / "out") == make.tree(tmp_path / "again")
    assert sum(name.endswith(".dcm") for name in make.tree(tmp_path / "out")) == 3 * SLICES
    next((tmp_path / "out").rglob("*.dcm")).unlink()
    assert predict_folder(recon_bundle, folder / "day1", tmp_path / "out", names=names, orientations=1).processed == 1
    assert make.tree(tmp_path / "out") == make.tree(tmp_path / "again")


def test_slices_without_a_common_place_become_no_series(tmp_path, rng, recon_bundle):
    (tmp_path / "in").mkdir()
    mrd(tmp_path / "in" / "a.mrd", rng, axes=np.zeros((3, 3)))
    with h5py.File(tmp_path / "in" / "fastmri.h5", "w") as file:
        file["kspace"] = head_kspace(rng, 1, 2, ROWS, COLS)
        size, fov = (ROWS, COLS, 1), (ROWS * 1.5, COLS * 0.8, 4.0)
        file["ismrmrd_header"] = header_xml(size, size, fov, fov).replace("<encoding>", STUDY + "<encoding>", 1)
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", orientations=1)
    found = rows(tmp_path / "out")
    assert len(found) == 2
    for item, _, outputs in found:
        assert not any(row.relpath.endswith(".dcm") for row in outputs)
        message = {flag["code"]: flag["message"] for flag in item.flags}["no-dicom"]
        assert "the place of evenly spaced slices" in message
