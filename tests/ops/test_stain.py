"""Stains: what was mixed is taken apart again, and what was normalised has the reference's colours."""

import numpy as np
import pytest

from medseq.errors import InputError, ShapeError
from medseq.ops.stain import (
    HED,
    REFERENCE_LAB,
    REFERENCE_STAINS,
    StainStatistics,
    deconvolve,
    lab_statistics,
    normalise_macenko,
    normalise_reinhard,
    optical_density,
    stain_statistics,
)


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def unit(vector):
    return np.asarray(vector, float) / np.linalg.norm(vector)


def mixed(rng, stains, strongest=(1.5, 1.0), shape=(200, 200)):
    """An image of two stains; a tenth of the pixels hold one of them alone, another tenth is glass."""
    amounts = rng.random((*shape, 2)) * strongest
    kind = rng.random(shape)
    amounts[kind < 0.1, 0] = 0
    amounts[(kind >= 0.1) & (kind < 0.2), 1] = 0
    amounts[(kind >= 0.2) & (kind < 0.3)] = 0
    density = amounts @ np.stack([unit(stain) for stain in stains])
    return np.clip(np.rint(255 * np.exp(-density)), 0, 255).astype(np.uint8), amounts


def angle(a, b):
    return np.degrees(np.arccos(np.clip(unit(a) @ unit(b), -1, 1)))


def test_density_is_that_of_beer_and_lambert():
    rgb = np.array([[255, 94, 0]], np.uint8)
    # 255 exp(-1) = 93.8; 0 counts as 1.
    np.testing.assert_allclose(optical_density(rgb), [[0, 1, np.log(255)]], atol=3e-3)
    with pytest.raises(ShapeError, match="not an RGB image"):
        optical_density(rgb.astype(np.float32))
    with pytest.raises(ShapeError, match="not an RGB image"):
        optical_density(np.zeros((4, 4), np.uint8))


def test_deconvolution_returns_the_amounts_that_were_mixed(rng):
    amounts = rng.random((50, 50, 3)) * 0.5
    rgb = np.rint(255 * np.exp(-(amounts @ HED))).astype(np.uint8)
    # Half a stored value of 255 exp(-1.5) is 0.009 in density, and the inverse of the vectors magnifies it.
    np.testing.assert_allclose(deconvolve(rgb), amounts, atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(HED, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "stains",
    [
        ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)),
        ((0.55, 0.75, 0.40), (0.20, 0.85, 0.50)),
        ((0.7, 0.6, 0.35), (0.1, 0.8, 0.6)),
    ],
)
def test_macenko_finds_the_stains_that_were_mixed(rng, stains):
    image, amounts = mixed(rng, stains)
    found = stain_statistics(image)
    # The extreme percentiles lie inside the wedge: a degree or two.
    assert max(angle(a, b) for a, b in zip(found.stains, stains, strict=True)) < 3
    stained = amounts[np.linalg.norm(optical_density(image), axis=-1) >= 0.3]
    np.testing.assert_allclose(found.strongest, np.percentile(stained, 99, axis=0), rtol=0.08)
    # The order of pixels, and of tiles, says nothing.
    again = stain_statistics(image.reshape(-1, 3)[rng.permutation(200 * 200)])
    np.testing.assert_allclose(again.stains, found.stains, rtol=1e-9)


def test_macenko_brings_one_scanner_to_the_reference(rng):
    stains, reference = ((0.70, 0.60, 0.35), (0.12, 0.85, 0.50)), REFERENCE_STAINS
    image, amounts = mixed(rng, stains, strongest=(1.2, 0.8))
    exact = StainStatistics(tuple(tuple(unit(stain)) for stain in stains), (1.2, 0.8))
    result = normalise_macenko(image, exact, reference)
    # Known amounts in the reference's own colours; half a stored value before and after.
    wanted = 255 * np.exp(-(amounts / (1.2, 0.8) * reference.strongest) @ np.array(reference.stains))
    assert np.abs(result - wanted).max() < 6
    assert np.abs(result - wanted).mean() < 1
    found = stain_statistics(result)
    assert max(angle(a, b) for a, b in zip(found.stains, reference.stains, strict=True)) < 4
    assert (result[amounts.sum(axis=-1) == 0] == 255).all()


def test_macenko_to_itself_changes_nothing(rng):
    image, _ = mixed(rng, ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)))
    own = stain_statistics(image)
    # Only what lies outside of the plane of the two stains goes: rounding.
    assert np.abs(normalise_macenko(image, own, own).astype(int) - image).mean() < 1


def test_reinhard_gives_the_reference_mean_and_spread_and_leaves_glass_alone(rng):
    image, amounts = mixed(rng, ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)), strongest=(0.9, 0.6))
    image[:20] = 244
    source = lab_statistics(image)
    result = normalise_reinhard(image, source)
    np.testing.assert_array_equal(result[:20], 244)
    dense = (optical_density(image) > 0.3).any(axis=-1)
    found = lab_statistics(result[dense])
    plain = lab_statistics(image[dense])
    # Means move onto the reference, up to pale pixels (blended with glass) and clipping.
    for axis in range(3):
        before = abs(plain.mean[axis] - REFERENCE_LAB.mean[axis])
        assert abs(found.mean[axis] - REFERENCE_LAB.mean[axis]) < max(0.35 * before, 0.35 * REFERENCE_LAB.sd[axis])


def test_reinhard_to_itself_changes_nothing(rng):
    image, _ = mixed(rng, ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)))
    own = lab_statistics(image)
    assert np.abs(normalise_reinhard(image, own, own).astype(int) - image).max() <= 1


def test_the_references_are_vectors_of_length_one_with_haematoxylin_first():
    np.testing.assert_allclose(np.linalg.norm(REFERENCE_STAINS.stains, axis=1), 1, atol=1e-3)
    assert REFERENCE_STAINS.stains[0][0] > REFERENCE_STAINS.stains[1][0]
    assert min(REFERENCE_LAB.sd) > 0


def test_slides_without_stains_are_refused(rng):
    glass = rng.integers(240, 256, (50, 50, 3), dtype=np.uint8)
    for measure in (stain_statistics, lab_statistics):
        with pytest.raises(InputError, match="hardly any stained pixels"):
            measure(glass)
    one = np.full((50, 50, 3), (120, 60, 140), np.uint8)
    with pytest.raises(InputError, match="stains cannot be told apart"):
        stain_statistics(one)
    with pytest.raises(InputError, match="stains cannot be told apart"):
        normalise_reinhard(one, lab_statistics(one))
