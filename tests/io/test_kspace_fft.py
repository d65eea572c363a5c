"""Fourier conventions: told apart by energy, converted exactly."""

import h5py
import numpy as np
import pytest

from medseq.io.kspace import FFTConvention, KSpaceReader, KSpaceSlice
from medseq.io.kspace_fft import centred, dc_origin, image_wrapped, modulated, rss_image, to_centre
from medseq.io.kspace_hdf5 import open_h5_kspace
from medseq.io.kspace_open import open_kspace
from tests.io.kspace_synthetic import codes, fft2c, head_images, ifft2c

SIZES = [(32, 40), (33, 40), (33, 25), (64, 37)]


@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_corner_becomes_centre_with_the_same_image(rng, rows, cols):
    images = head_images(rng, 3, rows, cols)
    mask = rng.random((1, rows, cols)) < 0.5
    corner = np.where(mask, np.fft.fft2(images, norm="ortho"), 0).astype("c8")
    part = to_centre(KSpaceSlice(corner, mask), FFTConvention("corner"))
    assert np.abs(ifft2c(part.kspace) - np.fft.ifft2(corner, norm="ortho")).max() < 1e-6 * np.abs(images).max()
    assert np.array_equal(part.mask[0], part.kspace.any(axis=0))
    same = KSpaceSlice(fft2c(images), mask)
    assert to_centre(same, FFTConvention("centre")) is same


@pytest.mark.parametrize(("rows", "cols"), SIZES)
@pytest.mark.parametrize("sampled", [1.0, 0.3])
def test_the_zero_frequency_is_found(rng, rows, cols, sampled):
    images = head_images(rng, 2, rows, cols)
    mask = rng.random(cols) < sampled
    mask[cols // 2 - 2 : cols // 2 + 3] = True
    kspace = fft2c(images) * mask
    assert dc_origin(kspace)[0] == "centre"
    assert dc_origin(np.fft.ifftshift(kspace, axes=(-2, -1)))[0] == "corner"


def test_noise_and_silence_tell_nothing(rng):
    noise = rng.normal(size=(2, 32, 32)) + 1j * rng.normal(size=(2, 32, 32))
    assert dc_origin(noise)[0] is None
    assert dc_origin(np.zeros((1, 8, 8), "c8"))[0] is None
    assert image_wrapped(noise.astype("c8"), "centre") is None


@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_a_wrapped_image_is_seen_and_moved_back(tmp_path, rng, rows, cols):
    images = head_images(rng, 2, rows, cols)
    mixed = np.fft.fftshift(np.fft.fft2(images, norm="ortho"), axes=(-2, -1)).astype("c8")
    assert image_wrapped(mixed, "centre") is True
    assert image_wrapped(fft2c(images), "centre") is False
    assert np.abs(ifft2c(modulated(mixed)) - images).max() < 1e-6 * np.abs(images).max()
    assert np.abs(modulated(modulated(mixed), inverse=True) - mixed).max() < 1e-6 * np.abs(mixed).max()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = mixed[None]
    reader = open_kspace(tmp_path / "a.h5")
    assert np.abs(ifft2c(reader.read(0).kspace) - images).max() < 1e-5 * np.abs(images).max()
    assert codes(reader) == ["fft-wrapped"]
    asked = open_kspace(tmp_path / "a.h5", fft="centre")
    assert np.array_equal(asked.read(0).kspace, mixed)
    assert "looks wrong" in asked.notices[0].message


@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_a_reader_can_be_brought_to_the_centre(tmp_path, rng, rows, cols):
    images = head_images(rng, 2, rows, cols)
    columns = np.ones(cols, bool)
    columns[cols // 3 : cols // 3 + 4] = False
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = (np.fft.fft2(images, norm="ortho") * columns)[None].astype("c8")
    reader = open_kspace(tmp_path / "a.h5", fft="corner")
    moved = centred(reader)
    assert isinstance(moved, KSpaceReader)
    assert moved.fft == FFTConvention("centre", "ortho")
    part = moved.read(0)
    assert np.array_equal(part.mask[0, 0], np.fft.fftshift(columns))
    assert np.abs(rss_image(part.kspace) - rss_image(reader.read(0).kspace, "corner")).max() < 1e-5
    assert codes(moved) == ["mask-derived"]
    assert centred(moved) is moved


def test_calgary_can_be_read_as_stored(tmp_path, rng):
    images = head_images(rng, 2, 20, 24)[None]
    kspace = np.fft.fftshift(np.fft.fft2(images, norm="ortho"), axes=(-2, -1)).transpose(0, 2, 3, 1)
    stored = np.stack([kspace.real, kspace.imag], axis=-1).reshape(1, 20, 24, 4).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = stored
    (reader,) = open_h5_kspace(tmp_path / "a.h5", as_stored=True)
    assert reader.fft == FFTConvention("corner", "ortho")
    found = reader.read(0).kspace
    assert np.array_equal(found, kspace[0].transpose(2, 0, 1).astype("c8"))
    # What the original toolkits see: the right magnitude by the plain inverse FFT.
    assert np.abs(np.abs(np.fft.ifft2(found, norm="ortho")) - np.abs(images[0])).max() < 1e-5 * np.abs(images).max()
