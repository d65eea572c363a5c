"""Series on another grid than their source: geometry seen by four independent readers, values, validity, identity."""

import itertools
import shutil
import subprocess

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from medseq.errors import OutputError
from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from medseq.io.dicom_range import series_format
from medseq.io.dicom_types import PixelFormat
from medseq.io.nifti import NiftiWriter, open_nifti
from medseq.io.volume import SourceRef, VolumeHeader, slice_affines
from tests.io.dciodvfy import errors
from tests.io.synthetic import AXIAL, OBLIQUE, enhanced, save, set_pixels, stack, uid

MADE = {
    "bundle_name": "mr-sr",
    "bundle_hash": "ab" * 32,
    "params_hash": "cd" * 32,
    "version": "0.1.0",
    "role": "result",
    "created_utc": "2026-11-22T10:11:12Z",
}
# Signed permutations of the axes: 48, of which 24 are rotations; a DICOM stack sorts its slices, so that it has only
# those that a right-handed one can have.
SIGNED = [
    np.diag(signs)[list(order)].astype(float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
ROTATIONS = [matrix for matrix in SIGNED if np.linalg.det(matrix) > 0]


def header_on(source, shape, affine):
    return VolumeHeader(
        shape=shape,
        dtype=np.dtype("f4"),
        affine=affine,
        slice_affines=slice_affines(affine, shape[0]),
        modality=source.modality,
        units=source.units,
        frame_of_reference=source.frame_of_reference,
        source=source.source,
    )


def finer(source, slices=1, rows=1, columns=1):
    """The header of a grid finer by whole factors, in the same box of voxels: voxel centres move by half a step."""
    factors = np.array([columns, rows, slices], float)
    affine = source.affine.copy()
    affine[:3, :3] = source.affine[:3, :3] / factors
    affine[:3, 3] = source.affine[:3, 3] + source.affine[:3, :3] @ ((1 / factors - 1) / 2)
    s, r, c = source.shape
    return header_on(source, (s * slices, r * rows, c * columns), affine)


def write(header, values, folder, **changes):
    writer = DicomSeriesWriter(folder, **{**MADE, **changes})
    writer.begin(header)
    for i in range(header.shape[0]):
        writer.write(i, values[i : i + 1])
    return writer.commit(), writer


def opened(images, folder):
    return open_dicom(group_dicom(save(images, folder))[0][0])


def landmarks(array, affine):
    """Value -> where it lies (mm), for the voxels above 500."""
    return {
        round(float(array[index])): (affine @ (index[2], index[1], index[0], 1))[:3]
        for index in map(tuple, np.argwhere(array > 500))
    }


def assert_places(found, wanted, atol=1e-3):
    assert sorted(found) == sorted(wanted)
    for value in wanted:
        np.testing.assert_allclose(found[value], wanted[value], atol=atol, err_msg=str(value))


def phantom(shape):
    """Zero but for three landmarks that no flip, swap or rotation maps onto themselves."""
    values = np.zeros(shape, np.float32)
    values[1, 1, 2], values[-1, 1, 2], values[1, -2, -1] = 900, 1200, 1500
    return values


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 1, 1), (3, 2, 4)], ids=["in plane", "through plane", "both"])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("multiframe", [False, True], ids=["single-frame", "enhanced"])
def test_four_readers_find_super_resolution_where_it_is(tmp_path, rng, factors, orientation, multiframe):
    images = stack(rng, slices=3, modality="MR", orientation=orientation)
    source = opened([enhanced(images)] if multiframe else images, tmp_path / "in").header
    header = finer(source, *factors)
    values = phantom(header.shape)
    wanted = landmarks(values, header.affine)
    paths, writer = write(header, values, tmp_path / "out")
    assert (writer.clipped, writer.coarse) == (0, False)
    assert len(paths) == header.shape[0]
    # medseq
    back = open_dicom(group_dicom(paths)[0][0])
    assert_places(landmarks(back.read(0, header.shape[0]), back.header.affine), wanted)
    np.testing.assert_allclose(back.header.affine, header.affine, atol=1e-5)
    # pydicom, by the formula of the standard
    found = {}
    for ds in map(pydicom.dcmread, paths):
        plane = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        for row, col in np.argwhere(plane > 500):
            x, y = np.array(ds.ImageOrientationPatient[:3], float), np.array(ds.ImageOrientationPatient[3:], float)
            lps = np.array(ds.ImagePositionPatient, float)
            lps = lps + x * ds.PixelSpacing[1] * col + y * ds.PixelSpacing[0] * row
            found[round(float(plane[row, col]))] = lps * (-1, -1, 1)
        assert (ds.Rows, ds.Columns) == header.plane_shape
    assert_places(found, wanted)
    # highdicom
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    ras = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    places = {round(float(volume.array[i])): (ras @ (*i, 1))[:3] for i in map(tuple, np.argwhere(volume.array > 500))}
    assert_places(places, wanted)
    # SimpleITK
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    image = reader.Execute()
    array = SimpleITK.GetArrayFromImage(image)
    places = {
        round(float(array[tuple(i)])): np.array(image.TransformIndexToPhysicalPoint([int(n) for n in i[::-1]]))
        * (-1, -1, 1)
        for i in np.argwhere(array > 500)
    }
    assert_places(places, wanted)


def test_dcm2niix_and_nibabel_agree(tmp_path, rng):
    source = opened(stack(rng, slices=3, modality="MR", orientation=OBLIQUE), tmp_path / "in").header
    header = finer(source, 2, 2, 2)
    values = phantom(header.shape)
    write(header, values, tmp_path / "out")
    tool = shutil.which("dcm2niix")
    assert tool, "dcm2niix is missing: apt-get install dcm2niix (make system-test-deps)"
    (tmp_path / "nii").mkdir()
    done = subprocess.run(
        [tool, "-f", "x", "-o", tmp_path / "nii", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    picture = nibabel.load(tmp_path / "nii" / "x.nii")
    array = picture.get_fdata()
    found = {round(float(array[i])): (picture.affine @ (*i, 1))[:3] for i in map(tuple, np.argwhere(array > 500))}
    assert_places(found, landmarks(values, header.affine))


@pytest.mark.parametrize("number", range(24))
def test_24_orientations_come_back(tmp_path, rng, number):
    # Columns: directions of column, row and slice, in LPS.
    matrix = ROTATIONS[number]
    images = stack(rng, slices=3, orientation=(*matrix[:, 0], *matrix[:, 1]))
    values = phantom((3, 6, 8))
    for ds, plane in zip(images, values, strict=True):
        set_pixels(ds, (plane + 1024).astype("i2"))
    source = opened(images, tmp_path / "in")
    wanted = landmarks(source.read(0, 3), source.header.affine)
    np.testing.assert_allclose(source.header.affine[:3, :3], np.diag([-1, -1, 1]) @ matrix @ np.diag([0.5, 0.75, 2.5]))
    paths, _ = write(source.header, source.read(0, 3), tmp_path / "same")
    back = open_dicom(group_dicom(paths)[0][0])
    assert_places(landmarks(back.read(0, 3), back.header.affine), wanted, atol=1e-6)
    fine = finer(source.header, 1, 1, 2)
    paths, _ = write(fine, phantom(fine.shape), tmp_path / "fine")
    back = open_dicom(group_dicom(paths)[0][0])
    assert_places(landmarks(back.read(0, 3), back.header.affine), landmarks(phantom(fine.shape), fine.affine))


def test_48_orientations_of_nifti_come_back(tmp_path, rng):
    for number, matrix in enumerate(SIGNED):
        affine = np.eye(4)
        affine[:3, :3] = matrix @ np.diag([0.5, 0.75, 2.5])
        affine[:3, 3] = rng.normal(0, 50, 3).round(3)
        array = rng.integers(-500, 900, (8, 6, 3), dtype="i2")
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        reader = open_nifti(path)
        writer = NiftiWriter(tmp_path / f"{number}-out.nii")
        writer.begin(reader.header)
        writer.write(0, reader.read(0, 3))
        picture = nibabel.load(writer.commit()[0])
        np.testing.assert_array_equal(picture.affine, nibabel.load(path).affine)
        np.testing.assert_array_equal(np.asanyarray(picture.dataobj), array)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("role", ["result", "difference"])
def test_new_slices_are_valid_objects_with_their_own_identity(tmp_path, rng, modality, role):
    images = stack(rng, slices=2, modality=modality)
    for ds in images:
        ds.PixelPaddingValue, ds.SliceLocation, ds.ReconstructionDiameter = -2000, "3.5", "250"
    source = opened(images, tmp_path / "in")
    before = set().union(*(errors(path) for path in source.header.source.files))
    header = finer(source.header, 3, 2, 1)
    values = rng.uniform(0, 900, header.shape).astype(np.float32)
    paths, _ = write(header, values, tmp_path / "out", role=role)
    results = [pydicom.dcmread(path) for path in paths]
    for path in paths:
        assert errors(path) <= before
    assert len({ds.SOPInstanceUID for ds in results}) == 6
    assert len({ds.SeriesInstanceUID for ds in results} | {images[0].SeriesInstanceUID}) == 2
    assert [ds.InstanceNumber for ds in results] == list(range(1, 7))
    for ds in results:
        assert (ds.StudyInstanceUID, ds.PatientID) == (images[0].StudyInstanceUID, images[0].PatientID)
        assert ds.FrameOfReferenceUID == images[0].FrameOfReferenceUID
        assert [item.CodeValue for item in ds.DerivationCodeSequence][-1] == "113085"
        assert not [word for word in ("PixelPaddingValue", "SliceLocation", "ReconstructionDiameter") if word in ds]
        assert not [element for element in ds if element.tag.is_private]
        assert float(ds.SliceThickness) == pytest.approx(2.5 / 3, abs=1e-6)
    # A slice between two names both, the nearer first; one beyond the ends names one.
    referred = [[item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence] for ds in results]
    a, b = (ds.SOPInstanceUID for ds in images)
    assert referred == [[a], [a], [a, b], [b, a], [b], [b]]
    again, _ = write(header, values, tmp_path / "again", role=role)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "slope", "intercept", "coarse"),
    [
        (-1024, 3000, "u2", 1, -1024, False),  # fits as it is
        (-1024, 5000, "u2", 1, -1024, False),  # all allocated bits
        (-1100, 3000, "i2", 1, -1024, False),  # the other sign
        (-2000, 50000, "u2", 1, -2000, False),  # a moved intercept
        (-2000, 90000, "u2", 92000 / 65535, -2000, True),  # too wide for the unit
    ],
)
def test_the_format_of_a_series_follows_its_values(low, high, dtype, slope, intercept, coarse):
    pixels = PixelFormat(4, 4, 16, 12, False, "MONOCHROME2", "")
    chosen = series_format(low, high, 1.0, -1024.0, pixels, "CT")
    assert (chosen.dtype, chosen.slope, chosen.intercept, chosen.coarse) == (dtype, slope, intercept, coarse)
    for value in (low, high, (low + high) / 3):
        stored = round((value - chosen.intercept) / chosen.slope)
        assert chosen.limits[0] <= stored <= chosen.limits[1]
        assert abs(stored * chosen.slope + chosen.intercept - value) <= chosen.slope / 2 * (1 + 1e-9)


def test_pet_keeps_no_intercept_and_grows_its_slope():
    pixels = PixelFormat(4, 4, 16, 16, True, "MONOCHROME2", "")
    chosen = series_format(-5.0, 90000.0, 0.5, 0.0, pixels, "PT")
    assert (chosen.intercept, chosen.coarse) == (0.0, True)
    assert round(90000.0 / chosen.slope) == 32767


@pytest.mark.parametrize(
    ("extremes", "sign", "intercept"),
    [((-1100, 3000), 1, -1024), ((-2000, 50000), 0, -2000), ((-1000, 60000), 0, -1024)],
)
def test_a_series_on_its_own_grid_changes_sign_or_intercept_as_a_whole(tmp_path, rng, extremes, sign, intercept):
    images = stack(rng, slices=3, dtype="u2")
    for ds in images:
        ds.PixelPaddingValue = 7
    source = opened(images, tmp_path / "in")
    values = source.read(0, 3)
    values[1, 2, :2] = extremes
    valid = source.valid(0, 3)
    paths, writer = write(source.header, values, tmp_path / "out")
    assert writer.clipped == 0
    results = [pydicom.dcmread(path) for path in paths]
    assert {(ds.PixelRepresentation, float(ds.RescaleIntercept), float(ds.RescaleSlope)) for ds in results} == {
        (sign, intercept, 1.0)
    }
    for i, ds in enumerate(results):
        mask = np.ones(values.shape[1:], bool) if valid is None else valid[i]
        np.testing.assert_array_equal((ds.pixel_array + float(ds.RescaleIntercept))[mask], np.rint(values[i])[mask])
        assert ds.PixelPaddingValue + float(ds.RescaleIntercept) == 7 - 1024
        assert errors(paths[i]) == set()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0001.dcm", "0002.dcm", "0003.dcm"]


def test_what_dicom_cannot_hold_is_refused(tmp_path, rng):
    source = opened(stack(rng, slices=2), tmp_path / "in").header
    sheared = source.affine.copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    with pytest.raises(OutputError, match="this grid cannot be written"):
        write(header_on(source, (2, 6, 8), sheared), np.zeros((2, 6, 8), "f4"), tmp_path / "out")
    header = finer(source, 2)
    with pytest.raises(OutputError, match="NaN or infinite"):
        write(header, np.full(header.shape, np.nan, "f4"), tmp_path / "out")
    other = VolumeHeader(**{**vars(header), "source": SourceRef("memory")})
    with pytest.raises(OutputError, match="needs the DICOM slices"):
        write(other, np.zeros(header.shape, "f4"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_multi_frame_pet_becomes_single_frames_with_slopes_of_their_own(tmp_path, rng):
    images = stack(rng, slices=3, modality="PT")
    for i, ds in enumerate(images):
        ds.CountsSource, ds.SeriesType, ds.DecayCorrection = "EMISSION", ["STATIC", "IMAGE"], "START"
        ds.NumberOfSlices = 3
        ds.CorrectedImage, ds.CollimatorType, ds.RadiopharmaceuticalInformationSequence = ["ATTN", "DECY"], None, []
        ds.FrameReferenceTime, ds.ImageIndex, ds.ActualFrameDuration, ds.DecayFactor = "1000", i + 1, "1000", "1"
        ds.RescaleSlope, ds.Laterality = str(0.5 + i / 8), None
    files = save(images, tmp_path / "single")
    single = open_dicom(group_dicom(files)[0][0])
    multi = highdicom.legacy.LegacyConvertedEnhancedPETImage(
        [pydicom.dcmread(path) for path in files], uid(), 5, uid(), 1
    )
    source = opened([multi], tmp_path / "multi")
    assert source.header.units == single.header.units == "Bq/ml"
    np.testing.assert_array_equal(source.read(0, 3), single.read(0, 3))
    for name, header, values in (
        ("same", source.header, source.read(0, 3)),
        ("fine", finer(source.header, 2), np.repeat(source.read(0, 3), 2, axis=0)),
    ):
        paths, writer = write(header, values, tmp_path / name)
        assert writer.clipped == 0
        back = open_dicom(group_dicom(paths)[0][0])
        assert back.header.units == "Bq/ml"
        # Half of the source's unit: the finest slope there is.
        np.testing.assert_allclose(back.read(0, len(values)), values, atol=0.25 * (1 + 1e-5))
        for path in paths:
            assert errors(path) <= set().union(*(errors(file) for file in files))
    del multi.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence
    bare = opened([multi], tmp_path / "bare")
    with pytest.raises(OutputError, match="must say"):
        write(bare.header, bare.read(0, 3), tmp_path / "none")
