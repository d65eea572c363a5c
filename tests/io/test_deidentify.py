"""De-identification: no planted identifier survives, data survive, pseudonyms agree, text in pixels is refused."""

import gzip
import re

import h5py
import nibabel
import numpy as np
import pydicom
import pytest

from medseq.errors import FormatError, InputError
from medseq.inference.deidentify import REPORT, deidentify_folder
from medseq.io.deidentify import Identifiers, Options, Pseudonyms, Refused
from medseq.io.deidentify_codestream import without_comments
from medseq.io.deidentify_dicom import deidentify_dicom
from medseq.io.deidentify_tiff import deidentify_tiff
from medseq.io.mrd_header import parse_mrd_header
from tests.io.dciodvfy import errors
from tests.io.identified import ID, MARKS, NAME, bart, corpus, fastmri, full_dataset, jpeg, nifti, svs, with_comment
from tests.io.synthetic import enhanced, image, save, stack

SALT = "a long secret of this test"
AXIAL = (1, 0, 0, 0, 1, 0)


@pytest.fixture
def names(monkeypatch) -> Pseudonyms:
    monkeypatch.setenv("MEDSEQ_SALT", SALT)
    return Pseudonyms(SALT)


def everything(folder):
    """Bytes of all files below a folder, and of their decompressed contents, with their names."""
    for path in folder.rglob("*"):
        yield path, str(path.relative_to(folder)).encode()
        if path.is_file():
            data = path.read_bytes()
            yield path, data
            if path.name.endswith(".gz"):
                yield path, gzip.decompress(data)


def leaks(folder):
    found = []
    for path, data in everything(folder):
        lower = data.lower()
        found += [
            (path.name, mark)
            for mark in MARKS
            for encoded in (mark.encode(), mark.encode("utf-16-le"), mark.encode("utf-16-be"))
            if encoded in lower
        ]
    return found


def test_no_planted_identifier_survives_anywhere(names, tmp_path, rng, caplog, capfd):
    corpus(tmp_path / "in", rng)
    # The search itself can find: all marks are in the input.
    assert {mark for _, mark in leaks(tmp_path / "in")} == set(MARKS)
    with caplog.at_level("DEBUG"):
        summary = deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert summary.counts == {"done": 10, "refused": 1, "failed": 0, "skipped": 1}
    assert (tmp_path / "out" / REPORT).exists()
    assert leaks(tmp_path / "out") == []
    said = (caplog.text + "".join(capfd.readouterr())).lower()
    assert [mark for mark in MARKS if mark in said] == []


@pytest.mark.parametrize("dates", ["shift", "remove"])
@pytest.mark.parametrize("keep", [(), ("characteristics", "device", "uids")])
def test_no_option_lets_a_planted_identifier_through(names, tmp_path, rng, dates, keep):
    path = tmp_path / "one.dcm"
    ds = full_dataset(rng)
    ds.PatientAge, ds.PatientSex, ds.PatientWeight = "095Y", "F", "71"
    ds.save_as(path, enforce_file_format=True)
    cleaned = deidentify_dicom(path, tmp_path / "out", names, Options(dates, frozenset(keep)))
    assert leaks(tmp_path / "out") == []
    new = pydicom.dcmread(cleaned.path)
    assert (new.get("PatientAge"), new.PatientSex) == (("090Y", "F") if keep else (None, ""))
    assert (new.SOPInstanceUID == ds.SOPInstanceUID) == bool(keep)
    assert bool(new.StudyDate) == (dates == "shift")
    assert [item.CodeValue for item in new.DeidentificationMethodCodeSequence][0] == "113100"


def test_a_clean_image_is_a_valid_image_with_the_same_pixels(names, tmp_path, rng):
    images = stack(rng, slices=2)
    sources = [*save(images, tmp_path / "a"), *save([enhanced(images)], tmp_path / "b")]
    outputs = [deidentify_dicom(path, tmp_path / "out", names, Options()).path for path in sources]
    for ds, path in zip(images, outputs, strict=False):
        new = pydicom.dcmread(path)
        assert new.PixelData == ds.PixelData
        assert new.ImagePositionPatient == ds.ImagePositionPatient
        assert new.PatientIdentityRemoved == "YES"
    assert errors(sources[0]) == set()
    for source, path in zip(sources, outputs, strict=True):
        assert errors(path) <= errors(source)


def test_references_between_images_of_a_study_still_hold(names, tmp_path, rng):
    images = stack(rng, slices=2)
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID = images[0].SOPClassUID
    reference.ReferencedSOPInstanceUID = images[0].SOPInstanceUID
    images[1].ReferencedImageSequence = [reference]
    first, second = (
        pydicom.dcmread(deidentify_dicom(path, tmp_path / "out", names, Options()).path)
        for path in save(images, tmp_path)
    )
    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.ReferencedImageSequence[0].ReferencedSOPClassUID == images[0].SOPClassUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != images[0].FrameOfReferenceUID


def test_dates_of_one_patient_move_together(names, tmp_path, rng):
    shifts = {}
    for patient in ("A-1", "A-2"):
        early, late = stack(rng, slices=2)
        for ds, day in ((early, "20200228"), (late, "20200301")):
            ds.PatientID, ds.StudyDate, ds.AcquisitionDateTime = patient, day, f"{day}101112.5"
        new = [
            pydicom.dcmread(deidentify_dicom(path, tmp_path / "out", names, Options()).path)
            for path in save([early, late], tmp_path / patient)
        ]
        days = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:8]}") for d in (n.StudyDate for n in new)]
        assert (days[1] - days[0]).astype(int) == 2  # a leap year: 29 February lies between
        assert new[0].AcquisitionDateTime == f"{new[0].StudyDate}101112.5"
        assert new[0].StudyTime == "101112"
        shifts[patient] = int((days[0] - np.datetime64("2020-02-28")).astype(int))
        assert -1095 <= shifts[patient] <= -1
    assert shifts["A-1"] != shifts["A-2"]


def test_pseudonyms_depend_on_the_salt_and_nothing_else():
    one, same, other = Pseudonyms(SALT), Pseudonyms(SALT), Pseudonyms(SALT + "!")
    for call in (lambda p: p.patient("4711"), lambda p: p.uid("1.2.3"), lambda p: p.shift("20200102", "4711")):
        assert call(one) == call(same) != call(other)
    assert one.patient("4711") != one.patient("4712")
    assert pydicom.uid.UID(one.uid("1.2.3")).is_valid


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("20200102", True),
        ("2020-01-02", True),
        ("2020.01.02", True),
        ("20200102101112.000000+0100", True),
        ("2020", False),
        ("20201302", False),
        ("20200102 by Dr Who", False),
        ("00010101", False),
        ("", False),
    ],
)
def test_only_dates_are_moved(text, kept):
    moved = Pseudonyms(SALT).shift(text, "someone")
    assert bool(moved) == kept
    assert not kept or (len(moved) == len(text) and moved != text)


def test_a_salt_is_demanded(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDSEQ_SALT", raising=False)
    with pytest.raises(InputError, match="needs a secret salt"):
        deidentify_folder(tmp_path, tmp_path.parent / "out")
    with pytest.raises(InputError, match="too short to resist guessing"):
        Pseudonyms("short")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation YES"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a saved screen"),
        ({"ConversionType": "DF"}, "scanned film"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, "Ultrasound Image Storage without BurnedInAnnotation NO"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}, "label or overview of a slide"),
        ({"RecognizableVisualFeatures": "YES"}, "RecognizableVisualFeatures"),
    ],
)
def test_text_in_pixels_is_refused_unless_asked_for(names, tmp_path, rng, change, reason):
    ds = image("CT", rng.integers(0, 9, (8, 8), dtype="i2"), (0, 0, 0), AXIAL)
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    path = save([ds], tmp_path)[0]
    with pytest.raises(Refused, match=reason):
        deidentify_dicom(path, tmp_path / "out", names, Options())
    assert not (tmp_path / "out").exists()
    assert deidentify_dicom(path, tmp_path / "out", names, Options(burned_in=True)).path.exists()


@pytest.mark.parametrize(
    ("part", "description", "noted"),
    [("HEAD", "", True), ("", "", True), ("CHEST", "", False), ("CHEST", "neck", True), ("HEART", "clear", False)],
)
def test_heads_are_noted(names, tmp_path, rng, part, description, noted):
    ds = image("MR", rng.integers(0, 9, (8, 8), dtype="i2"), (0, 0, 0), AXIAL)
    ds.BodyPartExamined, ds.SeriesDescription = part, description
    notes = deidentify_dicom(save([ds], tmp_path)[0], tmp_path / "out", names, Options()).notes
    assert any("face can be rebuilt" in note for note in notes) == noted


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_clean_nifti_has_the_same_voxels(names, tmp_path, rng, suffix):
    voxels = nifti(tmp_path / f"in{suffix}", rng)
    summary = deidentify_folder(tmp_path / f"in{suffix}", tmp_path / "out")
    picture = nibabel.load(tmp_path / "out" / summary.files[0]["output"])
    np.testing.assert_array_equal(np.asanyarray(picture.dataobj), voxels)
    np.testing.assert_array_equal(picture.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert not picture.header.extensions


def test_clean_raw_data_is_the_same_data(names, tmp_path, rng):
    folder = tmp_path / "in"
    folder.mkdir()
    kspace, array = fastmri(folder / f"{NAME}.h5", rng), bart(folder / NAME, rng)
    summary = deidentify_folder(folder, tmp_path / "out")
    outputs = {path.suffix: path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert summary.counts["done"] == 2
    assert outputs[".cfl"].read_bytes() == array.tobytes()
    assert outputs[".hdr"].read_text() == "# Dimensions\n5 4 1\n"
    with h5py.File(outputs[".h5"]) as file:
        assert sorted(file) == ["ismrmrd_header", "kspace"]
        np.testing.assert_array_equal(file["kspace"][:], kspace)
        assert dict(file.attrs) == {"patient_id": names.patient(f"|{ID}"), "acquisition": "AXT1", "max": 3.5}
        header = parse_mrd_header(file["ismrmrd_header"][()], "file")
    assert header.encodings[0].recon.matrix == (8, 8, 1)
    assert header.study["patientID"] == names.patient(f"|{ID}")
    assert header.study["studyInstanceUID"] == names.uid("1.2.3.4.5")
    assert header.study["studyDate"] == names.shift("2020-01-02", f"|{ID}")


@pytest.mark.parametrize(("big", "order"), [(False, "<"), (False, ">"), (True, "<"), (True, ">")])
def test_a_clean_slide_has_its_levels_and_no_label(names, tmp_path, rng, big, order):
    import openslide
    import tifffile

    svs(tmp_path / "in.svs", rng, big=big, order=order)
    out = deidentify_tiff(tmp_path / "in.svs", "in.svs", tmp_path / "out", names).path
    with tifffile.TiffFile(out) as new, tifffile.TiffFile(tmp_path / "in.svs") as old:
        assert [page.shape for page in new.pages] == [(64, 64, 3), (32, 32, 3)]
        levels = [page for page in old.pages if page.is_tiled and not page.subfiletype]
        for page, source in zip(new.pages, levels, strict=True):
            np.testing.assert_array_equal(page.asarray(), source.asarray())
    assert leaks(tmp_path / "out") == []
    if (big, order) == (False, ">"):
        return  # OpenSlide does not open the original either
    with openslide.OpenSlide(out) as slide:
        assert dict(slide.associated_images) == {}
        assert slide.level_dimensions == ((64, 64), (32, 32))
        assert (slide.properties["openslide.mpp-x"], slide.properties["aperio.AppMag"]) == ("0.5", "20")


def test_a_picture_without_tiles_may_be_a_label(names, tmp_path, rng):
    import tifffile

    tifffile.imwrite(tmp_path / "in.tiff", rng.integers(0, 9, (8, 8), dtype="u1"))
    with pytest.raises(Refused, match="may be a label"):
        deidentify_tiff(tmp_path / "in.tiff", "in.tiff", tmp_path / "out", names)
    whole = tmp_path / "whole.svs"
    svs(whole, rng)
    for cut in (3, 20, len(whole.read_bytes()) // 2):
        (tmp_path / "cut.svs").write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(FormatError, match="TIFF"):
            deidentify_tiff(tmp_path / "cut.svs", "cut.svs", tmp_path / "out", names)
    assert not list((tmp_path / "out").glob("file-*"))


def test_comments_leave_a_codestream_and_pixels_stay(rng):
    import io

    from PIL import Image

    data = jpeg(rng.integers(0, 255, (24, 24), dtype="u1"))
    marked = with_comment(data, b"Plantedname")
    clean = without_comments(marked)
    assert b"Plantedname" not in clean
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(clean))), np.asarray(Image.open(io.BytesIO(data))))
    assert without_comments(b"raw pixels") == b"raw pixels"
    with pytest.raises(FormatError, match="make no sense"):
        without_comments(marked[:10] + b"\0\0\0\0" + marked[10:])


def test_short_words_must_stand_alone():
    marks = Identifiers(["Li^Bo"], ["77"])
    assert marks.found("for Li")
    assert marks.found("case 77")
    assert not marks.found("lithium 777 body")
    assert not Identifiers(["Anonymous", "Unknown^Patient"]).found("unknown patient anonymous")


def test_a_second_run_writes_the_same_bytes(names, tmp_path, rng):
    corpus(tmp_path / "in", rng)
    results = []
    for run in ("one", "two"):
        deidentify_folder(tmp_path / "in", tmp_path / run)
        results.append(
            {p.relative_to(tmp_path / run): p.read_bytes() for p in (tmp_path / run).rglob("*") if p.is_file()}
        )
    assert results[0] == results[1]


def test_damaged_files_end_with_a_reason_and_leave_no_halves(names, tmp_path, rng):
    folder = corpus(tmp_path / "in", rng)
    whole = [p for p in sorted(folder.rglob("*")) if p.suffix in (".dcm", ".nii", ".gz", ".h5", ".svs", ".npy")]
    mutants = tmp_path / "mutants"
    mutants.mkdir()
    for number in range(150):
        source = whole[number % len(whole)]
        data = bytearray(source.read_bytes())
        if number % 3 == 0:
            data = data[: rng.integers(1, len(data))]
        for at in rng.integers(0, min(len(data), 4000), rng.integers(1, 10)):
            data[at] = rng.integers(0, 256)
        (mutants / f"{number:03d}{''.join(source.suffixes[-2:])}").write_bytes(data)
    # Every file in one call: nothing may stop it.
    summary = deidentify_folder(mutants, tmp_path / "out")
    assert sum(summary.counts.values()) == 150
    assert summary.counts["failed"] > 10
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]


def test_the_command_ends_with_a_report_and_an_exit_code(names, tmp_path, rng):
    from typer.testing import CliRunner

    from medseq.cli.main import app

    folder = corpus(tmp_path / "in", rng)
    done = CliRunner().invoke(app, ["deidentify", str(tmp_path / "in"), str(tmp_path / "out")])
    assert done.exit_code == 3
    assert re.search(r"10 done, 1 refused, 1 skipped", done.output)
    assert "face can be rebuilt" in done.output
    done = CliRunner().invoke(app, ["deidentify", str(folder), str(folder / "out")])
    assert done.exit_code == 2
    assert "inside the input" in done.output
