"""Enhanced multi-frame objects: positions and rescale of every frame, read, split and written as single frames."""

import numpy as np
import pydicom
import pytest

from medseq.errors import FormatError, OutputError
from medseq.io.dicom import DicomSeriesWriter, display_window, group_dicom, open_dicom
from medseq.io.dicom_frames import flatten
from tests.io.synthetic import CORONAL, OBLIQUE, PLANTED, enhanced, save, stack, uid

MADE = {
    "bundle_name": "mr-denoise",
    "bundle_hash": "ab" * 32,
    "params_hash": "cd" * 32,
    "version": "0.1.0",
    "role": "result",
    "created_utc": "2026-11-22T10:11:12Z",
}


def read_one(path):
    stacks, skipped, broken = group_dicom([path])
    assert (len(stacks), skipped, broken) == (1, [], [])
    return open_dicom(stacks[0])


def shuffled(rng, frames):
    order = rng.permutation(len(frames))
    return [frames[i] for i in order]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", [CORONAL, OBLIQUE], ids=["coronal", "oblique"])
def test_frames_are_sorted_and_rescaled_one_by_one(tmp_path, rng, modality, orientation):
    frames = stack(rng, slices=6, modality=modality, orientation=orientation)
    for k, ds in enumerate(frames):
        ds.RescaleSlope, ds.RescaleIntercept = str(1 + k), str(-10 * k)
    path = save([enhanced(shuffled(rng, frames))], tmp_path)[0]
    single = group_dicom(save(frames, tmp_path / "single"))[0][0].header
    reader = read_one(path)
    expected = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in frames])
    assert np.array_equal(reader.read(0, 6), expected.astype(np.float32))
    assert np.array_equal(reader.read(2, 4), expected[2:4].astype(np.float32))
    assert np.array_equal(reader.header.affine, single.affine)
    assert np.array_equal(reader.header.slice_affines, single.slice_affines)
    assert (reader.header.modality, reader.header.units) == (modality, "HU" if modality == "CT" else "1")


def test_two_echoes_in_one_object_are_two_stacks_with_their_own_identity(tmp_path, rng):
    first, second = stack(rng, modality="MR"), stack(rng, modality="MR")
    for ds in second:
        ds.EchoTime = "80"
    path = save([enhanced(shuffled(rng, [*first, *second]))], tmp_path)[0]
    stacks, _, broken = group_dicom([path])
    assert broken == []
    assert [s.header.shape for s in stacks] == [(5, 6, 8)] * 2
    assert stacks[0].files == stacks[1].files == (path,)
    # An item's id is made of these: stacks that share a file must differ.
    assert set(stacks[0].sop_uids).isdisjoint(stacks[1].sop_uids)
    assert all("#" in name for s in stacks for name in s.sop_uids)
    got = {open_dicom(s).read(0, 5).tobytes() for s in stacks}
    want = {np.stack([ds.pixel_array for ds in part]).astype(np.float32).tobytes() for part in (first, second)}
    assert got == want


def test_a_whole_object_is_named_by_its_uid_alone(tmp_path, rng):
    ds = enhanced(stack(rng))
    stacks, _, _ = group_dicom(save([ds], tmp_path))
    assert stacks[0].sop_uids == (ds.SOPInstanceUID,)


def test_frames_of_two_objects_of_one_series_form_one_volume(tmp_path, rng):
    frames = stack(rng, slices=6)
    first, second = enhanced(frames[::2]), enhanced(frames[1::2])
    stacks, _, _ = group_dicom(save([first, second], tmp_path))
    assert [s.header.shape for s in stacks] == [(6, 6, 8)]
    expected = np.stack([ds.pixel_array for ds in frames]) - 1024
    assert np.array_equal(open_dicom(stacks[0]).read(0, 6), expected)


def test_groups_that_do_not_match_the_frames_are_refused(tmp_path, rng):
    ds = enhanced(stack(rng))
    del ds.PerFrameFunctionalGroupsSequence[4]
    _, _, broken = group_dicom(save([ds], tmp_path))
    with pytest.raises(FormatError, match="4 groups, 5 frames"):
        raise broken[0].error


def test_frames_without_geometry_are_refused(tmp_path, rng):
    ds = enhanced(stack(rng))
    del ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence
    _, _, broken = group_dicom(save([ds], tmp_path))
    with pytest.raises(FormatError, match="without per-frame geometry"):
        raise broken[0].error


def test_flatten_lets_a_frame_override_the_shared_value(rng):
    ds = enhanced(stack(rng, slices=2))
    measures = pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = ["9", "9"], "9"
    ds.PerFrameFunctionalGroupsSequence[1].PixelMeasuresSequence = [measures]
    assert flatten(ds, 0).PixelSpacing == [0.75, 0.5]
    assert flatten(ds, 1).PixelSpacing == [9, 9]
    assert flatten(ds, 0).AcquisitionNumber == 1
    assert flatten(ds, 0).ImageType == ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    assert ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.75, 0.5]


def test_the_window_of_a_frame_is_found(tmp_path, rng):
    ds = enhanced(stack(rng))
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        window = pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = str(100 + k), "50"
        group.FrameVOILUTSequence = [window]
    reader = read_one(save([ds], tmp_path)[0])
    assert display_window(reader.header, 3).center == 103
    assert display_window(reader.header).center == 102


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_derived_series_is_single_frame_and_lies_where_the_source_lies(tmp_path, rng, modality):
    frames = stack(rng, modality=modality, orientation=OBLIQUE)
    source = enhanced(shuffled(rng, frames))
    reader = read_one(save([source], tmp_path)[0])
    writer = DicomSeriesWriter(tmp_path / "out", **MADE)
    writer.begin(reader.header)
    for i in range(5):
        writer.write(i, reader.read(i, i + 1))
    paths = writer.commit()
    stacks, skipped, broken = group_dicom(paths)
    assert (len(stacks), skipped, broken) == (1, [], [])
    back = open_dicom(stacks[0])
    assert np.array_equal(back.header.affine, reader.header.affine)
    assert np.array_equal(back.read(0, 5), reader.read(0, 5))
    assert (back.header.modality, back.header.units) == (reader.header.modality, reader.header.units)
    for i, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        assert ds.SOPClassUID.name == f"{modality} Image Storage"
        assert "NumberOfFrames" not in ds
        assert "PerFrameFunctionalGroupsSequence" not in ds
        assert ds.InstanceNumber == i + 1
        assert ds.PatientID == source.PatientID
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        reference = ds.SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        place = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        assert ds.ImagePositionPatient == place.ImagePositionPatient
        if modality == "MR":
            assert (ds.ScanningSequence, ds.SequenceVariant, ds.EchoTime) == ("GR", "SP", 15)


def test_an_enhanced_class_without_a_single_frame_one_is_refused(tmp_path, rng):
    ds = enhanced(stack(rng))
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.13.1.1"
    ds.Modality = "XA"
    reader = read_one(save([ds], tmp_path)[0])
    writer = DicomSeriesWriter(tmp_path / "out", **MADE)
    with pytest.raises(OutputError, match="X-Ray 3D Angiographic.*NIfTI") as caught:
        writer.begin(reader.header)
    assert not any(word in str(caught.value).lower() for word in PLANTED)
    assert not (tmp_path / "out").exists()


def test_frames_of_compressed_multiframe_objects_are_read_one_by_one(tmp_path, rng):
    frames = stack(rng, slices=4, shape=(16, 16))
    ds = enhanced(shuffled(rng, frames))
    ds.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid()
    reader = read_one(save([ds], tmp_path)[0])
    for i in (3, 0, 2):
        assert np.array_equal(reader.read(i, i + 1)[0], frames[i].pixel_array - 1024)
