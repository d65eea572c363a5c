"""An asymmetric phantom never flips: a landmark keeps its place in the patient through every path."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from medseq.io.nifti import NiftiWriter, open_nifti
from tests.io.synthetic import AXIAL, CORONAL, OBLIQUE, SAGITTAL, enhanced, save, set_pixels, stack

ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "oblique": OBLIQUE,
    "axial, columns to the right": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "tilted": (1.0, 0.0, 0.0, 0.0, 0.98480775, 0.17364818),
}
# Three landmarks that no flip, swap or rotation of the axes maps onto themselves.
LANDMARKS = {900: (1, 1, 2), 1200: (4, 1, 2), 1500: (1, 4, 6)}
MADE = {
    "bundle_name": "x",
    "bundle_hash": "a",
    "params_hash": "b",
    "version": "0.1.0",
    "role": "result",
    "created_utc": "2026-01-01T00:00:00Z",
}


@pytest.fixture(params=ORIENTATIONS)
def phantom(request, tmp_path, rng):
    """Paths of a shuffled series, and where each landmark lies in RAS mm by the DICOM formula."""
    orientation = ORIENTATIONS[request.param]
    step = (0.0, 0.0, 2.5) if request.param == "tilted" else 2.5
    images = stack(rng, orientation=orientation, step=step)
    places = {}
    for ds in images:
        set_pixels(ds, np.zeros((6, 8), "i2"))
    for value, (k, row, col) in LANDMARKS.items():
        ds = images[k]
        plane = ds.pixel_array.copy()
        plane[row, col] = value + 1024
        set_pixels(ds, plane)
        x, y = np.array(ds.ImageOrientationPatient[:3], float), np.array(ds.ImageOrientationPatient[3:], float)
        lps = np.array(ds.ImagePositionPatient, float) + x * 0.5 * col + y * 0.75 * row
        places[value] = lps * (-1, -1, 1)
    return images, save(images, tmp_path, rng), places


def assert_landmarks(array, affine, places, atol=1e-4):
    """`array` in [slice, row, col] with `affine` has its landmarks at these millimetres (float32 sform: 1e-4 mm)."""
    for value, place in places.items():
        found = np.argwhere(array == value)
        assert len(found) == 1
        k, row, col = found[0]
        assert np.allclose((affine @ (col, row, k, 1))[:3], place, atol=atol), value


def copy(reader, writer):
    writer.begin(reader.header)
    for lo in range(0, reader.header.planes, 2):
        writer.write(lo, reader.read(lo, min(lo + 2, reader.header.planes)))
    return writer.commit()


def test_dicom_to_volume(phantom):
    _, paths, places = phantom
    reader = open_dicom(group_dicom(paths)[0][0])
    assert_landmarks(reader.read(0, 5), reader.header.affine, places, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_dicom_to_nifti_to_nibabel_and_back(phantom, tmp_path, suffix):
    _, paths, places = phantom
    reader = open_dicom(group_dicom(paths)[0][0])
    path = copy(reader, NiftiWriter(tmp_path / f"a{suffix}"))[0]
    image = nib.load(path)
    # nibabel's own index order is (i, j, k) = (col, row, slice).
    assert image.shape == (8, 6, 5)
    assert_landmarks(image.get_fdata().T, image.affine, places)
    again = open_nifti(path)
    assert_landmarks(again.read(0, 5), again.header.affine, places)
    second = nib.load(copy(again, NiftiWriter(tmp_path / f"b{suffix}"))[0])
    assert np.array_equal(second.affine, image.affine)
    assert np.array_equal(second.get_fdata(), image.get_fdata())


def test_simpleitk_finds_the_landmarks_of_our_nifti(phantom, tmp_path, request):
    if "tilted" in request.node.name:
        # ITK refuses sforms that are not orthonormal; nibabel has checked that one above.
        with pytest.raises(RuntimeError, match="orthonormal"):
            _itk_landmarks(phantom, tmp_path)
    else:
        _itk_landmarks(phantom, tmp_path)


def _itk_landmarks(phantom, tmp_path):
    _, paths, places = phantom
    reader = open_dicom(group_dicom(paths)[0][0])
    image = SimpleITK.ReadImage(str(copy(reader, NiftiWriter(tmp_path / "a.nii"))[0]))
    array = SimpleITK.GetArrayFromImage(image)
    for value, place in places.items():
        k, row, col = (int(i) for i in np.argwhere(array == value)[0])
        lps = np.array(image.TransformIndexToPhysicalPoint((col, row, k)))
        # ITK makes its direction from the quaternion, in single precision.
        assert np.allclose(lps * (-1, -1, 1), place, atol=1e-3)


def test_dicom_to_derived_dicom(phantom, tmp_path):
    images, paths, places = phantom
    reader = open_dicom(group_dicom(paths)[0][0])
    written = copy(reader, DicomSeriesWriter(tmp_path / "out", **MADE))
    back = open_dicom(group_dicom(written)[0][0])
    assert_landmarks(back.read(0, 5), back.header.affine, places, atol=1e-5)
    assert np.array_equal(back.header.slice_affines, reader.header.slice_affines)
    by_position = {tuple(ds.ImagePositionPatient): ds for ds in images}
    for path in written:
        ds = pydicom.dcmread(path)
        assert ds.PixelData == by_position[tuple(ds.ImagePositionPatient)].PixelData


def test_enhanced_multiframe_to_derived_dicom(phantom, tmp_path, rng):
    images, _, places = phantom
    frames = [images[i] for i in rng.permutation(5)]
    reader = open_dicom(group_dicom(save([enhanced(frames)], tmp_path / "multi"))[0][0])
    assert_landmarks(reader.read(0, 5), reader.header.affine, places, atol=1e-5)
    written = copy(reader, DicomSeriesWriter(tmp_path / "out", **MADE))
    back = open_dicom(group_dicom(written)[0][0])
    assert_landmarks(back.read(0, 5), back.header.affine, places, atol=1e-5)
