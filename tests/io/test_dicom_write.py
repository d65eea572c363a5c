"""Derived series: identity, provenance, integers, padding, determinism, and nothing visible before the end."""

import errno
import os
import uuid

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian

from medseq.errors import InputError, OutputError, RetryableError, ShapeError
from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from medseq.io.dicom_derive import derived_uid
from medseq.io.volume import Volume, VolumeWriter
from tests.io.synthetic import PATIENT_ID, PATIENT_NAME, PLANTED, save, set_pixels, stack

MADE = {
    "bundle_name": "ct-denoise",
    "bundle_hash": "ab" * 32,
    "params_hash": "cd" * 32,
    "version": "0.1.0",
    "role": "result",
    "created_utc": "2026-11-22T10:11:12Z",
}


def open_series(images, folder, **how):
    stacks, skipped, broken = group_dicom(save(images, folder, **how))
    assert (len(stacks), skipped, broken) == (1, [], [])
    return open_dicom(stacks[0])


def derive(reader, folder, planes=None, **changes):
    """Write `planes` (default: what was read) as a derived series; returns the data sets and the writer."""
    writer = DicomSeriesWriter(folder, **{**MADE, **changes})
    assert isinstance(writer, VolumeWriter)
    writer.begin(reader.header)
    planes = reader.read(0, reader.header.planes) if planes is None else planes
    for lo in range(0, len(planes), 2):
        writer.write(lo, planes[lo : lo + 2])
    return [pydicom.dcmread(path) for path in writer.commit()], writer


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_what_is_kept_what_is_new_and_what_is_gone(tmp_path, rng, modality):
    images = stack(rng, modality=modality)
    for ds in images:
        ds.SmallestImagePixelValue = 0
        ds.ImageComments = "seen by Dr Who"
    reader = open_series(images, tmp_path, rng=rng)
    results, writer = derive(reader, tmp_path / "out")
    assert writer.clipped == 0
    assert sorted(os.listdir(tmp_path / "out")) == [f"{k:04d}.dcm" for k in range(1, 6)]
    for source, ds in zip(images, results, strict=True):
        for keyword in (
            *("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "PatientBirthDate"),
            *("AccessionNumber", "StudyDate", "AcquisitionDate", "ImagePositionPatient", "ImageOrientationPatient"),
            *("PixelSpacing", "SliceThickness", "BitsAllocated", "BitsStored", "PixelRepresentation", "InstanceNumber"),
            *("PhotometricInterpretation", "PatientPosition", "SpecificCharacterSet"),
        ):
            assert ds[keyword].value == source[keyword].value, keyword
        for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "KVP", "EchoTime"):
            assert ds.get(keyword) == source.get(keyword), keyword
        assert ds.PixelData == source.PixelData
        assert ds.SOPInstanceUID != source.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
        assert ds.SeriesNumber == 701
        assert ds.SeriesDescription == "RUO medseq ct-denoise thin slices"
        assert ds.ImageComments == "Research use only, not for diagnosis"
        assert list(ds.ImageType) == ["DERIVED", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
        assert (ds.ContentDate, ds.ContentTime) == ("20261122", "101112")
        assert (ds.SeriesDate, ds.SeriesTime) == ("20261122", "101112")
        assert (ds.InstanceCreationDate, ds.InstanceCreationTime) == ("20261122", "101112")
        assert "ct-denoise" in ds.DerivationDescription
        assert [c.CodeValue for c in ds.DerivationCodeSequence] == ["113087"]
        assert [r.ReferencedSOPInstanceUID for r in ds.SourceImageSequence] == [source.SOPInstanceUID]
        assert ds.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        equipment = ds.ContributingEquipmentSequence[-1]
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (equipment.Manufacturer, equipment.ManufacturerModelName) == ("medseq", "ct-denoise")
        assert equipment.ContributionDateTime == "20261122101112+0000"
        assert ds.BurnedInAnnotation == "NO"
        assert "SmallestImagePixelValue" not in ds
        assert not any(element.tag.is_private for element in ds.iterall())
    assert len({ds.SOPInstanceUID for ds in results}) == 5
    assert len({ds.SeriesInstanceUID for ds in results}) == 1
    assert results[0].SeriesInstanceUID != images[0].SeriesInstanceUID


def test_uids_are_functions_of_their_inputs(tmp_path, rng):
    reader = open_series(stack(rng), tmp_path)
    first, _ = derive(reader, tmp_path / "a")
    for changes in ({"bundle_hash": "x"}, {"params_hash": "x"}, {"version": "0.2.0"}, {"role": "difference"}):
        other, _ = derive(reader, tmp_path / "b", **changes)
        assert other[0].SOPInstanceUID != first[0].SOPInstanceUID
        assert other[0].SeriesInstanceUID != first[0].SeriesInstanceUID
    for ds in first:
        root, number = ds.SOPInstanceUID.rsplit(".", 1)
        assert root == "2.25"
        assert uuid.UUID(int=int(number)).version == 5
        assert ds.SOPInstanceUID.is_valid


def test_a_uid_that_was_given_out_never_changes():
    from medseq.io.dicom_derive import Provenance

    # Written down once: archives recognise a repeated result by it.
    made = Provenance("ct-denoise", "ab" * 32, "cd" * 32, "0.1.0", "result", "2026-11-22T10:11:12Z")
    assert derived_uid("1.2.3", made, 4) == UID("2.25.58239611517808669974342450904826504111")


def test_the_same_inputs_give_the_same_bytes_and_a_new_time_only_new_dates(tmp_path, rng):
    reader = open_series(stack(rng), tmp_path)
    contents = []
    for name in ("a", "b"):
        derive(reader, tmp_path / name)
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert contents[0] == contents[1]
    later, _ = derive(reader, tmp_path / "c", created_utc="2027-01-01T00:00:00+00:00")
    first = pydicom.dcmread(tmp_path / "a" / "0001.dcm")
    assert later[0].SOPInstanceUID == first.SOPInstanceUID
    assert later[0].ContentDate == "20270101"


def test_two_stacks_of_one_series_become_two_series(tmp_path, rng):
    images = [*stack(rng, slices=3), *stack(rng, slices=3, shape=(4, 4))]
    for ds in images:
        ds.SeriesInstanceUID, ds.StudyInstanceUID = images[0].SeriesInstanceUID, images[0].StudyInstanceUID
    stacks, _, _ = group_dicom(save(images, tmp_path))
    assert len(stacks) == 2
    uids = {derive(open_dicom(s), tmp_path / str(k))[0][0].SeriesInstanceUID for k, s in enumerate(stacks)}
    assert len(uids) == 2


def test_times_are_in_the_zone_that_the_source_declares(tmp_path, rng):
    images = stack(rng, slices=1)
    images[0].TimezoneOffsetFromUTC = "-0530"
    results, _ = derive(open_series(images, tmp_path), tmp_path / "out", created_utc="2026-11-22T02:00:00Z")
    assert (results[0].ContentDate, results[0].ContentTime) == ("20261121", "203000")
    assert results[0].TimezoneOffsetFromUTC == "-0530"


@pytest.mark.parametrize("dtype", ["i2", "u2", "u1"])
def test_rounding_is_at_most_half_a_stored_unit(tmp_path, rng, dtype):
    images = stack(rng, slices=3, modality="MR", dtype=dtype)
    for ds in images:
        ds.RescaleSlope, ds.RescaleIntercept = "0.37", "12.5"
    reader = open_series(images, tmp_path)
    planes = reader.read(0, 3) + rng.uniform(-0.5, 5, (3, 6, 8)).astype(np.float32)
    planes = np.maximum(planes, 12.5)
    results, writer = derive(reader, tmp_path / "out", planes)
    written = np.stack([ds.pixel_array * 0.37 + 12.5 for ds in results])
    # Half a unit, and float32 rounding of the input.
    assert np.abs(written - planes).max() <= 0.37 / 2 * (1 + 1e-5)
    assert writer.clipped == 0


def test_values_beyond_the_stored_bits_get_all_allocated_bits(tmp_path, rng):
    images = stack(rng, slices=2, dtype="u2")
    for ds in images:
        ds.BitsStored, ds.HighBit = 12, 11
    reader = open_series(images, tmp_path)
    planes = reader.read(0, 2)
    planes[1, 2, 3] = 5000.0
    results, writer = derive(reader, tmp_path / "out", planes)
    assert [(ds.BitsStored, ds.HighBit) for ds in results] == [(12, 11), (16, 15)]
    assert [(ds.RescaleSlope, ds.RescaleIntercept) for ds in results] == [(1, -1024)] * 2
    assert results[1].pixel_array[2, 3] == 6024
    assert writer.clipped == 0


def test_values_that_do_not_fit_are_clipped_and_counted(tmp_path, rng):
    images = stack(rng, slices=3, dtype="u2")
    reader = open_series(images, tmp_path)
    planes = reader.read(0, 3)
    planes[0, 0, :4] = -2000.0
    planes[2, 1, 1] = 1e9
    results, writer = derive(reader, tmp_path / "out", planes)
    assert writer.clipped == 5
    assert (results[0].pixel_array[0, :4] == 0).all()
    assert results[2].pixel_array[1, 1] == 65535
    assert np.array_equal(results[1].pixel_array, images[1].pixel_array)


def test_pet_gets_a_larger_slope_instead_of_losing_its_hot_spot(tmp_path, rng):
    images = stack(rng, slices=2, modality="PT")
    for ds in images:
        plane = np.abs(ds.pixel_array)
        plane[0, 0] = 32767
        set_pixels(ds, plane)
        ds.RescaleSlope = "0.5"
    reader = open_series(images, tmp_path)
    planes = reader.read(0, 2)
    planes[1, 0, 0] *= 1.7
    results, writer = derive(reader, tmp_path / "out", planes)
    assert writer.clipped == 0
    assert results[0].RescaleSlope == 0.5
    assert results[1].RescaleSlope == pytest.approx(0.85, rel=1e-6)
    written = results[1].pixel_array * float(results[1].RescaleSlope)
    assert np.abs(written - planes[1]).max() <= 0.85 / 2 * (1 + 1e-4)
    assert written[0, 0] == pytest.approx(planes[1, 0, 0], rel=1e-4)


@pytest.mark.parametrize("tagged", [True, False], ids=["PixelPaddingValue", "outside-circle"])
def test_padding_is_written_back_bit_unchanged_whatever_the_model_says(tmp_path, rng, tagged):
    images = stack(rng, slices=3)
    masks = []
    for ds in images:
        plane = ds.pixel_array.copy()
        plane[[0, 0, -1, -1], [0, -1, 0, -1]] = -2000
        plane[3, 2:5] = -2000
        set_pixels(ds, plane)
        masks.append(plane == -2000)
        if tagged:
            ds.PixelPaddingValue = -2000
    reader = open_series(images, tmp_path)
    noise = rng.normal(0, 50, (3, 6, 8)).astype(np.float32)
    noise[0][masks[0]] = np.nan
    results, writer = derive(reader, tmp_path / "out", reader.read(0, 3) + noise)
    assert writer.clipped == 0
    for ds, source, mask in zip(results, images, masks, strict=True):
        assert np.array_equal(ds.pixel_array[mask], source.pixel_array[mask])
        assert not np.array_equal(ds.pixel_array[~mask], source.pixel_array[~mask])
        assert ds.get("PixelPaddingValue") == source.get("PixelPaddingValue")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_results_that_are_not_finite_are_refused(tmp_path, rng, value):
    reader = open_series(stack(rng), tmp_path)
    writer = DicomSeriesWriter(tmp_path / "out", **MADE)
    writer.begin(reader.header)
    planes = reader.read(0, 2)
    planes[1, 3, 3] = value
    with pytest.raises(OutputError, match=r"slice 2: integer pixels cannot hold NaN.*1 of 48"):
        writer.write(0, planes)
    writer.abort()
    assert [name for name in os.listdir(tmp_path) if "out" in name] == []


def test_a_difference_is_signed_around_zero_without_padding_or_window(tmp_path, rng):
    images = stack(rng, slices=2, dtype="u2")
    for ds in images:
        ds.PixelPaddingValue = 0
    reader = open_series(images, tmp_path)
    difference = rng.normal(0, 20, (2, 6, 8)).astype(np.float32)
    results, writer = derive(reader, tmp_path / "out", difference, role="difference")
    for ds, plane in zip(results, difference, strict=True):
        assert ds.PixelRepresentation == 1
        assert np.abs(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) - plane).max() <= 0.5 + 1e-6
        assert "PixelPaddingValue" not in ds
        assert "WindowCenter" not in ds
        assert ds.SeriesNumber == 703
        assert ds.DerivationCodeSequence[0].CodeValue == "113062"
    assert writer.clipped == 0


def test_monochrome1_is_written_back_as_monochrome1(tmp_path, rng):
    images = stack(rng, slices=1)
    images[0].PhotometricInterpretation = "MONOCHROME1"
    results, _ = derive(open_series(images, tmp_path), tmp_path / "out")
    assert results[0].PhotometricInterpretation == "MONOCHROME1"
    assert results[0].PixelData == images[0].PixelData


def test_words_of_a_big_endian_source_are_brought_to_little_endian(tmp_path, rng):
    images = stack(rng, slices=1)
    ds = images[0]
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table["LUTDescriptor"].VR = "US"
    words = np.array([1, 2, 3, 1000], dtype="<u2")
    table.add_new(0x00283006, "OW", words.byteswap().tobytes())
    ds.VOILUTSequence = Sequence([table])
    expected = ds.pixel_array.copy()
    ds.PixelData = expected.astype(">i2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "big.dcm"
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False, enforce_file_format=True)
    reader = open_dicom(group_dicom([path])[0][0])
    results, _ = derive(reader, tmp_path / "out")
    assert np.array_equal(results[0].pixel_array, expected)
    assert results[0].VOILUTSequence[0].LUTData == words.tobytes()


def test_overlays_of_their_own_are_kept_and_those_in_pixel_bits_are_dropped(tmp_path, rng):
    images = stack(rng, slices=1, modality="MR", dtype="u2")
    ds = images[0]
    for group, position in ((0x6000, 0), (0x6002, 15)):
        ds.add_new((group, 0x0010), "US", 6)
        ds.add_new((group, 0x0011), "US", 8)
        ds.add_new((group, 0x0100), "US", 1)
        ds.add_new((group, 0x0102), "US", position)
    ds.add_new((0x6000, 0x3000), "OW", b"\1\2\3\4\5\6")
    results, _ = derive(open_series(images, tmp_path), tmp_path / "out")
    assert results[0][0x6000, 0x3000].value == b"\1\2\3\4\5\6"
    assert (0x6002, 0x0010) not in results[0]


def test_an_earlier_derivation_and_its_equipment_are_kept(tmp_path, rng):
    images = stack(rng, slices=1)
    ds = images[0]
    code, equipment = pydicom.Dataset(), pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113072", "DCM", "Multiplanar reformatting"
    equipment.Manufacturer = "Someone"
    ds.DerivationDescription, ds.DerivationCodeSequence = "reformatted", Sequence([code])
    ds.ContributingEquipmentSequence = Sequence([equipment])
    ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "10"
    results, _ = derive(open_series(images, tmp_path), tmp_path / "out")
    assert results[0].DerivationDescription.endswith("; source: reformatted")
    assert [c.CodeValue for c in results[0].DerivationCodeSequence] == ["113072", "113087"]
    assert [e.Manufacturer for e in results[0].ContributingEquipmentSequence] == ["Someone", "medseq"]
    assert (results[0].LossyImageCompression, results[0].LossyImageCompressionRatio) == ("01", 10)


@pytest.mark.parametrize("number", [None, "0", "2147483647"])
def test_series_numbers_stay_in_range(tmp_path, rng, number):
    images = stack(rng, slices=1)
    images[0].SeriesNumber = number
    results, _ = derive(open_series(images, tmp_path), tmp_path / "out")
    assert 0 < int(results[0].SeriesNumber) < 2**31


def test_long_descriptions_and_names_in_other_scripts_survive(tmp_path, rng):
    images = stack(rng, slices=1)
    images[0].SpecificCharacterSet = "ISO_IR 192"
    images[0].PatientName = "Ümläut^Ärzte"
    images[0].SeriesDescription = "Schädel ohne KM, sehr dünne Schichten, Rekonstruktion weich 2"
    results, _ = derive(open_series(images, tmp_path), tmp_path / "out")
    assert results[0].PatientName == "Ümläut^Ärzte"
    assert results[0].SeriesDescription.startswith("RUO medseq ct-denoise Schädel")
    assert len(results[0].SeriesDescription) <= 64


def test_identity_stays_in_the_file_and_out_of_every_message(tmp_path, rng):
    reader = open_series(stack(rng), tmp_path)
    results, _ = derive(reader, tmp_path / "out")
    assert (results[0].PatientName, results[0].PatientID) == (PATIENT_NAME, PATIENT_ID)
    messages = []
    writer = DicomSeriesWriter(tmp_path / "x", **MADE)
    for attempt in (
        lambda: writer.write(0, reader.read(0, 1)),
        lambda: writer.commit(),
        lambda: writer.begin(Volume.from_array(np.zeros((1, 2, 2))).header),
        lambda: (writer.begin(reader.header), writer.write(1, reader.read(0, 1))),
        lambda: (writer.begin(reader.header), writer.write(0, np.zeros((1, 2, 2), np.float32))),
        lambda: (writer.begin(reader.header), writer.commit()),
    ):
        with pytest.raises((OutputError, ShapeError)) as caught:
            attempt()
        messages.append(str(caught.value))
    writer.abort()
    assert [m.split(" (")[0].split(";")[0] for m in messages] == [
        "nothing was begun",
        "nothing was begun",
        "a derived DICOM series needs the DICOM slices that it derives from",
        "planes do not continue the volume",
        "planes do not continue the volume",
        "the series is not complete",
    ]
    assert not any(word in message.lower() for message in messages for word in PLANTED)


def test_a_modality_lookup_table_cannot_be_written_back(tmp_path, rng):
    images = stack(rng, slices=1, modality="MR", dtype="u2")
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "US", [0, 1]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    images[0].ModalityLUTSequence = Sequence([table])
    reader = open_series(images, tmp_path)
    with pytest.raises(OutputError, match="look-up table cannot be turned round"):
        DicomSeriesWriter(tmp_path / "out", **MADE).begin(reader.header)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [({"role": "truth"}, "no such role"), ({"created_utc": "yesterday"}, "not a time.*ISO 8601")],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, changes, pattern):
    with pytest.raises(OutputError, match=pattern):
        DicomSeriesWriter(tmp_path / "out", **{**MADE, **changes})


def test_nothing_is_visible_before_commit_and_after_abort(tmp_path, rng):
    reader = open_series(stack(rng), tmp_path / "in")
    target = tmp_path / "results" / "out"
    writer = DicomSeriesWriter(target, **MADE)
    writer.begin(reader.header)
    writer.write(0, reader.read(0, 5))
    assert not target.exists()
    writer.abort()
    writer.abort()
    assert os.listdir(target.parent) == []
    # What a killed process left behind does not disturb the next writer, and an old result is replaced whole.
    target.mkdir()
    (target / "9999.dcm").write_text("old")
    (target.parent / ".out.partial").mkdir()
    (target.parent / ".out.partial" / "0001.dcm").write_text("half")
    derive(reader, target)
    assert sorted(os.listdir(target)) == [f"{k:04d}.dcm" for k in range(1, 6)]
    assert os.listdir(target.parent) == ["out"]
    writer.abort()
    assert target.exists()


def test_a_full_disk_is_retryable_and_leaves_nothing_after_abort(tmp_path, rng, monkeypatch):
    reader = open_series(stack(rng), tmp_path / "in")
    target = tmp_path / "results" / "out"
    writer = DicomSeriesWriter(target, **MADE)
    writer.begin(reader.header)
    writer.write(0, reader.read(0, 2))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RetryableError, match=r"ENOSPC.*free space") as caught:
        writer.write(2, reader.read(2, 3))
    assert not any(word in str(caught.value).lower() for word in PLANTED)
    writer.abort()
    assert os.listdir(target.parent) == []


def test_a_source_that_changed_under_the_writer_is_an_error_not_a_crash(tmp_path, rng):
    reader = open_series(stack(rng), tmp_path / "in")
    planes = reader.read(0, 5)
    reader.header.source.files[1].write_bytes(b"gone")
    writer = DicomSeriesWriter(tmp_path / "out", **MADE)
    writer.begin(reader.header)
    with pytest.raises(InputError, match="cannot be decoded"):
        writer.write(0, planes)
    writer.abort()
    assert not (tmp_path / "out").exists()
