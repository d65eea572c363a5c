"""GRAPPA on data for which it is exact."""

import pytest
import torch

from medseq.ops.grappa import default_kernel, grappa


@pytest.fixture
def waves(generator):
    """Two coils that see three exponentials: every point is a combination of its neighbours, exactly."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    kspace = torch.zeros(2, 20, 24, dtype=torch.complex128)
    for _ in range(3):
        fy, fx = torch.rand(2, generator=generator, dtype=torch.float64)
        weight = torch.randn(2, 1, 1, dtype=torch.complex128, generator=generator)
        kspace += weight * torch.exp(2j * torch.pi * (fy * y + fx * x))
    return kspace


def masks(generator):
    columns = torch.zeros(20, 24, dtype=torch.bool)
    columns[:, ::2], columns[:, 8:17] = True, True
    scattered = torch.rand(20, 24, generator=generator) < 0.6
    scattered[5:15, 7:18] = True
    return columns, scattered


@pytest.mark.parametrize("which", [0, 1])
def test_exponentials_are_restored(which, waves, generator):
    mask = masks(generator)[which]
    region = torch.zeros_like(mask)
    region[(slice(None), slice(8, 17)) if which == 0 else (slice(5, 15), slice(7, 18))] = True
    found = grappa(waves * mask, mask, region, kernel=(5, 5), regularisation=1e-13)
    # Points at the edge may have too few neighbours; those inside have enough for three exponentials.
    inside = (slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(found[inside], waves[inside], rtol=0, atol=1e-3)
    assert torch.equal(found[:, mask], waves[:, mask])


def test_points_without_neighbours_stay_zero():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[6:11, 6:11] = True
    kspace = torch.randn(2, 16, 16, dtype=torch.complex64) * mask
    found = grappa(kspace, mask, mask, kernel=(3, 3))
    assert not found[:, :5].any()
    assert found[:, 5].any()


def test_the_window_fits_gaps_and_calibration():
    mask = torch.zeros(16, 32, dtype=torch.bool)
    mask[:, ::4] = True
    region = torch.zeros_like(mask)
    region[:, 8:24] = True
    assert default_kernel(mask | region, region) == (5, 7)
    region[:, :13] = region[:, 19:] = False
    assert default_kernel(mask, region) == (5, 5)
