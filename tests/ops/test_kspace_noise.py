"""Noise read off the outer k-space."""

import pytest
import torch

from medseq.errors import InputError, ShapeError
from medseq.ops.fourier import fft2c, to_corner
from medseq.ops.kspace_noise import kspace_noise_sd


def scan(seed, noise, shape=(64, 72), coils=4):
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.linspace(-1, 1, size) for size in shape)
    blob = torch.exp(-6 * (y[:, None] ** 2 + x**2)) * torch.randn(coils, 1, 1, generator=generator)
    return fft2c(blob.to(torch.complex64))[None] + noise * torch.randn(
        1, coils, *shape, generator=generator, dtype=torch.complex64
    )


@pytest.mark.parametrize("noise", [0.01, 0.3])
@pytest.mark.parametrize("keep", [1.0, 0.2])
def test_finds_the_noise(noise, keep, seed):
    kspace = scan(seed, noise)
    mask = torch.rand((1, 1, 64, 72), generator=torch.Generator().manual_seed(seed)) < keep
    found = float(kspace_noise_sd(torch.where(mask, kspace, 0), mask))
    # About 130 samples a coil beyond the ellipse at the lower rate: the median of their power to 12 %, of sd to 6 %.
    assert found == pytest.approx(noise, rel=0.15)


def test_lines_an_ellipse_and_the_corner_convention(seed):
    kspace = scan(seed, 0.1)
    lines = (torch.arange(72) % 3 == 0).view(1, 1, 1, 72)
    masked = torch.where(lines, kspace, 0)
    assert float(kspace_noise_sd(masked, lines)) == pytest.approx(0.1, rel=0.15)
    assert torch.equal(
        kspace_noise_sd(to_corner(masked), to_corner(lines), origin="corner"), kspace_noise_sd(masked, lines)
    )
    y, x = (torch.linspace(-1, 1, size) for size in (64, 72))
    ellipse = (y[:, None] ** 2 + x**2 < 0.9)[None, None]
    assert float(kspace_noise_sd(torch.where(ellipse, kspace, 0), ellipse)) == pytest.approx(0.1, rel=0.15)


def test_dead_coils_do_not_count_and_items_are_apart(seed):
    kspace = torch.cat([scan(seed, 0.1), scan(seed + 1, 0.4)])
    full = torch.ones(1, 1, 1, 72, dtype=torch.bool)
    found = kspace_noise_sd(kspace, full)
    dead = kspace.clone()
    dead[:, 1] = 0
    torch.testing.assert_close(kspace_noise_sd(dead, full), found, rtol=0.1, atol=0)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.4]), rtol=0.1, atol=0)
    assert float(kspace_noise_sd(torch.zeros_like(kspace[:1]), full)) == 0


def test_nothing_measured_is_an_error():
    kspace = torch.zeros(1, 2, 8, 8, dtype=torch.complex64)
    with pytest.raises(InputError, match="nothing was measured"):
        kspace_noise_sd(kspace, torch.zeros(1, 1, 1, 8, dtype=torch.bool))
    with pytest.raises(ShapeError, match="wrong form"):
        kspace_noise_sd(kspace[0], torch.zeros(1, 1, 1, 8, dtype=torch.bool))
