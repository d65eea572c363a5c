"""Low resolution as a scanner gives it: the grid is exact, edges ring, slices have their profile."""

import numpy as np
import pytest
import torch

from medseq.data.degrade_mr import low_resolution, slice_profile, thick_slices
from medseq.data.restore_sr import LowResolutionMR
from medseq.errors import InputError, ShapeError
from medseq.ops.resolution import zero_fill


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_grid_is_exact_and_the_mean_stays(seed, factor):
    image = 5 + torch.rand(2, 12 * factor, 7 * factor, generator=torch.Generator().manual_seed(seed))
    low = low_resolution(image, factor)
    assert low.shape == (2, 12, 7)
    # float32 sums over the image; nothing is negative before the magnitude.
    torch.testing.assert_close(low.mean(dim=(1, 2)), image.mean(dim=(1, 2)), rtol=1e-5, atol=1e-5)


def test_edges_ring_by_nine_percent_and_air_stays_a_magnitude():
    image = torch.zeros(1, 256)
    image[:, 64:192] = 1.0
    low = low_resolution(image.expand(4, 256), 4)
    # The Gibbs overshoot is 8.95 % of the step; between the pixels, and met within two per cent on this grid.
    assert 1.07 < zero_fill(low, (4, 1024)).max() < 1.1
    assert low.min() >= 0


def test_factor_one_is_the_image_and_uneven_sizes_are_refused():
    image = torch.rand(6, 6)
    assert torch.equal(low_resolution(image, 1), image)
    with pytest.raises(ShapeError, match=r"found \(6, 7\), wanted multiples of 2"):
        low_resolution(torch.rand(6, 7), 2)
    with pytest.raises(InputError, match="found 0"):
        low_resolution(image, 0)


@pytest.mark.parametrize("profile", ["box", "gaussian"])
def test_slice_profiles_are_symmetric_with_the_width_that_was_asked(profile):
    weights = slice_profile(6.0, profile)
    np.testing.assert_allclose(weights, weights[::-1])
    assert weights.sum() == pytest.approx(1)
    half = weights > 0.499 * weights.max()
    # Fine slices at a distance of up to 3 are inside a full width of 6, the ends counted by half.
    assert half.sum() == 7
    with pytest.raises(InputError, match=r"found 0\.5"):
        slice_profile(0.5, profile)


def test_thick_slices_average_their_own_fine_slices(seed):
    volume = np.random.default_rng(seed).normal(size=(12, 3, 4)).astype(np.float32)
    boxes = volume.reshape(4, 3, 3, 4).mean(axis=1)
    np.testing.assert_allclose(thick_slices(volume, 3, profile="box"), boxes, atol=1e-6)
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], (24, 2, 2))
    thick = thick_slices(ramp, 4, thickness=4, profile="gaussian")
    # A symmetric profile keeps a ramp, away from the ends where the volume is repeated.
    np.testing.assert_allclose(thick[1:-1, 0, 0], 4 * np.arange(1, 5) + 1.5, atol=1e-5)
    with pytest.raises(ShapeError, match="3 slices or more"):
        thick_slices(volume[:2], 3, profile="box")


@pytest.mark.parametrize("factor", [2, 3])
def test_samples_repeat_and_the_low_resolution_is_worse_but_close(seed, factor):
    data = LowResolutionMR(length=6, crop=36, seed=seed, factor=factor)
    for index in range(6):
        first, again = data[index], data[index]
        assert first.image.shape == first.target.shape == (1, 36, 36)
        assert torch.equal(first.image, again.image)
        assert torch.isfinite(first.image).all()
        assert first.target.min() >= 0
        error = (first.image - first.target).square().mean().sqrt()
        # Not equal, but the same picture: most of the energy lies in the low frequencies.
        assert 0 < error < 0.5 * first.target.square().mean().sqrt() + 0.02


def test_a_factor_of_one_is_refused():
    with pytest.raises(InputError, match=r"factor >= 2"):
        LowResolutionMR(factor=1)
