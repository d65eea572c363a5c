"""Image quality: closed forms, and agreement with the definitions."""

import numpy as np
import pytest

from medseq.errors import InputError, ShapeError
from medseq.ops.quality import in_window, nmse, noise_sd, psnr, rmse, ssim


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def image(seed):
    return np.random.default_rng(seed).normal(100, 20, (2, 24, 31))


def test_constant_error_has_a_closed_form(image):
    assert rmse(image + 3, image) == pytest.approx(3)
    assert psnr(image + 3, image, 300) == pytest.approx(40)
    assert nmse(1.5 * image, image) == pytest.approx(0.25)


def test_equal_images(image):
    assert psnr(image, image, 1.0) == float("inf")
    assert ssim(image, image, 255.0) == pytest.approx(1)
    assert rmse(image, image) == nmse(image, image) == 0


def test_ssim_of_a_shift_is_the_luminance_term(seed):
    """A constant image has no contrast: SSIM is (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b, data_range = *np.random.default_rng(seed).uniform(50, 200, 2), 255.0
    c1 = (0.01 * data_range) ** 2
    wanted = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert ssim(np.full((16, 16), a), np.full((16, 16), b), data_range) == pytest.approx(wanted)


def test_ssim_is_the_mean_over_slices(image):
    other = image + np.array([1.0, 30.0])[:, None, None] * np.sin(image)
    each = [ssim(a, b, 255) for a, b in zip(other, image, strict=True)]
    assert ssim(other, image, 255) == pytest.approx(np.mean(each))
    assert each[1] < each[0]


def test_window_limits_both_ends():
    assert in_window(np.array([[-2000.0, 0.0, 2000.0]]), (-160, 240)).tolist() == [[-160, 0, 240]]


def test_bad_arguments_are_named(image):
    with pytest.raises(ShapeError, match=r"found \(2, 24, 31\), wanted \(24, 31\)"):
        rmse(image, image[0])
    with pytest.raises(InputError, match="data_range must be positive"):
        psnr(image, image, 0)
    with pytest.raises(ShapeError, match="at least 11 x 11"):
        ssim(image[:, :10], image[:, :10], 1)


@pytest.mark.parametrize("sd", [0.5, 12.0, 300.0])
def test_noise_is_estimated_over_edges(rng, sd):
    step = np.where(np.arange(256) < 100, 0.0, 1000.0)[None] + np.zeros((256, 1))
    # The standard error of a MAD over 16384 coefficients is 0.9 %; edges and chance take the rest of 4 %.
    assert noise_sd(step + rng.normal(0, sd, (256, 256))) == pytest.approx(sd, rel=0.04)


def test_noise_ignores_padding_and_flat_background(rng):
    plane = rng.normal(0, 10, (256, 256))
    valid = np.ones_like(plane, dtype=bool)
    valid[:, :128] = False
    plane[:, :128] = -3000
    plane[200:] = 0
    assert noise_sd(plane, valid) == pytest.approx(10, rel=0.06)
    assert noise_sd(plane, np.zeros_like(valid)) == 0.0
    assert noise_sd(np.zeros((1, 1))) == 0.0
