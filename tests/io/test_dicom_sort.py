"""Which files form a volume, which are refused, and what the refusals say."""

import shutil

import numpy as np
import pytest

from medseq.errors import FormatError, RetryableError
from medseq.io.dicom import group_dicom, open_dicom
from medseq.io.privacy import path_label
from medseq.io.source import source_warnings
from tests.io.synthetic import CORONAL, OBLIQUE, PLANTED, SAGITTAL, save, stack


def accounted(paths, result):
    """Every file ends in exactly one place."""
    stacks, skipped, broken = result
    ends = [f for s in stacks for f in s.files] + [s.path for s in skipped] + [p for b in broken for p in b.paths]
    assert sorted(ends) == sorted(paths)
    texts = [str(b.error) + b.label for b in broken] + [s.reason for s in skipped] + [repr(r) for r in (*result,)]
    for text in texts:
        assert not any(word in text.lower() for word in PLANTED), text
    return result


def group(paths):
    return accounted(paths, group_dicom(paths))


def refused(paths, pattern):
    stacks, skipped, broken = group(paths)
    assert (stacks, skipped, len(broken)) == ([], [], 1)
    with pytest.raises(FormatError, match=pattern):
        raise broken[0].error
    return broken[0]


def relabel(images, **changes):
    for ds in images:
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return images


def with_series(images, others):
    """Make `others` part of the series of `images`."""
    for ds in others:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(ds, keyword, images[0][keyword].value)
    return [*images, *others]


def test_an_empty_list_is_empty():
    assert group([]) == ([], [], [])


def test_text_files_are_skipped_as_not_dicom(tmp_path):
    paths = []
    for name, text in (("a.txt", "hello"), ("b.dcm", ""), ("c", "x" * 5000), ("d.json", '{"a": 1}')):
        (tmp_path / name).write_text(text)
        paths.append(tmp_path / name)
    _, skipped, _ = group(paths)
    assert [s.reason_code for s in skipped] == ["not-dicom"] * 4


def test_two_series_are_two_stacks(tmp_path, rng):
    paths = save(stack(rng), tmp_path, rng) + save(stack(rng, modality="MR", slices=3), tmp_path, rng)
    stacks, _, _ = group(paths)
    assert sorted((s.header.modality, s.header.units, s.header.shape) for s in stacks) == [
        ("CT", "HU", (5, 6, 8)),
        ("MR", "1", (3, 6, 8)),
    ]


def test_three_orientations_in_one_series_are_three_stacks(tmp_path, rng):
    images = stack(rng, slices=3)
    for orientation in (SAGITTAL, OBLIQUE):
        images = with_series(images, stack(rng, slices=3, orientation=orientation))
    stacks, _, _ = group(save(images, tmp_path, rng))
    assert len(stacks) == 3
    assert {s.series_uid for s in stacks} == {images[0].SeriesInstanceUID}
    assert all([w.code for w in source_warnings(s.header)] == ["series-split"] for s in stacks)
    assert len({uids for s in stacks for uids in [s.sop_uids]}) == 3


def test_two_matrix_sizes_in_one_series_are_two_stacks(tmp_path, rng):
    images = with_series(stack(rng), stack(rng, shape=(5, 4)))
    stacks, _, _ = group(save(images, tmp_path, rng))
    assert sorted(s.header.shape for s in stacks) == [(5, 5, 4), (5, 6, 8)]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("AcquisitionNumber", ("1", "2")),
        ("EchoNumbers", ("1", "2")),
        ("TemporalPositionIdentifier", ("1", "2")),
        ("EchoTime", ("12.5", "80")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
def test_positions_that_repeat_are_told_apart_by_the_acquisition(tmp_path, rng, keyword, values):
    first, second = (relabel(stack(rng, modality="MR"), **{keyword: value}) for value in values)
    images = with_series(first, second)
    stacks, _, _ = group(save(images, tmp_path, rng))
    assert [len(s.files) for s in stacks] == [5, 5]
    expected = {tuple(ds.SOPInstanceUID for ds in part) for part in (first, second)}
    assert {s.sop_uids for s in stacks} == expected
    assert all("series-split" in [w.code for w in source_warnings(s.header)] for s in stacks)


def test_two_attributes_together_may_be_needed(tmp_path, rng):
    images = []
    for echo in ("1", "2"):
        for time in ("1", "2", "3"):
            part = relabel(stack(rng, modality="MR"), EchoNumbers=echo, TemporalPositionIdentifier=time)
            images = with_series(images or part, part) if images else part
    stacks, _, _ = group(save(images, tmp_path, rng))
    assert [len(s.files) for s in stacks] == [5] * 6


def test_an_acquisition_number_per_slice_does_not_shatter_a_volume(tmp_path, rng):
    images = stack(rng, slices=6)
    for k, ds in enumerate(images):
        ds.AcquisitionNumber = str(k + 1)
    stacks, _, _ = group(save(images, tmp_path, rng))
    assert [len(s.files) for s in stacks] == [6]


def test_two_separate_slabs_of_two_acquisitions_are_two_stacks(tmp_path, rng):
    chest = relabel(stack(rng, slices=5), AcquisitionNumber="1")
    pelvis = relabel(stack(rng, slices=4, origin=(-10, -20, 301.3)), AcquisitionNumber="2")
    stacks, _, _ = group(save(with_series(chest, pelvis), tmp_path, rng))
    assert sorted(len(s.files) for s in stacks) == [4, 5]


def test_duplicated_slice_is_refused(tmp_path, rng):
    images = stack(rng)
    extra = with_series(images, stack(rng, slices=1, origin=(-10, -20, 35)))
    broken = refused(save(extra, tmp_path, rng), r"same position .*1 repeated positions, the first at slices 3 and 4")
    assert len(broken.paths) == 6
    assert broken.label.startswith("id-")


def test_a_duplicate_in_a_series_numbered_by_slice_is_refused_not_shattered(tmp_path, rng):
    images = with_series(stack(rng), stack(rng, slices=1, origin=(-10, -20, 35)))
    for k, ds in enumerate(images):
        ds.AcquisitionNumber = str(k + 1)
    refused(save(images, tmp_path, rng), "same position")


@pytest.mark.parametrize(
    ("lost", "pattern"),
    [
        ((3,), r"1 missing, the first gap of 5 mm after slice 3, wanted a slice every 2.5 mm"),
        ((3, 4), r"2 missing, the first gap of 7.5 mm after slice 3"),
        ((2, 6), r"2 missing, the first gap of 5 mm after slice 2"),
    ],
)
def test_missing_slices_are_refused_and_the_gap_is_named(tmp_path, rng, lost, pattern):
    images = [ds for k, ds in enumerate(stack(rng, slices=9)) if k not in lost]
    refused(save(images, tmp_path, rng), pattern)


def test_a_missing_slice_of_an_oblique_stack_is_refused(tmp_path, rng):
    images = [ds for k, ds in enumerate(stack(rng, slices=6, orientation=CORONAL)) if k != 2]
    refused(save(images, tmp_path, rng), "slices are missing")


def test_thicker_slices_on_purpose_are_uneven_not_incomplete(tmp_path, rng):
    positions = [(0, 0, z) for z in (0, 2.5, 5, 7.5, 12.5, 17.5, 22.5)]
    images = stack(rng, positions=positions)
    relabel(images[4:], SliceThickness="5")
    stacks, _, _ = group(save(images, tmp_path, rng))
    assert [w.code for w in source_warnings(stacks[0].header)] == ["uneven-spacing"]


def test_a_copy_of_a_file_is_skipped(tmp_path, rng):
    paths = save(stack(rng), tmp_path, rng)
    shutil.copy(paths[2], tmp_path / "zcopy.dcm")
    stacks, skipped, _ = group([*paths, tmp_path / "zcopy.dcm"])
    assert [len(s.files) for s in stacks] == [5]
    assert [s.reason_code for s in skipped] == ["copy"]


def test_two_different_files_with_one_uid_are_refused(tmp_path, rng):
    images = stack(rng)
    images[1].SOPInstanceUID = images[0].SOPInstanceUID
    refused(save(images, tmp_path, rng), "same SOP instance UID")


def test_truncated_pixels_break_their_series_with_one_error(tmp_path, rng):
    paths = save(stack(rng), tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:-40])
    broken = refused(paths, "pixel data are cut short .*found 56 of 96 bytes")
    assert len(broken.paths) == 5
    assert path_label(paths[3]) in str(broken.error)


@pytest.mark.parametrize("length", [132, 150, 300, 500, 900])
def test_a_file_cut_in_its_header_is_broken(tmp_path, rng, length):
    paths = save(stack(rng, slices=1), tmp_path)
    paths[0].write_bytes(paths[0].read_bytes()[:length])
    refused(paths, "no pixel data|no usable|no image size")


def test_dicom_without_pixel_data_is_broken(tmp_path, rng):
    images = stack(rng, slices=1)
    del images[0].PixelData
    refused(save(images, tmp_path), "no pixel data")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"ImagePositionPatient": ["1", "2"]}, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "not perpendicular unit vectors"),
        ({"ImageOrientationPatient": ["2", "0", "0", "0", "1", "0"]}, "not perpendicular unit vectors"),
        ({"PixelSpacing": ["0", "1"]}, "pixel spacing is not positive"),
        ({"RescaleSlope": "0"}, "the rescale makes no sense"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"HighBit": 11}, "do not start at bit 0"),
        ({"NumberOfFrames": "3"}, "cut short"),
        ({"Rows": 0}, "no image size"),
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, rng, changes, pattern):
    images = relabel(stack(rng, slices=1), **changes)
    refused(save(images, tmp_path), pattern)


def test_a_missing_position_is_refused(tmp_path, rng):
    images = stack(rng, slices=1)
    del images[0].ImagePositionPatient
    refused(save(images, tmp_path), "no usable ImagePositionPatient")


def test_an_unreadable_file_is_retryable(tmp_path, rng, monkeypatch):
    # Root may read everything, so the refusal is injected.
    paths = save(stack(rng, slices=1), tmp_path)
    import pathlib

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "open", denied)
    _, _, broken = group(paths)
    with pytest.raises(RetryableError, match="cannot be read .*Permission denied"):
        raise broken[0].error


@pytest.mark.parametrize(
    ("sop_class", "changes", "code"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.22", {"Modality": "SR"}, "sr"),
        ("1.2.840.10008.5.1.4.1.1.88.67", {"Modality": "SR"}, "sr"),
        ("1.2.840.10008.5.1.4.1.1.88.59", {"Modality": "KO"}, "ko"),
        ("1.2.840.10008.5.1.4.1.1.11.1", {"Modality": "PR"}, "pr"),
        ("1.2.840.10008.5.1.4.1.1.66.4", {"Modality": "SEG"}, "seg"),
        ("1.2.840.10008.5.1.4.1.1.481.3", {"Modality": "RTSTRUCT"}, "rt"),
        ("1.2.840.10008.5.1.4.1.1.481.2", {"Modality": "RTDOSE"}, "rt"),
        ("1.2.840.10008.5.1.4.1.1.104.1", {"Modality": "DOC"}, "non-image"),
        ("1.2.840.10008.5.1.4.1.1.2", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "scout"),
        ("1.2.840.10008.5.1.4.1.1.2", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "report-screen"),
        ("1.2.840.10008.5.1.4.1.1.2", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "report-screen"),
    ],
)
def test_what_is_no_image_is_skipped_with_its_reason(tmp_path, rng, sop_class, changes, code):
    images = relabel(stack(rng, slices=1), SOPClassUID=sop_class, **changes)
    images[0].file_meta.MediaStorageSOPClassUID = sop_class
    _, skipped, _ = group(save(images, tmp_path))
    assert [s.reason_code for s in skipped] == [code]
    assert skipped[0].reason


def test_a_secondary_capture_without_geometry_is_a_report_screen(tmp_path, rng):
    images = relabel(stack(rng, slices=1), SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    del images[0].ImagePositionPatient
    _, skipped, _ = group(save(images, tmp_path))
    assert [s.reason_code for s in skipped] == ["report-screen"]


def test_a_scout_beside_a_volume_leaves_the_volume_whole(tmp_path, rng):
    images = stack(rng)
    scout = relabel(stack(rng, slices=1, orientation=CORONAL), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    stacks, skipped, _ = group(save(with_series(images, scout), tmp_path, rng))
    assert [len(s.files) for s in stacks] == [5]
    assert [s.reason_code for s in skipped] == ["scout"]


def test_a_file_without_preamble_and_meta_header_is_read(tmp_path, rng):
    images = stack(rng, slices=2)
    paths = save(images, tmp_path)
    for ds, path in zip(images, paths, strict=True):
        del ds.file_meta
        ds.preamble = None
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert b"DICM" not in path.read_bytes()[:200]
    stacks, _, _ = group(paths)
    planes = open_dicom(stacks[0]).read(0, 2)
    assert np.array_equal(planes + 1024, [np.frombuffer(ds.PixelData, "<i2").reshape(6, 8) for ds in images])


def test_units_follow_the_rescale_type_and_the_pet_units(tmp_path, rng):
    cases = [
        ("CT", {}, "HU"),
        ("CT", {"RescaleType": "US"}, "1"),
        ("MR", {}, "1"),
        ("PT", {"Units": "BQML"}, "Bq/ml"),
        ("PT", {"Units": "GML"}, "SUVbw"),
        ("PT", {"Units": "GML", "SUVType": "LBM"}, "1"),
        ("PT", {"Units": "CNTS"}, "1"),
    ]
    for i, (modality, changes, units) in enumerate(cases):
        images = relabel(stack(rng, slices=2, modality=modality), **changes)
        stacks, _, _ = group(save(images, tmp_path / str(i)))
        assert (stacks[0].header.modality, stacks[0].header.units) == (modality, units)


def test_nothing_is_printed_or_warned_about_values_that_pydicom_dislikes(tmp_path, rng, capfd, caplog):
    images = stack(rng, slices=2)
    study = images[0].StudyInstanceUID
    for path in (paths := save(images, tmp_path)):
        # A UID with a letter: pydicom warns, and quotes it.
        path.write_bytes(path.read_bytes().replace(study.encode(), b"2.25.x" + study.encode()[6:]))
    stacks, _, _ = group(paths)
    open_dicom(stacks[0]).read(0, 2)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert "2.25" not in captured.out
    assert caplog.records == []
