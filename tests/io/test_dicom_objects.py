"""Parametric maps, pictures and score reports: valid, readable by others, the same bytes again, no identifiers."""

import highdicom
import numpy as np
import pydicom
import pytest

from medseq.errors import OutputError, ShapeError
from medseq.io.dicom import group_dicom, open_dicom
from medseq.io.dicom_derive import Provenance
from medseq.io.dicom_map import write_parametric_map
from medseq.io.dicom_objects import write_picture, write_scores
from tests.io.dciodvfy import errors
from tests.io.synthetic import OBLIQUE, PATIENT_NAME, enhanced, save, stack


def made(role="uncertainty", **changes):
    words = {"version": "0.1.0", "created_utc": "2026-11-22T10:11:12Z", "bundle_hash": "ab" * 32, **changes}
    return Provenance(bundle_name="ct-denoise", params_hash="cd" * 32, role=role, **words)


@pytest.fixture(params=["single-frame", "enhanced"])
def reader(request, tmp_path, rng):
    images = stack(rng, slices=3, orientation=OBLIQUE)
    shuffled = [images[i] for i in rng.permutation(3)]
    paths = save([enhanced(shuffled)] if request.param == "enhanced" else shuffled, tmp_path / "in")
    return open_dicom(group_dicom(paths)[0][0])


def test_a_map_keeps_values_and_places(reader, tmp_path, rng):
    values = rng.normal(0, 30, reader.header.shape).astype(np.float32)
    source = reader.header.source.header
    path = write_parametric_map(tmp_path / "map.dcm", values, source, made(), units="HU")
    again = write_parametric_map(tmp_path / "again.dcm", values, source, made(), units="HU")
    assert path.read_bytes() == again.read_bytes()
    volume = highdicom.imread(path).get_volume()
    # highdicom sorts against the normal, in LPS, index order (slice, row, column).
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    by_index = {
        tuple(np.round((affine @ (*index, 1))[:3], 3)): float(volume.array[index])
        for index in np.ndindex(*values.shape)
    }
    for k, row, col in np.ndindex(*values.shape):
        place = tuple(np.round((reader.header.affine @ (col, row, k, 1))[:3], 3) + 0.0)
        assert by_index[tuple(np.array(place) + 0.0)] == pytest.approx(float(values[k, row, col]), rel=1e-6)
    ds = pydicom.dcmread(path)
    assert ds.PatientName == PATIENT_NAME
    assert ds.ContentDate == "20261122"
    assert ds.SeriesDescription.startswith("RUO medseq ct-denoise Uncertainty")
    assert ds.ContributingEquipmentSequence[-1].ManufacturerModelName == "ct-denoise"
    allowed = {line for line in errors(path) if "Laterality" in line}
    assert errors(path) == allowed


def test_a_map_of_another_grid_or_with_holes_is_refused(reader, tmp_path, rng):
    source = reader.header.source.header
    with pytest.raises(ShapeError, match="not on the grid"):
        write_parametric_map(tmp_path / "x.dcm", np.zeros((3, 5, 5), "f4"), source, made())
    with pytest.raises(OutputError, match="NaN or infinite"):
        write_parametric_map(tmp_path / "x.dcm", np.full(reader.header.shape, np.nan, "f4"), source, made())
    assert not (tmp_path / "x.dcm").exists()


def test_a_picture_is_a_valid_secondary_capture(reader, tmp_path, rng):
    picture = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    reference = reader.header.source.files[0]
    with_patient = write_picture(tmp_path / "a.dcm", picture, made("attention"), reference=reference)
    without = write_picture(tmp_path / "b.dcm", picture, made("attention"), source_id="slide-1")
    for path in (with_patient, without):
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, picture)
        assert errors(path) == set()
    first, second = pydicom.dcmread(with_patient), pydicom.dcmread(without)
    assert first.PatientName == PATIENT_NAME
    assert first.StudyInstanceUID == pydicom.dcmread(reference).StudyInstanceUID
    assert second.PatientName == ""
    assert write_picture(tmp_path / "c.dcm", picture, made("attention"), source_id="slide-1").read_bytes() == (
        without.read_bytes()
    )
    with pytest.raises(OutputError, match="something that it belongs to"):
        write_picture(tmp_path / "d.dcm", picture, made("attention"))
    with pytest.raises(ShapeError, match="not an RGB picture"):
        write_picture(tmp_path / "d.dcm", picture[..., 0], made("attention"), source_id="x")


def test_scores_are_a_report_that_others_read(reader, tmp_path):
    scores = {"P(tumour)": 0.875, "risk": -1.5}
    files = list(dict.fromkeys(reader.header.source.files))
    path = write_scores(tmp_path / "scores.dcm", scores, files, made("scores"))
    assert path.read_bytes() == write_scores(tmp_path / "b.dcm", scores, files, made("scores")).read_bytes()
    assert errors(path) == set()
    report = highdicom.sr.srread(path)
    (group,) = report.content.get_image_measurement_groups()
    found = {m.name.meaning: m.value for m in group.get_measurements()}
    assert found == scores
    referred = {image.referenced_sop_instance_uid for image in group.source_images}
    assert referred == {str(pydicom.dcmread(file).SOPInstanceUID) for file in files}
    with pytest.raises(OutputError, match="nothing that a report could say"):
        write_scores(tmp_path / "x.dcm", {"a": float("nan")}, files, made("scores"))
