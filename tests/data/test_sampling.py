"""Random sampling patterns: rates, the centre, and independence of the order of requests."""

import pytest
import torch

from medseq.data.sampling import KINDS, PatternBank, draw_pattern, mirror
from medseq.errors import InputError


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_about_its_rate_and_a_sampled_centre(kind, seed):
    pattern = draw_pattern(kind, (48, 64), 4.0, 0.08, torch.Generator().manual_seed(seed))
    full = pattern.expand(1, 48, 64)
    assert bool(full[0, 24, 32])
    # Random lines have a binomial number: 16 +- 3.5 of 64.
    rate = full.numel() / int(full.sum())
    assert rate == pytest.approx(4.0, rel=0.6 if kind == "random" else 0.1)


def test_unknown_kind_names_the_known_ones(seed):
    with pytest.raises(InputError, match="poisson, gaussian2d"):
        draw_pattern("spiral", (8, 8), 2.0, 0.1, torch.Generator())


@pytest.mark.parametrize("shape", [(8, 10), (9, 11), (8, 7)])
@pytest.mark.parametrize("axes", [(-2,), (-1,), (-2, -1)])
def test_mirror_turns_frequencies_around(shape, axes, seed):
    pattern = torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed)) < 0.5
    mirrored = mirror(pattern, axes)
    for row in range(shape[0]):
        for col in range(shape[1]):
            source = [row, col]
            for axis in axes:
                n = shape[axis]
                frequency = -(source[axis] - n // 2)
                source[axis] = (frequency + n // 2) % n
            assert mirrored[0, row, col] == pattern[0, source[0], source[1]]


def test_bank_gives_both_kinds_and_does_not_depend_on_what_was_drawn_before(seed):
    first, second = PatternBank(discs=2), PatternBank(discs=2)
    shape = (40, 48)
    patterns = [first.draw(shape, torch.Generator().manual_seed(seed + i)) for i in range(30)]
    backwards = [second.draw(shape, torch.Generator().manual_seed(seed + i)) for i in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(patterns, reversed(backwards), strict=True))
    assert {p.shape[-2] for p in patterns} == {1, 40}
    for pattern in patterns:
        full = pattern.expand(1, *shape)
        assert bool(full[0, 20, 24])
        assert 1.5 < full.numel() / int(full.sum()) < 25
