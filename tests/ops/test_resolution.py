"""Zero filling and truncation: exact on band-limited images, inverse to each other, symmetric."""

import math

import pytest
import torch

from medseq.errors import ShapeError
from medseq.ops.resolution import truncate_kspace, zero_fill

SIZES = [((8, 6), (16, 18)), ((7, 9), (14, 27)), ((8, 7), (13, 8)), ((5, 1), (5, 3)), ((2, 2), (4, 8))]


def images(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_fft(image, fine):
    """The oracle of zero filling: the spectrum, shifted to the fine grid's own pixel centres, odd sizes only."""
    spectrum = torch.fft.fft2(image)
    for axis, (few, many) in enumerate(zip(image.shape, fine, strict=True)):
        k = torch.fft.fftfreq(few, 1 / few).to(torch.float64)
        shift = 0.5 * few / many - 0.5
        phase = torch.exp(2j * math.pi * k * shift / few)
        padded = torch.zeros([*spectrum.shape[:axis], many, *spectrum.shape[axis + 1 :]], dtype=torch.complex128)
        index = [slice(None)] * 2
        index[axis] = k.long() % many
        padded[tuple(index)] = spectrum * (phase[:, None] if axis == 0 else phase) * (many / few)
        spectrum = padded
    return torch.fft.ifft2(spectrum).real


def test_zero_filling_is_a_spectrum_surrounded_by_zeros(seed):
    image = images(seed, 7, 9)
    # float64, sums of 9 terms.
    torch.testing.assert_close(zero_fill(image, (15, 20)), by_fft(image, (15, 20)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("coarse", "fine"), SIZES)
def test_truncating_what_was_filled_gives_the_image_back(seed, coarse, fine):
    image = images(seed, 2, *coarse)
    torch.testing.assert_close(truncate_kspace(zero_fill(image, fine), coarse), image, rtol=0, atol=1e-12)
    assert torch.equal(zero_fill(image, coarse), image)
    assert torch.equal(truncate_kspace(image, coarse), image)


def test_frequencies_beyond_the_coarse_grid_vanish_and_others_keep_place_and_size():
    at = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    coarse = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    for k in (0, 3, 7, 9, 20, 31):
        fine = torch.cos(2 * math.pi * (k * at + 0.1))[None]
        wanted = torch.cos(2 * math.pi * (k * coarse + 0.1))[None] * (k < 8)
        torch.testing.assert_close(truncate_kspace(fine, (1, 16)), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("coarse", "fine"), SIZES)
def test_a_mirrored_image_is_treated_alike(seed, coarse, fine):
    image = images(seed, *coarse)
    torch.testing.assert_close(zero_fill(image.flip(0, 1), fine).flip(0, 1), zero_fill(image, fine))


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"one must be finer \(found \(8, 8\) and \(16, 4\)"):
        zero_fill(torch.zeros(8, 8), (16, 4))
    with pytest.raises(ShapeError, match=r"found \(9, 8\) and \(8, 8\)"):
        truncate_kspace(torch.zeros(8, 8), (9, 8))
