"""Degradations: physics, reproducibility, and that they leave no trace where they should not."""

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

from medseq.data.degrade import CTScanner, gaussian_noise, line_integrals, low_dose_ct, rician_noise
from medseq.errors import InputError, ShapeError

SCANNER = CTScanner(angles=120)


@pytest.fixture
def generator(seed):
    return torch.Generator().manual_seed(seed)


def disc(side=96, radius=0.8):
    axis = np.linspace(-1, 1, side)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.where(x**2 + y**2 < radius**2, 0.0, -1000.0).astype(np.float32)


def test_full_dose_returns_the_image_bit_for_bit(generator):
    image = 100 * torch.randn(40, 56, generator=generator).numpy()
    assert low_dose_ct(image, 0.8, 1.0, generator, SCANNER).tobytes() == image.tobytes()
    assert rician_noise(image, 0.0, generator).tobytes() == image.tobytes()


def test_line_integral_of_water_is_length_times_attenuation():
    integrals = line_integrals(disc(), 2.0, SCANNER)
    # A ray through the centre crosses 0.8 * 96 pixels of 2 mm; the pixelated edge is half a pixel uncertain.
    assert integrals.max() == pytest.approx(0.8 * 96 * 2.0 * SCANNER.mu_water, rel=0.03)


def test_noise_grows_as_one_over_dose(generator):
    image, scanner = disc(), CTScanner(angles=120, electronic_sd=0.0)
    centre = np.s_[32:64, 32:64]

    def sd(dose):
        draws = [low_dose_ct(image, 2.0, dose, generator, scanner)[centre] - image[centre] for _ in range(6)]
        return np.std(draws)

    # Added variance (1/d - 1): 9 at dose 1/10 against 1 at dose 1/2; 6 draws of 1024 correlated pixels: ~5 %.
    assert sd(0.1) / sd(0.5) == pytest.approx(3.0, rel=0.15)


def test_noise_does_not_move_the_mean(generator):
    image = disc()
    change = np.mean([low_dose_ct(image, 1.0, 0.25, generator, SCANNER) - image for _ in range(8)])
    assert abs(change) < 1.0


def test_degraded_minus_clean_holds_no_structure(generator):
    """The inserted noise must not correlate with edges: a network could otherwise learn to undo the projector."""
    image = (1000 * resize(shepp_logan_phantom(), (96, 96)) - 1000).astype(np.float32)
    noise = np.mean([low_dose_ct(image, 1.0, 0.25, generator, SCANNER) - image for _ in range(6)], axis=0)
    gradient = np.hypot(*np.gradient(image))
    assert abs(np.corrcoef(noise.ravel(), gradient.ravel())[0, 1]) < 0.1


def test_same_generator_state_gives_the_same_image():
    first, second = (low_dose_ct(disc(), 1.0, 0.2, torch.Generator().manual_seed(5), SCANNER) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_rician_moments(generator):
    """Background is Rayleigh: mean sqrt(pi/2) sd; bright signal keeps its mean up to sd^2 / 2A."""
    sd, signal = 3.0, 60.0
    background = rician_noise(np.zeros((300, 300), np.float32), sd, generator)
    assert background.mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=0.01)
    bright = rician_noise(np.full((300, 300), signal, np.float32), sd, generator)
    assert bright.mean() == pytest.approx(signal + sd**2 / (2 * signal), rel=0.002)
    assert gaussian_noise(np.zeros((300, 300)), sd, generator).std() == pytest.approx(sd, rel=0.02)


@pytest.mark.parametrize("dose", [0.0, -1.0, 1.5])
def test_impossible_doses_are_refused(dose, generator):
    with pytest.raises(InputError, match=r"dose is out of range \(found .*, wanted 0 < dose <= 1"):
        low_dose_ct(disc(), 1.0, dose, generator)


def test_bad_images_are_refused(generator):
    broken = disc()
    broken[3, 4] = np.nan
    with pytest.raises(InputError, match="not finite"):
        low_dose_ct(broken, 1.0, 0.5, generator)
    with pytest.raises(ShapeError, match="single slice"):
        low_dose_ct(np.zeros((2, 8, 8)), 1.0, 0.5, generator)


def test_single_pixel_and_metal_survive(generator):
    assert np.isfinite(low_dose_ct(np.full((1, 1), 40.0), 1.0, 0.5, generator)).all()
    metal = disc(48)
    metal[20:28, 20:28] = 30_000
    assert np.isfinite(low_dose_ct(metal, 2.0, 0.25, generator, SCANNER)).all()
