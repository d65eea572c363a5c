"""DICOM from raw data: valid, in the right place, the same bytes every time; refused where too little is known."""

import shutil
import subprocess

import ismrmrd
import numpy as np
import pytest

from medseq.errors import OutputError, ShapeError
from medseq.io.dicom import RawDicomWriter, group_dicom, open_dicom
from medseq.io.kspace_open import open_kspace
from medseq.io.kspace_write import recon_header
from medseq.io.volume import VolumeWriter
from tests.io.kspace_synthetic import header_xml

MADE = {
    "item": "contrast-0",
    "bundle_name": "mri-recon",
    "bundle_hash": "ab" * 32,
    "params_hash": "cd" * 32,
    "version": "0.1.0",
    "created_utc": "2026-11-22T10:11:12Z",
}
STUDY = """<subjectInformation><patientName>DOE^JANE</patientName><patientID>P17</patientID>
<patientBirthdate>1970-01-31</patientBirthdate><patientGender>F</patientGender></subjectInformation>
<studyInformation><studyDate>2026-11-22</studyDate><studyTime>09:08:07</studyTime>
<studyInstanceUID>1.2.826.0.1.3680043.8.498.7</studyInstanceUID></studyInformation>
<measurementInformation><patientPosition>HFS</patientPosition><protocolName>t2_tse</protocolName>
<frameOfReferenceUID>1.2.826.0.1.3680043.8.498.8</frameOfReferenceUID></measurementInformation>
<sequenceParameters><TR>4000</TR><TE>102.5</TE></sequenceParameters>"""


def raw(path, rng, study=STUDY, axes=None):
    """Three oblique slices of 12 x 10 pixels."""
    xml = header_xml((12, 10, 1), (12, 10, 1), (18.0, 8.0, 4.0), (18.0, 8.0, 4.0)).replace(
        "<encoding>", study + "<encoding>"
    )
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] if axes is None else axes
    dataset = ismrmrd.Dataset(str(path))
    dataset.write_xml_header(xml.encode())
    for ky in range(10):
        for s in range(3):
            line = (rng.normal(size=(2, 12)) + 1j).astype("c8")
            acquisition = ismrmrd.Acquisition.from_array(line)
            acquisition.idx.kspace_encode_step_1, acquisition.idx.slice, acquisition.center_sample = ky, s, 6
            acquisition.position[:] = axes[:, 2] * 5 * s + 7
            acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = axes.T
            dataset.append_acquisition(acquisition)
    dataset.close()
    return open_kspace(path)


def test_the_series_is_valid_and_lies_where_the_raw_data_did(tmp_path, rng):
    reader, images = raw(tmp_path / "a.h5", rng), rng.random((3, 12, 10)) * 3e-4
    writer = RawDicomWriter(tmp_path / "out", **MADE)
    assert isinstance(writer, VolumeWriter)
    writer.begin(recon_header(reader))
    writer.write(0, images[:1])
    writer.write(1, images[1:])
    assert not (tmp_path / "out").exists()
    paths = writer.commit()
    assert [path.name for path in paths] == sorted(path.name for path in (tmp_path / "out").iterdir())
    (stack,), _, _ = group_dicom(paths)
    volume = open_dicom(stack)
    found, affine = volume.read(0, 3), volume.header.affine
    # Slices may be sorted the other way round: compare where each one lies.
    for i in range(3):
        place = reader.affine @ [4, 3, i, 1]
        k = int(np.argmin([np.linalg.norm(affine @ [4, 3, n, 1] - place) for n in range(3)]))
        # Decimal strings of 16 characters; positions are single precision in the raw data.
        assert np.allclose(affine @ [4, 3, k, 1], place, atol=1e-4)
        # Half a stored unit.
        assert np.abs(found[k] - images[i]).max() <= 0.51 * images.max() / 32767
    assert volume.header.spacing_mm == pytest.approx((5, 1.5, 0.8), abs=1e-4)
    first = {path.name: path.read_bytes() for path in paths}
    writer.begin(recon_header(reader))
    writer.write(0, images)
    assert {path.name: path.read_bytes() for path in writer.commit()} == first
    tool = shutil.which("dciodvfy")
    assert tool, "dciodvfy is missing: apt-get install dicom3tools (make system-test-deps)"
    done = subprocess.run([tool, str(paths[0])], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.startswith("MRImage") for line in lines), lines
    assert [line for line in lines if line.startswith("Error")] == []


def test_the_header_carries_the_study(tmp_path, rng):
    import pydicom

    reader = raw(tmp_path / "a.h5", rng)
    assert "DOE" not in repr(reader)
    assert "DOE" not in repr(reader.source.header)
    writer = RawDicomWriter(tmp_path / "out", **MADE)
    writer.begin(recon_header(reader))
    writer.write(0, np.zeros((3, 12, 10)))
    image = pydicom.dcmread(writer.commit()[1])
    assert (str(image.PatientName), image.PatientID, image.PatientBirthDate) == ("DOE^JANE", "P17", "19700131")
    assert (image.StudyInstanceUID, image.StudyTime) == ("1.2.826.0.1.3680043.8.498.7", "090807")
    assert (image.RepetitionTime, image.EchoTime, image.ProtocolName) == (4000, 102.5, "t2_tse")
    assert image.ImageType[0] == "DERIVED"
    assert "not for diagnosis" in image.ImageComments
    assert not image.pixel_array.any()


def test_too_little_is_refused(tmp_path, rng):
    for name, reader, pattern in (
        ("a", raw(tmp_path / "a.h5", rng, study=""), "without studyInstanceUID"),
        ("b", raw(tmp_path / "b.h5", rng, study=STUDY.replace("1.2.826.0.1.3680043.8.498.7", "x")), "studyInstanceUID"),
    ):
        with pytest.raises(OutputError, match=f"not say enough for DICOM.*{pattern}.*write NIfTI or HDF5"):
            RawDicomWriter(tmp_path / name, **MADE).begin(recon_header(reader))
    reader = raw(tmp_path / "c.h5", rng, axes=np.zeros((3, 3)))
    assert reader.affine is None


def test_misuse_leaves_nothing(tmp_path, rng):
    reader = raw(tmp_path / "a.h5", rng)
    writer = RawDicomWriter(tmp_path / "out", **MADE)
    with pytest.raises(OutputError, match="nothing was begun"):
        writer.commit()
    writer.begin(recon_header(reader))
    with pytest.raises(ShapeError, match="do not continue the volume.*wanted plane 0"):
        writer.write(1, np.zeros((1, 12, 10)))
    with pytest.raises(OutputError, match="cannot hold NaN.*|NaN or infinite"):
        writer.write(0, np.full((1, 12, 10), np.nan))
    with pytest.raises(OutputError, match="not complete"):
        writer.commit()
    writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
