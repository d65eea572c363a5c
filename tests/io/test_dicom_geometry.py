"""Where a pixel lies in the patient: against the DICOM formula, SimpleITK, highdicom and nibabel."""

import math

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.volume import VolumeGeometry

from medseq.errors import OutputError, ShapeError
from medseq.io.dicom import group_dicom, open_dicom
from medseq.io.dicom_geometry import grid_tolerance
from medseq.io.nifti import NiftiWriter, open_nifti
from medseq.io.resample import resample_uniform
from medseq.io.source import source_warnings
from tests.io.synthetic import AXIAL, CORONAL, OBLIQUE, SAGITTAL, normal, save, stack

ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": OBLIQUE}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_one(paths):
    stacks, skipped, broken = group_dicom(paths)
    assert not skipped
    assert not broken
    assert len(stacks) == 1
    return open_dicom(stacks[0])


@pytest.fixture(params=ORIENTATIONS)
def orientation(request):
    return ORIENTATIONS[request.param]


def formula(ds, col, row):
    """DICOM PS3.3 C.7.6.2.1.1, in RAS."""
    x, y = np.array(ds.ImageOrientationPatient[:3], float), np.array(ds.ImageOrientationPatient[3:], float)
    spacing = [float(v) for v in ds.PixelSpacing]
    point = np.array(ds.ImagePositionPatient, float) + x * spacing[1] * col + y * spacing[0] * row
    return point * (-1, -1, 1)


def test_affine_maps_every_pixel_where_dicom_says(tmp_path, rng, orientation):
    images = stack(rng, orientation=orientation)
    reader = read_one(save(images, tmp_path, rng))
    header = reader.header
    assert header.shape == (5, 6, 8)
    for k, ds in enumerate(images):
        for col, row in ((0, 0), (7, 0), (0, 5), (7, 5)):
            # The positions are decimal strings of at most 6 digits.
            assert np.allclose((header.affine @ (col, row, k, 1))[:3], formula(ds, col, row), atol=2e-6)
            assert np.allclose((header.slice_affines[k] @ (col, row, 0, 1))[:3], formula(ds, col, row), atol=1e-12)
        assert np.array_equal(reader.read(k, k + 1)[0], ds.pixel_array.astype(np.float32) - 1024)
    assert np.linalg.det(header.affine[:3, :3]) > 0
    assert header.spacing_mm == pytest.approx((2.5, 0.75, 0.5), abs=1e-6)


def test_affine_agrees_with_simpleitk_and_highdicom(tmp_path, rng, orientation):
    images = stack(rng, orientation=orientation)
    paths = save(images, tmp_path, rng)
    reader = read_one(paths)
    header = reader.header
    itk = SimpleITK.ReadImage([str(path) for path in header.source.files])
    ours = LPS @ header.affine
    assert np.allclose(itk.GetOrigin(), ours[:3, 3], atol=1e-6)
    direction = np.array(itk.GetDirection()).reshape(3, 3) * np.array(itk.GetSpacing())
    assert np.allclose(direction, ours[:3, :3], atol=1e-5)
    assert np.array_equal(SimpleITK.GetArrayFromImage(itk), reader.read(0, 5))
    volume = VolumeGeometry.from_attributes(
        image_position=images[0].ImagePositionPatient,
        image_orientation=images[0].ImageOrientationPatient,
        pixel_spacing=images[0].PixelSpacing,
        spacing_between_slices=2.5,
        rows=6,
        columns=8,
        number_of_frames=5,
        coordinate_system="PATIENT",
    )
    # highdicom counts slice, row, column.
    for index in ((0, 0, 0), (4, 5, 7), (2, 1, 6)):
        theirs = volume.map_indices_to_reference(np.array([index]))[0]
        # highdicom takes the other side of the normal as forward; compare through the origin it was given.
        sign = np.sign(volume.unit_vectors()[0] @ normal(orientation))
        mine = (ours @ (index[2], index[1], sign * index[0], 1))[:3]
        assert np.allclose(theirs, mine, atol=1e-5)


def test_the_order_of_files_does_not_matter(tmp_path, rng):
    paths = save(stack(rng, slices=7), tmp_path, rng)
    first, second = read_one(paths), read_one(paths[::-1])
    assert first.header.source.files == second.header.source.files
    assert np.array_equal(first.read(0, 7), second.read(0, 7))


def test_slices_sorted_by_position_even_if_instance_numbers_run_backwards(tmp_path, rng):
    images = stack(rng)
    for k, ds in enumerate(images):
        ds.InstanceNumber = str(100 - k)
    reader = read_one(save(images, tmp_path, rng))
    assert np.allclose(reader.header.slice_affines[:, 2, 3], 30 + 2.5 * np.arange(5))
    assert np.array_equal(reader.read(0, 1)[0] + 1024, images[0].pixel_array)


@pytest.mark.parametrize("degrees", [3.0, -18.5])
def test_gantry_tilt_becomes_an_exact_sheared_affine(tmp_path, rng, degrees):
    # The image plane is tilted about the x axis; the table still moves along z.
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    tilted = (1.0, 0.0, 0.0, 0.0, round(c, 7), round(s, 7))
    images = stack(rng, slices=9, orientation=tilted, step=(0.0, 0.0, 3.0))
    reader = read_one(save(images, tmp_path, rng))
    header = reader.header
    assert [w.code for w in source_warnings(header)] == ["gantry-tilt"]
    assert f"{abs(degrees):.2f} degrees" in source_warnings(header)[0].message
    for k in (0, 4, 8):
        assert np.allclose((header.affine @ (7, 5, k, 1))[:3], formula(images[k], 7, 5), atol=2e-6)
    assert header.spacing_mm[0] == pytest.approx(3.0 * c, abs=1e-5)
    writer = NiftiWriter(tmp_path / "tilted.nii")
    writer.begin(header)
    writer.write(0, reader.read(0, 9))
    path = writer.commit()[0]
    nifti = nib.load(path)
    assert (int(nifti.header["qform_code"]), int(nifti.header["sform_code"])) == (0, 1)
    # The sform is stored in single precision: 7 digits of coordinates below 100 mm.
    assert np.allclose(nifti.affine, header.affine, atol=1e-5)


def test_tilt_of_rounded_positions_is_no_tilt(tmp_path, rng):
    steps = np.array(normal(OBLIQUE)) * 7
    positions = [np.round(np.array((-10.0, -20.0, 30.0)) + k * steps, 1) for k in range(20)]
    reader = read_one(save(stack(rng, orientation=OBLIQUE, positions=positions), tmp_path))
    assert source_warnings(reader.header) == ()
    assert reader.header.affine is not None
    exact = reader.header.slice_affines[:, :3, 3] * (-1, -1, 1)
    assert np.allclose(exact, positions, atol=1e-12)


def test_grid_tolerance_is_bounded_by_voxel_and_rounding():
    assert grid_tolerance(5.0) == 0.25
    assert grid_tolerance(1.0) == 0.1
    assert grid_tolerance(0.01) == pytest.approx(0.002)


def uneven(rng, tmp_path, places=(0.0, 2.0, 4.0, 7.1, 10.2, 13.3)):
    positions = [(-10.0, -20.0, z) for z in places]
    return stack(rng, positions=positions), save


def test_uneven_spacing_has_no_affine_and_nifti_is_refused(tmp_path, rng):
    images, _ = uneven(rng, tmp_path)
    reader = read_one(save(images, tmp_path))
    assert reader.header.affine is None
    assert [w.code for w in source_warnings(reader.header)] == ["uneven-spacing"]
    assert np.allclose(reader.header.slice_affines[:, 2, 3], (0.0, 2.0, 4.0, 7.1, 10.2, 13.3))
    writer = NiftiWriter(tmp_path / "out" / "uneven.nii.gz")
    with pytest.raises(OutputError, match="unevenly spaced.*--resample"):
        writer.begin(reader.header)
    assert not (tmp_path / "out").exists()


def test_resampling_keeps_a_linear_ramp_where_it_is(tmp_path, rng):
    images, _ = uneven(rng, tmp_path)
    for ds in images:
        plane = np.full((6, 8), round(float(ds.ImagePositionPatient[2]) * 10), dtype="<i2")
        ds.PixelData = plane.tobytes()
    even = resample_uniform(read_one(save(images, tmp_path)))
    assert even.header.shape == (5, 6, 8)
    assert even.header.affine[2, 2] == pytest.approx(3.1)
    # The ramp is linear in z, so interpolation must reproduce it: value = 10 z - 1024.
    z = even.header.slice_affines[:, 2, 3]
    assert np.allclose(even.read(0, 5)[:, 0, 0], 10 * z - 1024, atol=1e-3)
    assert np.array_equal(even.read(2, 4), even.read(0, 5)[2:4])
    assert [w.code for w in source_warnings(even.header)] == ["resampled"]
    writer = NiftiWriter(tmp_path / "even.nii.gz")
    writer.begin(even.header)
    writer.write(0, even.read(0, 5))
    back = open_nifti(writer.commit()[0])
    assert np.array_equal(back.read(0, 5), even.read(0, 5))
    assert np.allclose(back.header.affine, even.header.affine, atol=1e-5)


def test_resampling_leaves_even_slices_alone_and_joins_padding(tmp_path, rng):
    even = read_one(save(stack(rng), tmp_path / "even"))
    assert resample_uniform(even) is even
    images, _ = uneven(rng, tmp_path)
    for k, ds in enumerate(images):
        ds.PixelPaddingValue = -2000
        if k == 1:
            plane = ds.pixel_array.copy()
            plane[0, 0] = -2000
            ds.PixelData = plane.tobytes()
    reader = read_one(save(images, tmp_path / "uneven"))
    valid = resample_uniform(reader).valid(0, 5)
    # New slices at 0, 3.1, 6.2, 9.3, 12.4; slice 1 (2.0) is a neighbour of the first (weight 0) and the second.
    assert valid[:, 0, 0].tolist() == [False, False, True, True, True]
    assert valid[:, 1:, 1:].all()


def test_resampling_refuses_slices_that_are_shifted_sideways(tmp_path, rng):
    images, _ = uneven(rng, tmp_path)
    images[2].ImagePositionPatient = ["-9", "-20", "4"]
    reader = read_one(save(images, tmp_path))
    with pytest.raises(ShapeError, match="do not lie along one line"):
        resample_uniform(reader)


def test_single_slice_uses_its_thickness(tmp_path, rng):
    reader = read_one(save(stack(rng, slices=1), tmp_path))
    assert reader.header.shape == (1, 6, 8)
    assert reader.header.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
    assert source_warnings(reader.header) == ()


def test_single_slice_of_unknown_thickness_says_so(tmp_path, rng):
    images = stack(rng, slices=1)
    images[0].SliceThickness = None
    reader = read_one(save(images, tmp_path))
    assert reader.header.spacing_mm[0] == 1.0
    assert [w.code for w in source_warnings(reader.header)] == ["single-slice-step"]


def test_positions_are_read_to_the_last_digit(tmp_path, rng):
    images = stack(rng, slices=2)
    images[0].ImagePositionPatient = ["-123.4567891", "0.1", "30"]
    images[1].ImagePositionPatient = ["-123.4567891", "0.1", "32.5"]
    paths = save(images, tmp_path)
    exact = [float(text) for text in ("-123.4567891", "0.1", "30")]
    position = read_one(paths).header.slice_affines[0, :3, 3] * (-1, -1, 1)
    assert position.tolist() == exact
    assert pydicom.dcmread(paths[0]).ImagePositionPatient == exact
