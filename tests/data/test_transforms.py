"""Preprocessing: invert undoes apply, and a chain is the composition of its steps."""

import numpy as np
import pytest
import torch

from medseq.data import transforms
from medseq.data.transforms import HounsfieldChannels, NoiseGate, RobustScale, apply_chain, fit_chain, invert_chain
from medseq.errors import InputError

ALL = [
    value()
    for value in vars(transforms).values()
    if isinstance(value, type) and issubclass(value, transforms.Transform) and value is not transforms.Transform
]


def image(low=-1500.0, high=4000.0):
    return low + (high - low) * torch.rand(2, 1, 9, 7)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_a_model_that_changes_nothing_changes_nothing(transform):
    native = image()
    params = transform.fit(native[:, 0].numpy())
    seen = transform.apply(native, params)
    back = transform.invert(seen[:, :1], native, params)
    # HU / 1000 and back in float32: 1e-7 of the largest value.
    torch.testing.assert_close(back, native, rtol=0, atol=2e-3)


def test_values_beyond_the_wide_range_keep_their_distance():
    transform, native = HounsfieldChannels(), torch.tensor([[[[30_000.0, -3000.0]]]])
    seen = transform.apply(native, {})
    assert seen[:, 0].max() == 3.072
    restored = transform.invert(seen[:, :1] + 0.01, native, {})
    torch.testing.assert_close(restored, native + 10.0, rtol=0, atol=0.01)


@pytest.mark.parametrize(("sd", "share"), [(3.0, 0.2), (12.0, 0.6), (30.0, 1.0)])
def test_noise_gate_lets_through_what_the_noise_calls_for(sd, share):
    native = torch.full((1, 1, 200, 200), 40.0)
    native[..., :100] = -1000.0  # air is not looked at
    change = torch.zeros_like(native)
    change[..., 100:] = sd * torch.randn(200, 100)
    change[..., 0, 150] = 5000.0  # one spark does not open the gate
    gated = NoiseGate(10.0, 14.0, 0.2).invert(native + change, native, {}) - native
    # 20 000 normal draws know their sd to 0.5 %: 0.06 HU of the 4 HU ramp.
    torch.testing.assert_close(gated, share * change, rtol=0.1, atol=1e-3)


def test_noise_gate_judges_each_plane_by_itself():
    native = torch.zeros(2, 1, 64, 64)
    change = torch.stack([torch.full((1, 64, 64), 1.0), torch.full((1, 64, 64), 50.0)])
    gated = NoiseGate().invert(native + change, native, {})
    torch.testing.assert_close(gated[0], 0.2 * change[0])
    torch.testing.assert_close(gated[1], change[1])


def test_robust_scale_ignores_padding_and_zeros():
    planes = np.zeros((2, 10, 10), np.float32)
    planes[:, :5] = 7.0
    valid = np.ones(planes.shape, bool)
    planes[0, 0, 0], valid[0, 0, 0] = 1e6, False
    assert RobustScale(100.0).fit(planes, valid) == {"scale": 7.0}
    assert RobustScale().fit(np.zeros((1, 3, 3), np.float32)) == {"scale": 1.0}


def test_robust_scale_limits_magnitudes_but_keeps_negative_inputs():
    native = torch.tensor([[[[-5.0, 10.0]]]])
    out = RobustScale().invert(torch.tensor([[[[-2.0, -2.0]]]]), native, {"scale": 10.0})
    assert out.flatten().tolist() == [-5.0, 0.0]


def test_chain_composes(seed):
    chain = [RobustScale(100.0), RobustScale(50.0)]
    planes = np.random.default_rng(seed).uniform(1, 9, (3, 6, 6)).astype(np.float32)
    native = torch.from_numpy(planes)[:, None]
    params = fit_chain(chain, planes)
    assert params[0]["scale"] == pytest.approx(planes.max())
    assert params[1]["scale"] == pytest.approx(np.median(planes / planes.max()), rel=1e-5)
    stages = apply_chain(chain, native, params)
    torch.testing.assert_close(invert_chain(chain, stages[-1], stages, params), native)


@pytest.mark.parametrize("arguments", [{"scale": 0}, {"wide": (3, 1)}, {"window": (0, 0)}])
def test_impossible_limits_are_refused(arguments):
    with pytest.raises(InputError, match="increasing"):
        HounsfieldChannels(**arguments)
    with pytest.raises(InputError, match="gate limits"):
        NoiseGate(low=5, high=5)
    with pytest.raises(InputError, match="percentile"):
        RobustScale(0)
