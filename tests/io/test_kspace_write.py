"""Reconstructions as HDF5 and NIfTI: complete or absent, where the reader said, in the shape others expect."""

import h5py
import nibabel
import numpy as np
import pytest

from medseq.errors import OutputError, ShapeError
from medseq.io.kspace_open import open_kspace
from medseq.io.kspace_write import ReconstructionWriter, centre_crop, recon_header
from medseq.io.nifti_write import NiftiWriter
from medseq.io.volume import VolumeWriter


@pytest.fixture
def reader(tmp_path, rng):
    np.save(tmp_path / "a.npy", (rng.normal(size=(3, 2, 10, 13)) + 1j).astype("c8"))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] * [0.8, 1.2, 4]
    affine = np.block([[turn, rng.normal(size=(3, 1))], [np.zeros((1, 3)), 1]])
    (tmp_path / "a.json").write_text(
        f'{{"axes": ["slice", "coil", "row", "col"], "affine": {affine.tolist()}, "recon_shape": [7, 8]}}'
    )
    return open_kspace(tmp_path / "a.npy", fft="centre")


def test_hdf5_holds_float32_slices(tmp_path, rng, reader):
    images = rng.random((3, 7, 8))
    writer = ReconstructionWriter(tmp_path / "out" / "a.h5", attributes={"model": "x"})
    assert isinstance(writer, VolumeWriter)
    writer.begin(recon_header(reader))
    writer.write(0, images[:2])
    assert not (tmp_path / "out" / "a.h5").exists()
    with pytest.raises(OutputError, match="not complete.*2 planes"):
        writer.commit()
    writer.write(2, images[2:])
    assert writer.commit() == [tmp_path / "out" / "a.h5"]
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert list(file) == ["reconstruction"]
        assert file["reconstruction"].dtype == np.float32
        assert np.array_equal(file["reconstruction"][()], images.astype("f4"))
        assert file.attrs["model"] == "x"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.h5"]


def test_an_aborted_file_leaves_nothing_and_misuse_is_refused(tmp_path, rng, reader):
    writer = ReconstructionWriter(tmp_path / "out" / "a.h5")
    with pytest.raises(OutputError, match="nothing was begun"):
        writer.write(0, np.zeros((1, 7, 8)))
    writer.begin(recon_header(reader))
    for lo, shape in ((1, (1, 7, 8)), (0, (1, 8, 7)), (0, (4, 7, 8))):
        with pytest.raises(ShapeError, match="do not continue the volume.*wanted plane 0"):
            writer.write(lo, np.zeros(shape))
    writer.abort()
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(OutputError, match="not an HDF5 name"):
        ReconstructionWriter(tmp_path / "a.nii")


def test_nifti_gets_the_affine_of_the_reader(tmp_path, rng, reader):
    images = rng.random((3, 7, 8)).astype("f4")
    writer = NiftiWriter(tmp_path / "a.nii.gz")
    writer.begin(recon_header(reader))
    writer.write(0, images)
    writer.commit()
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(image.get_fdata(), images.T)
    # NIfTI holds its affine in single precision.
    assert np.allclose(image.affine, reader.affine, atol=1e-5)


def test_without_an_affine_the_pixel_size_is_kept(tmp_path, rng):
    np.save(tmp_path / "a.npy", (rng.normal(size=(2, 10, 13)) + 1j).astype("c8"))
    (tmp_path / "a.json").write_text('{"axes": ["slice", "row", "col"], "fov_mm": [20, 39]}')
    header = recon_header(open_kspace(tmp_path / "a.npy", fft="centre"))
    assert header.shape == (2, 10, 13)
    assert header.spacing_mm == pytest.approx((1, 2, 3))


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("crop", [4, 5])
def test_a_crop_keeps_the_middle_in_the_middle(size, crop):
    image = np.zeros((2, size, size))
    image[:, size // 2, size // 2] = 1
    assert centre_crop(image, (crop, crop))[1, crop // 2, crop // 2] == 1
    with pytest.raises(ShapeError, match="smaller than the crop"):
        centre_crop(image, (size + 1, 2))
