"""The gate of PET: nothing up to its noise, nearly all far beyond it, plane by plane."""

import pytest
import torch

from medseq.data.transforms_pet import UptakeGate
from medseq.errors import InputError


def scan(seed, noise):
    image = torch.zeros(1, 1, 40, 40)
    image[..., 8:32, 8:32] = 5.0
    change = noise * 5.0 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) * (image > 0)
    return image, image + change


@pytest.mark.parametrize(("noise", "share"), [(0.04, 0.0), (0.1, 0.75), (0.5, 0.99)])
def test_the_share_is_that_of_the_best_mix(seed, noise, share):
    image, output = scan(seed, noise)
    result = UptakeGate(noise=0.05).invert(output, image, {})
    applied = float((result - image).norm() / (output - image).norm())
    # The level is an rms over 576 pixels, good to 3 %: the share to twice that of what is held back.
    assert applied == pytest.approx(share, abs=0.06 * (1 - share) + 0.01)


def test_every_plane_is_judged_by_itself(seed):
    pairs = [scan(seed, 0.02), scan(seed, 0.4)]
    image, output = (torch.cat([pair[i] for pair in pairs]) for i in range(2))
    result = UptakeGate().invert(output, image, {})
    assert torch.equal(result[0], image[0])
    assert not torch.equal(result[1], image[1])


def test_empty_and_negative_planes_stay_finite_and_as_they_are():
    for value in (0.0, -1.0):
        image = torch.full((1, 1, 8, 8), value)
        assert torch.equal(UptakeGate().invert(image + 1, image, {}), image)


def test_a_gate_without_noise_is_open(seed):
    image, output = scan(seed, 0.1)
    torch.testing.assert_close(UptakeGate(noise=0).invert(output, image, {}), output)
    with pytest.raises(InputError, match="out of range"):
        UptakeGate(noise=-1)
