"""What a run leaves in DICOM beside images: valid for dciodvfy, exact, the same bytes and UIDs in a second run."""

import highdicom
import numpy as np
import pydicom
import pytest

from medseq.errors import OutputError
from medseq.inference.outputs_dicom import write_mil_objects
from medseq.inference.run import check_run, predict_folder
from medseq.io.dicom import group_dicom, open_dicom
from tests.inference.memory_sink import MemorySink
from tests.inference.test_mil_folder import SIZE, report, write_bag
from tests.inference.test_mil_folder import bundle as mil_bundle  # noqa: F401  (a fixture)
from tests.io.dciodvfy import errors
from tests.io.slide_synthetic import write_dicom
from tests.io.synthetic import PATIENT_NAME, PLANTED, image, save, stack


def files(out, role):
    return sorted(path for path in out.rglob("*.dcm") if path.parent.name == role)


def tree(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.dcm"))}


@pytest.mark.parametrize("names", ["id", "source"])
def test_difference_and_uncertainty_of_a_series_are_maps_and_images(ct_bundle, tmp_path, rng, names):
    save(stack(rng, slices=3, shape=(24, 20)), tmp_path / "in")
    words = {"difference": True, "uncertainty": True, "names": names, "created_utc": "2026-01-02T03:04:05Z"}
    for out in (tmp_path / "one", tmp_path / "two"):
        summary = predict_folder(ct_bundle, tmp_path / "in", out, **words)
        assert (summary.exit_code, summary.counts["done"]) == (0, 1)
        assert check_run(out).exit_code == 0
    out = tmp_path / "one"
    assert tree(out) == tree(tmp_path / "two")
    before = {ds.InstanceNumber: ds for ds in map(pydicom.dcmread, (tmp_path / "in").rglob("*.dcm"))}
    for role in ("difference", "uncertainty"):
        [path] = files(out, f"{role}_map")
        assert errors(path) == {line for line in errors(path) if "Laterality" in line}
        ds = pydicom.dcmread(path)
        assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
        assert ds.PatientName == PATIENT_NAME
        assert ds.StudyInstanceUID == before[1].StudyInstanceUID
        # The images round to a stored unit, the map does not.
        stacks, skipped, broken = group_dicom([*files(out, role), path])
        assert (len(stacks), len(skipped), broken) == (1, 1, [])
        reader = open_dicom(stacks[0])
        rounded = reader.read(0, 3)
        exact = highdicom.imread(path).get_volume()
        places = np.diag([-1.0, -1, 1, 1]) @ exact.affine
        order = [round(float((np.linalg.inv(reader.header.affine) @ places @ (k, 0, 0, 1))[2])) for k in range(3)]
        values = np.empty_like(rounded)
        values[order] = exact.array
        assert np.abs(values - rounded).max() <= 0.5
        assert np.abs(values - np.rint(values)).max() > 0.01
        if role == "uncertainty":
            assert (values >= 0).all()
    assert len({pydicom.dcmread(path).SeriesInstanceUID for path in out.rglob("*.dcm")}) == 5
    assert not any(word in (out / "report.html").read_text().lower() for word in PLANTED)


def test_the_maps_of_a_run_are_no_inputs_of_the_next(ct_bundle, tmp_path, rng):
    save(stack(rng, slices=2, shape=(24, 20)), tmp_path / "in")
    predict_folder(ct_bundle, tmp_path / "in", tmp_path / "one", difference=True)
    summary = predict_folder(ct_bundle, tmp_path / "one", tmp_path / "two")
    assert (summary.counts["done"], summary.counts["failed"]) == (2, 0), "result and difference"
    assert summary.counts["skipped"] >= 1


def test_a_result_in_larger_steps_than_its_source_is_flagged(ct_bundle, tmp_path, rng, monkeypatch):
    from medseq.io.dicom_write import DicomSeriesWriter

    save(stack(rng, slices=2, shape=(24, 20)), tmp_path / "in")
    plain = DicomSeriesWriter.commit

    def commit(self):
        paths = plain(self)
        self.coarse = True
        return paths

    monkeypatch.setattr(DicomSeriesWriter, "commit", commit)
    predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out")
    [item] = report(tmp_path / "out")["items"]
    assert [flag["message"] for flag in item["flags"] if flag["code"] == "coarse"] == [
        "the result spans more than its stored type holds: it is stored in larger steps than the source's"
    ]


def test_a_pet_slice_that_outgrows_its_slope_is_coarse(tmp_path, rng):
    from medseq.io.dicom_write import DicomSeriesWriter

    ds = image("PT", np.full((6, 8), 30000, np.uint16), (0, 0, 0), (1, 0, 0, 0, 1, 0))
    ds.RescaleSlope = "0.5"
    reader = open_dicom(group_dicom(save([ds], tmp_path))[0][0])
    for factor, coarse in ((1.0, False), (4.0, True)):
        made = {"bundle_name": "x", "bundle_hash": "a", "params_hash": "b", "version": "1"}
        writer = DicomSeriesWriter(tmp_path / "out", **made, role="result", created_utc="2026-01-02T03:04:05Z")
        writer.begin(reader.header)
        writer.write(0, reader.read(0, 1) * np.float32(factor))
        writer.commit()
        assert (writer.coarse, writer.clipped) == (coarse, 0)


def slide(path, rng):
    return write_dicom(path, rng.integers(100, 250, (SIZE * 10, SIZE * 10, 3), dtype=np.uint8))


def test_a_dicom_slide_gets_its_scores_and_heat_map_as_dicom(mil_bundle, tmp_path, rng):  # noqa: F811
    (tmp_path / "in").mkdir()
    [path] = [slide(tmp_path / "in" / "s" / "s.dcm", rng)]
    ds = pydicom.dcmread(path)
    ds.PatientName, ds.PatientID, ds.AccessionNumber, ds.StudyID = "Plantedname^Anna", "PLANTED-4711", "", ""
    ds.StudyDate, ds.StudyTime, ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName = "", "", "", "", ""
    ds.save_as(path)
    write_bag(tmp_path / "in" / "s.h5", rng)
    for out in (tmp_path / "one", tmp_path / "two"):
        summary = predict_folder(mil_bundle, tmp_path / "in", out, created_utc="2026-01-02T03:04:05Z")
        assert (summary.exit_code, summary.counts["done"]) == (0, 1)
    out = tmp_path / "one"
    assert tree(out) == tree(tmp_path / "two")
    [scores], [heat] = files(out, "scores"), files(out, "overlay")
    for found in (scores, heat):
        assert errors(found) == set()
        assert pydicom.dcmread(found).StudyInstanceUID == ds.StudyInstanceUID
        assert pydicom.dcmread(found).PatientName == "Plantedname^Anna"
    (group,) = highdicom.sr.srread(scores).content.get_image_measurement_groups()
    [item] = [item for item in report(out)["items"] if item["state"] == "done"]
    measured = {one.name.meaning: one.value for one in group.get_measurements()}
    assert measured == {
        "P(no)": pytest.approx(item["metrics"]["probability_0"]),
        "P(yes)": pytest.approx(item["metrics"]["probability_1"]),
    }
    assert [image.referenced_sop_instance_uid for image in group.source_images] == [ds.SOPInstanceUID]
    assert {output["role"] for output in item["outputs"]} >= {"scores", "overlay"}
    assert check_run(out).exit_code == 0


def test_other_slides_get_dicom_where_it_is_asked_for(mil_bundle, tmp_path, rng):  # noqa: F811
    (tmp_path / "in").mkdir()
    write_bag(tmp_path / "in" / "PLANTEDNAME.h5", rng)
    assert predict_folder(mil_bundle, tmp_path / "in", tmp_path / "plain").exit_code == 0
    assert files(tmp_path / "plain", "scores") == []
    for names in ("id", "source"):
        out = tmp_path / names
        assert predict_folder(mil_bundle, tmp_path / "in", out, format="dicom", names=names).exit_code == 0
        [scores], [heat] = files(out, "scores"), files(out, "overlay")
        assert errors(scores) == errors(heat) == set()
        picture = pydicom.dcmread(heat)
        assert (picture.PatientName, picture.Modality) == ("", "OT")
        [reference] = pydicom.dcmread(scores).CurrentRequestedProcedureEvidenceSequence
        referred = reference.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert referred.ReferencedSOPInstanceUID == picture.SOPInstanceUID
        assert b"PLANTEDNAME" not in scores.read_bytes() + heat.read_bytes()
        assert check_run(out).exit_code == 0


def test_a_report_needs_something_to_refer_to():
    with pytest.raises(OutputError, match="scores as DICOM need an image to refer to"):
        write_mil_objects(MemorySink(), "a", None, {"P(yes)": 0.5}, None)
