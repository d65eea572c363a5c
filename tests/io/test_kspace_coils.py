"""Noise and coils: whitened noise has unit covariance, compression keeps energy and stays smooth along the readout."""

import h5py
import numpy as np
import pytest

from medseq.errors import FormatError, InputError
from medseq.io.kspace_coils import (
    apply_coils,
    geometric_compression,
    noise_covariance,
    svd_compression,
    whitening_matrix,
)
from medseq.io.kspace_fft import fft_axis, ifft_axis, rss_image
from medseq.io.kspace_open import open_kspace
from tests.io.kspace_synthetic import codes, fft2c, head_images


def complex_noise(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def loop_images(rng, coils, rows, cols):
    """Coil images whose sensitivities change strongly along the rows."""
    image = head_images(rng, 1, rows, cols)[0]
    y = (np.arange(rows) - rows // 2)[:, None] / rows
    x = (np.arange(cols) - cols // 2)[None] / cols
    places = np.stack([rng.uniform(-0.5, 0.5, coils), rng.choice([-0.7, 0.7], coils)], axis=1)
    maps = [np.exp(1j * 5 * (y * a + x * b)) / (0.15 + (y - a) ** 2 + (x - b) ** 2) for a, b in places]
    return (image * np.stack(maps)).astype("c8")


def test_whitened_noise_has_unit_covariance(rng):
    coils = 6
    mixing = complex_noise(rng, coils, coils) + np.diag(rng.uniform(1, 5, coils))
    covariance = noise_covariance(mixing @ complex_noise(rng, coils, 100_000))
    exact = mixing @ mixing.conj().T
    # 1e5 samples: a standard error of 0.3 % of the power.
    assert np.abs(covariance - exact).max() < 0.02 * np.abs(exact).max()
    matrix = whitening_matrix(exact)
    # Exact up to single precision times the condition number.
    assert np.abs(matrix @ exact @ matrix.conj().T - np.eye(coils)).max() < 1e-6 * np.linalg.cond(exact)
    white = apply_coils(matrix, (mixing @ complex_noise(rng, coils, 100_000)).reshape(coils, 100, 1000))
    assert white.dtype == np.complex64
    assert np.abs(noise_covariance(white.reshape(coils, -1)) - np.eye(coils)).max() < 0.02


def test_dead_coils_stay_dead(rng):
    noise = complex_noise(rng, 4, 5000)
    noise[2] = 0
    matrix = whitening_matrix(noise_covariance(noise))
    assert not matrix[2].any()
    assert not matrix[:, 2].any()
    assert np.isfinite(matrix).all()


def test_useless_noise_is_refused(rng):
    for noise in (complex_noise(rng, 4, 3), np.zeros((4, 50)), np.full((2, 9), np.nan)):
        with pytest.raises(FormatError, match="noise measurement is of no use.*samples of"):
            noise_covariance(noise)
    with pytest.raises(FormatError, match="covariance makes no sense"):
        whitening_matrix(np.diag([1.0, -1.0]))
    with pytest.raises(FormatError, match="not positive definite"):
        whitening_matrix(np.array([[1, 2], [2, 1.0]]))


def test_svd_compression_keeps_as_much_energy_as_any(rng):
    kspace = fft2c(loop_images(rng, 8, 32, 24))
    singular = np.linalg.svd(kspace.reshape(8, -1), compute_uv=False)
    for count in (1, 3, 8):
        matrix = svd_compression(kspace, count)
        assert np.allclose(matrix @ matrix.conj().T, np.eye(count), atol=1e-5)
        kept = np.linalg.norm(apply_coils(matrix, kspace)) ** 2
        # The bound of Eckart and Young; single precision.
        assert kept == pytest.approx((singular[:count] ** 2).sum(), rel=1e-4)
    whole = apply_coils(svd_compression(kspace, 8), kspace)
    assert np.abs(rss_image(whole) - rss_image(kspace)).max() < 1e-5 * rss_image(kspace).max()
    for count in (0, 9):
        with pytest.raises(InputError, match=f"found {count}, wanted 1 to the 8 coils"):
            svd_compression(kspace, count)


def test_geometric_compression_is_aligned_and_keeps_more(rng):
    kspace = fft2c(loop_images(rng, 10, 48, 32))
    compression = geometric_compression(kspace, 3)
    matrices = compression.matrices
    gram = np.einsum("rvc,rwc->rvw", matrices, matrices.conj())
    assert np.allclose(gram, np.eye(3), atol=1e-5)
    # Aligned: each overlap with its neighbour is Hermitian and positive, so no rotation brings them nearer.
    overlap = np.einsum("rvc,rwc->rvw", matrices[:-1], matrices[1:].conj())
    assert np.abs(overlap - overlap.conj().transpose(0, 2, 1)).max() < 1e-4
    assert min(np.linalg.eigvalsh(part)[0] for part in overlap) > -1e-4
    geometric = np.linalg.norm(compression.kspace(kspace))
    svd = np.linalg.norm(apply_coils(svd_compression(kspace, 3), kspace))
    assert svd < geometric <= np.linalg.norm(kspace)
    hybrid = compression.image(ifft_axis(kspace, 1))
    assert np.abs(fft_axis(hybrid, 1) - compression.kspace(kspace)).max() < 1e-5 * np.abs(kspace).max()


@pytest.mark.parametrize("kind", ["svd", "geometric"])
def test_readers_compress_samples_and_maps_alike(tmp_path, rng, kind):
    images = loop_images(rng, 8, 32, 24)
    object_ = head_images(rng, 1, 32, 24)[0]
    maps = images / np.where(np.abs(object_) > 0, object_, 1)
    kspace = fft2c(maps * object_)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"], file["sensitivity_map"] = kspace[None], maps[None].astype("c8")
    part = open_kspace(tmp_path / "a.h5", virtual_coils=4, compression=kind).read(0)
    assert part.kspace.shape == part.sens_maps.shape == (4, 32, 24)
    assert part.mask.all()
    # The compressed maps still explain the compressed data: the forward model commutes with the compression.
    assert np.abs(fft2c(part.sens_maps * object_) - part.kspace).max() < 1e-4 * np.abs(part.kspace).max()
    same = open_kspace(tmp_path / "a.h5", virtual_coils=20, compression=kind).read(0)
    assert np.array_equal(same.kspace, kspace)


def test_compression_that_makes_no_sense(tmp_path, rng):
    kspace = fft2c(loop_images(rng, 4, 32, 24))
    skipped = rng.random((32, 24)) < 0.5
    skipped[12:20, 8:16] = False
    kspace[:, skipped] = 0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = kspace[None]
    with pytest.raises(InputError, match="needs a fully sampled readout.*use svd"):
        open_kspace(tmp_path / "a.h5", virtual_coils=2, compression="geometric").read(0)
    for wrong in ({"virtual_coils": 0}, {"virtual_coils": 2, "compression": "best"}):
        with pytest.raises(InputError, match="coil compression is impossible.*svd or geometric"):
            open_kspace(tmp_path / "a.h5", **wrong)
    reader = open_kspace(tmp_path / "a.h5", virtual_coils=2)
    reader.read(0)
    assert codes(reader) == ["mask-derived"]
