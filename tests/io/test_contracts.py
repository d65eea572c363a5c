"""The value objects that other parts rely on: what they accept and what they say when they do not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseq.errors import OutputError, ShapeError
from medseq.io.features import Bag
from medseq.io.integers import integer_limits, row_blocks, to_stored
from medseq.io.kspace import FFTConvention, KSpaceReader, KSpaceSlice
from medseq.io.slide import Slide
from medseq.io.volume import SourceRef, Volume, VolumeHeader, VolumeReader, slice_affines


def kspace(coils=3, rows=4, cols=6):
    return np.ones((coils, rows, cols), np.complex64)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_kspace_slice_takes_a_mask_of_columns_or_of_all_samples(rows):
    mask = np.ones((1, rows, 6), bool)
    assert KSpaceSlice(kspace(), mask).sens_maps is None


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"kspace": np.ones((3, 4, 6, 2), np.float32)}, "k-space has the wrong form.*float32"),
        ({"kspace": kspace()[0]}, r"k-space has the wrong form.*\(4, 6\)"),
        ({"mask": np.ones((1, 1, 6))}, "mask has the wrong form.*float64"),
        ({"mask": np.ones((1, 1, 4), bool)}, r"mask has the wrong form.*\(1, 1, 4\)"),
        ({"sens_maps": kspace(coils=5)}, r"disagree.*\(5, 4, 6\).*sens_maps=None"),
        ({"noise_cov": np.eye(2)}, r"noise covariance.*\(3, 3\)"),
    ],
)
def test_kspace_of_the_wrong_form_is_refused(arguments, pattern):
    with pytest.raises(ShapeError, match=pattern):
        KSpaceSlice(**{"kspace": kspace(), "mask": np.ones((1, 1, 6), bool), **arguments})


def test_a_kspace_reader_is_recognised_by_its_attributes():
    class Reader:
        n, fft, recon_shape, fov_mm, phase_axis, affine = 1, FFTConvention(), (4, 4), None, 1, None
        source = SourceRef("memory")

        def read(self, i):
            return KSpaceSlice(kspace(), np.ones((1, 1, 6), bool))

    assert isinstance(Reader(), KSpaceReader)
    assert not isinstance(object(), KSpaceReader)
    assert FFTConvention() == FFTConvention("centre", "ortho")


def test_a_slide_is_recognised_by_its_attributes():
    class Reader:
        dims, levels, mpp, mpp_source = ((100, 80),), 1, (0.5, 0.5), "file"

        def region(self, x0, y0, level, width, height):
            return np.zeros((height, width, 3), np.uint8)

    assert isinstance(Reader(), Slide)


def test_a_bag_checks_its_features_and_coordinates():
    features = np.zeros((7, 4), np.float16)
    assert Bag(features, "s", "p", coords=np.zeros((7, 2), np.int64)).features is features
    with pytest.raises(ShapeError, match="features have the wrong form.*float64"):
        Bag(np.zeros((7, 4)), "s", "p")
    with pytest.raises(ShapeError, match=r"features and coordinates disagree.*int64 \(7, 2\)"):
        Bag(features, "s", "p", coords=np.zeros((6, 2), np.int64))
    assert "0." not in repr(Bag(features, "s", "p"))


def test_a_volume_is_a_reader_of_time_major_planes(rng):
    array = rng.normal(size=(3, 4, 5, 2))
    volume = Volume.from_array(array)
    assert isinstance(volume, VolumeReader)
    assert volume.header.planes == 6
    assert np.array_equal(
        volume.read(2, 5),
        np.stack([array[2, :, :, 0], array[0, :, :, 1], array[1, :, :, 1]], 0, dtype="f4", casting="same_kind"),
    )
    assert volume.valid(0, 6) is None


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"shape": (3, 4)}, "volume shape is not usable"),
        ({"shape": (0, 4, 5)}, "volume shape is not usable"),
        ({"affine": np.eye(3)}, "affine has the wrong shape"),
        ({"slice_affines": np.zeros((2, 4, 4))}, "one affine a slice"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(changes, pattern):
    arguments = {
        "shape": (3, 4, 5),
        "dtype": np.dtype("f4"),
        "affine": np.eye(4),
        "slice_affines": slice_affines(np.eye(4), 3),
        "modality": "OT",
        "units": "1",
    }
    with pytest.raises(ShapeError, match=pattern):
        VolumeHeader(**{**arguments, **changes})


def test_a_source_never_prints_its_files():
    assert repr(SourceRef("dicom", (Path("/data/DOE_JANE/1.dcm"),), "secret")) == "SourceRef(dicom, 1 files)"


@pytest.mark.parametrize(
    ("dtype", "bits", "limits"),
    [
        ("u2", 12, (0, 4095)),
        ("i2", 12, (-2048, 2047)),
        ("i2", None, (-32768, 32767)),
        ("u1", 8, (0, 255)),
        ("i8", None, (-(2**53), 2**53)),
    ],
)
def test_limits_of_stored_bits(dtype, bits, limits):
    assert integer_limits(np.dtype(dtype), bits) == limits


def test_stored_values_solve_the_rescale(rng):
    values = rng.uniform(-100, 100, (50, 7)).astype(np.float32)
    stored, clipped = to_stored(values, -0.5, 3.0, np.dtype("i2"), (-150, 150))
    inside = ~clipped
    assert np.abs(stored * -0.5 + 3.0 - values)[inside].max() <= 0.25 + 1e-5
    assert np.array_equal(clipped, np.abs(np.rint((values.astype(float) - 3) / -0.5)) > 150)
    assert set(np.unique(stored[clipped])) <= {-150, 150}
    with pytest.raises(OutputError, match="case 4: integer pixels cannot hold NaN .*1 of 2 pixels"):
        to_stored(np.array([1.0, np.nan]), 1.0, 0.0, np.dtype("i2"), (0, 1), "case 4")


def test_row_blocks_cover_every_row_once():
    for shape in ((1, 1), (8192, 8192), (5, 3_000_000), (7,)):
        rows = np.concatenate([np.arange(shape[0])[block] for block in row_blocks(shape)])
        assert np.array_equal(rows, np.arange(shape[0]))


def test_importing_io_loads_no_format_library_and_no_torch():
    code = (
        "import sys, importlib, pkgutil, medseq.io\n"
        "for m in pkgutil.iter_modules(medseq.io.__path__):\n"
        "    behind_a_face = m.name.startswith(('dicom_', 'deidentify_', 'pacs_'))\n"
        "    if not behind_a_face or m.name in ('dicom_types', 'dicom_geometry'):\n"
        "        importlib.import_module('medseq.io.' + m.name)\n"
        "print([m for m in ('torch', 'pydicom', 'nibabel', 'h5py', 'openslide', 'highdicom') if m in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_without_pydicom_the_message_says_what_to_install(monkeypatch):
    from medseq.errors import BackendError
    from medseq.io.dicom import group_dicom

    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(BackendError, match=r"pip install 'medseq\[dicom\]'"):
        group_dicom([])
