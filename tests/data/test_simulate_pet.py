"""Simulated PET: counts are Poisson, SUV come back right, fewer counts are noisier, lesions stay where they are."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medseq.data.pet_uptake import Uptake, brain_uptake, drawn_uptake
from medseq.data.simulate_pet import PETScanner, acquire_pet, reconstruct_pet, system_matrix
from medseq.errors import InputError, ShapeError

SIDE = 48


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def disc(radius, side=SIDE):
    axis = np.arange(side) - (side - 1) / 2
    return (np.hypot(*np.meshgrid(axis, axis)) < radius).astype(np.float32)


def test_a_projection_holds_all_activity_and_a_centred_disc_looks_alike_from_everywhere():
    image = disc(12.5)
    views = (system_matrix(SIDE, 24) @ image.ravel()).reshape(24, SIDE)
    # Weights of a pixel sum to 1 at every angle: float32 sums over 490 pixels.
    np.testing.assert_allclose(views.sum(axis=1), image.sum(), rtol=1e-5)
    # The middle ray crosses the diameter; the pixel grid of a disc of 25 pixels makes it uneven by a pixel.
    assert np.abs(views[:, SIDE // 2] - 25).max() < 1.5


@pytest.mark.parametrize("method", ["osem", "fbp"])
def test_suv_come_back_right_whatever_the_counts(rng, method):
    suv, body = 4.0 * disc(16), disc(20)
    scanner = PETScanner(counts=5e6, fwhm_mm=0, filter_mm=4, method=method, angles=48, iterations=8)
    inside = disc(11) > 0
    for fraction in (1.0, 0.2):
        image = reconstruct_pet(acquire_pet(suv, body, 4.0, scanner, rng, fraction=fraction), scanner)
        # 380 pixels of at most 5 % noise: 1 % of the mean is some four standard errors; pixels of a discrete disc add
        # up to 1 %.
        assert image[inside].mean() == pytest.approx(4.0, rel=0.02)


def test_counts_are_poisson_and_their_expectation_is_the_stated_number(rng):
    suv, body = 3.0 * disc(15), disc(18)
    scanner = PETScanner(counts=1e5, angles=48)
    scans = [acquire_pet(suv, body, 4.0, scanner, rng, fraction=0.5) for _ in range(8)]
    counts = np.stack([scan.counts for scan in scans])
    # sd of a sum of Poisson numbers is its root: five of those.
    assert abs(counts.sum() - 4e5) < 5 * np.sqrt(4e5)
    mean = counts.mean(axis=0)
    busy = mean > 10
    ratio = counts.var(axis=0, ddof=1)[busy] / mean[busy]
    # A variance from 8 draws has a relative sd of 0.53; the mean over more than 500 bins is within 0.15 of 1.
    assert busy.sum() > 500
    assert ratio.mean() == pytest.approx(1.0, abs=0.15)
    assert (counts == np.round(counts)).all()


def test_a_quarter_of_the_counts_has_about_twice_the_noise(rng):
    suv, body = 4.0 * disc(18), disc(20)
    scanner = PETScanner(counts=2e6, angles=48)
    inside = disc(13) > 0

    def noise(fraction):
        pair = [
            reconstruct_pet(acquire_pet(suv, body, 4.0, scanner, rng, fraction=fraction), scanner) for _ in range(4)
        ]
        return float(np.stack(pair).std(axis=0, ddof=1)[inside].mean())

    assert 1.6 < noise(0.25) / noise(1.0) < 2.5


def test_heads_and_drawn_bodies_have_uptake_where_there_is_tissue(seed):
    generator = torch.Generator().manual_seed(seed)
    for uptake in (brain_uptake("mni152", 64, 4.0, generator, at=0.6), drawn_uptake(64, 4.0, generator)):
        assert isinstance(uptake, Uptake)
        assert uptake.suv.shape == uptake.body.shape == uptake.t1.shape == (64, 64)
        assert uptake.suv.min() >= 0
        assert uptake.suv[uptake.body > 0.5].mean() > 0.2
        # A lesion at the edge may bulge by its radius of up to 15 mm, 4 pixels.
        near = F.max_pool2d(uptake.body[None, None], 9, stride=1, padding=4)[0, 0]
        assert uptake.suv[near == 0].abs().max() == 0


def test_grey_matter_takes_up_more_than_white(seed):
    uptake = brain_uptake("colin27", 128, 2.0, torch.Generator().manual_seed(seed), at=0.6, plain=True)
    # Without turn and scale the slice's own T1 tells the tissues: white matter is the brighter one. Lesions are few.
    brain = (uptake.suv > 0.8) & (uptake.t1 > 0.35)
    t1 = uptake.t1[brain]
    order = uptake.suv[brain][t1.argsort()]
    quarter = len(order) // 4
    assert order[quarter : 2 * quarter].median() > 1.5 * order[-quarter:].median()


def test_what_cannot_be_scanned_is_refused(rng):
    scanner = PETScanner(angles=48)
    with pytest.raises(InputError, match="nowhere negative and somewhere positive"):
        acquire_pet(disc(9) - 0.5, disc(9), 2.0, scanner, rng)
    with pytest.raises(InputError, match="found 0, wanted 0 < fraction"):
        acquire_pet(disc(9), disc(9), 2.0, scanner, rng, fraction=0)
    with pytest.raises(ShapeError, match="must be one square"):
        acquire_pet(disc(9)[:40], disc(9), 2.0, scanner, rng)
    with pytest.raises(InputError, match="multiple of the subsets"):
        PETScanner(angles=50)
    with pytest.raises(InputError, match="unknown head"):
        brain_uptake("mni", 64, 4.0, torch.Generator())
