"""Sampling patterns: facts of the original toolkits, exact accelerations, distances, reproducibility."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medseq.errors import InputError
from medseq.ops import masks
from medseq.ops.masks import (
    acs_columns,
    acs_disc,
    equispaced_mask,
    gaussian_1d_mask,
    gaussian_2d_mask,
    magic_mask,
    poisson_disc_mask,
    random_mask,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "masks_facts.safetensors")
KINDS = {
    "random": lambda size, r, c, g: random_mask(size[1], r, c, g),
    "equispaced": lambda size, r, c, g: equispaced_mask(size[1], r, c, g),
    "magic": lambda size, r, c, g: magic_mask(size[1], r, c, g),
    "gaussian_1d": lambda size, r, c, g: gaussian_1d_mask(size[1], r, c, g),
    "gaussian_2d": gaussian_2d_mask,
    "poisson_disc": poisson_disc_mask,
}


def columns(name, what="mask"):
    return GOLDEN[f"out.{name}.{what}"][0, 0, ..., 0].bool()


def test_random_columns_of_the_originals_draws():
    # The draws are numpy's legacy ones, seeded with the characters of "foo"; one choice of acceleration goes first.
    source = np.random.RandomState((102, 111, 111))
    source.randint(1)
    center = acs_columns(80, 6)
    line = masks._random_line(center, 4, torch.from_numpy(source.uniform(size=80))) | center
    assert torch.equal(line, columns("direct.FastMRIRandom"))
    assert torch.equal(line, columns("atommic.random1d"))


@pytest.mark.parametrize("name", ["direct.FastMRIEquispaced", "atommic.equispaced1d"])
def test_equispaced_columns_are_the_originals(name):
    assert torch.equal(equispaced_mask(80, 4, 0.08, offset=0).mask[0, 0], columns(name))


def test_magic_columns_are_the_originals():
    assert torch.equal(magic_mask(80, 4, 0.08, offset=0).mask[0, 0], columns("direct.FastMRIMagic"))


def test_calibration_regions_are_the_originals():
    assert torch.equal(acs_columns(80, 6), columns("direct.FastMRIRandom", "acs"))
    assert torch.equal(acs_disc((96, 80), 0.02), GOLDEN["out.direct.Gaussian2D.acs"][0, ..., 0].bool())
    assert torch.equal(acs_disc((96, 80), 0.02), GOLDEN["out.direct.VariableDensityPoisson.acs"][0, ..., 0].bool())


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_mask_and_no_global_randomness(kind, seed):
    before = torch.random.get_rng_state()
    draw = [KINDS[kind]((40, 36), 4, 0.06, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(draw[0].mask, draw[1].mask)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_seed_means_the_same_mask_everywhere():
    """Written down once: uniform float64 draws are the same on every platform."""
    generator = torch.Generator().manual_seed(11)
    sampled = gaussian_1d_mask(20, 4, 0.1, generator).mask[0, 0].nonzero().flatten()
    assert sampled.tolist() == [1, 9, 10, 16, 18]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(40, 36), (33, 41)])
def test_calibration_is_sampled_and_acceleration_is_counted(kind, size, generator):
    sample = KINDS[kind](size, 4, 0.06, generator)
    assert sample.mask.shape == sample.acs.shape
    assert sample.mask.shape in ((1, 1, size[1]), (1, *size))
    assert (sample.mask | ~sample.acs).all()
    assert sample.acceleration == sample.mask.numel() / int(sample.mask.count_nonzero())


@pytest.mark.parametrize("kind", ["gaussian_1d", "gaussian_2d", "poisson_disc"])
@pytest.mark.parametrize("acceleration", [1.5, 4, 9.7])
def test_drawn_masks_have_exactly_the_number_asked_for(kind, acceleration, generator):
    sample = KINDS[kind]((48, 40), acceleration, 0.03, generator)
    assert int(sample.mask.sum()) == round(sample.mask.numel() / acceleration)


def test_random_acceleration_is_right_on_average(generator):
    fractions = [1 / random_mask(200, 4, 0.08, generator).acceleration for _ in range(200)]
    # 184 columns drawn with p 0.18: sd of the mean of 200 fractions 0.0018; five of them.
    assert np.mean(fractions) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("acceleration", [3, 4, 8])
def test_equispaced_spacing_and_offsets(acceleration, generator):
    offsets = set()
    for _ in range(60):
        sample = equispaced_mask(320, acceleration, 0.04, generator)
        outside = (sample.mask & ~sample.acs)[0, 0].nonzero().flatten()
        offsets.add(int(outside[0]))
        assert sample.acceleration == pytest.approx(acceleration, rel=0.06)
    spacing = round(acceleration * (13 - 320) / (13 * acceleration - 320))
    assert offsets == set(range(spacing))


def test_magic_halves_are_mirrored_between_each_other():
    line = magic_mask(80, 4, 0.08, offset=0).mask[0, 0] & ~acs_columns(80, 6)
    distances = (line.nonzero().flatten() - 40).tolist()
    positive, negative = [d for d in distances if d > 0], [-d for d in distances if d < 0]
    assert not set(positive) & set(negative)
    assert set(np.abs(np.diff(positive))) == set(np.abs(np.diff(negative))) == {6}


def test_gaussian_is_denser_in_the_middle(generator):
    sample = gaussian_2d_mask((64, 64), 5, 0.01, generator, sigma=(12, 12)).mask[0]
    assert sample[24:40, 24:40].float().mean() > 3 * sample[:, :8].float().mean()


@pytest.mark.parametrize("crop_corner", [False, True])
def test_poisson_disc_keeps_its_distances(crop_corner, generator):
    sample = poisson_disc_mask((60, 52), 8, 0.02, generator, crop_corner=crop_corner)
    points = (sample.mask & ~sample.acs)[0].nonzero().double()
    distance = torch.cdist(points, points) + 1e9 * torch.eye(len(points))
    y, x = (points[:, 0] - 30) / 30, (points[:, 1] - 26) / 26
    radius = torch.sqrt(y**2 + x**2)
    nearest = distance.min(dim=1).values
    # No point stands closer than the smallest distance; outside, the points are further apart than inside.
    assert nearest[radius > 0.8].mean() > 1.5 * nearest[radius < 0.4].mean()
    assert nearest[radius > 0.8].min() > 1.5
    assert (radius.max() <= 1) == crop_corner


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("center_fraction", [0.1, 0.5])
def test_full_sampling_is_possible(kind, center_fraction, generator):
    sample = KINDS[kind]((12, 16), 1, center_fraction, generator)
    assert sample.mask.all()
    assert sample.acceleration == 1


def test_impossible_masks_are_named(generator):
    with pytest.raises(InputError, match=r"26 of 320 points in the centre, acceleration 16.*below 12\.3"):
        equispaced_mask(320, 16, 0.08, generator)
    with pytest.raises(InputError, match=r"acceleration must be at least 1 \(found 0\.5\)"):
        random_mask(320, 0.5, 0.08, generator)
    with pytest.raises(InputError, match="center_fraction is out of range"):
        gaussian_1d_mask(320, 4, 8, generator)
    with pytest.raises(InputError, match="give a generator or an offset"):
        equispaced_mask(320, 4, 0.08)
    with pytest.raises(InputError, match="too few points inside the ellipse"):
        poisson_disc_mask((32, 32), 1.1, 0.02, generator, crop_corner=True)
