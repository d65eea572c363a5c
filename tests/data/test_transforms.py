"""Preprocessing: invert undoes apply, and a chain is the composition of its steps."""

import numpy as np
import pytest
import torch

from medseq.data import transforms
from medseq.data.transforms import (
    HounsfieldChannels,
    LeaveAlone,
    NoiseGate,
    RobustScale,
    apply_chain,
    fit_chain,
    invert_chain,
)
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
    params = transform.fit(native[:, 0].numpy(), spacing_mm=(0.7, 0.7))
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


def disc(diameter_cm, spacing_mm, side=256, hu=40.0):
    """A disc of `hu` in air, ``(1, 1, side, side)``, and its water-equivalent diameter in cm."""
    axis = (torch.arange(side) - (side - 1) / 2) * spacing_mm / 10
    inside = axis[:, None] ** 2 + axis**2 < (diameter_cm / 2) ** 2
    return torch.where(inside, hu, -1000.0)[None, None], diameter_cm * (1 + hu / 1000) ** 0.5


@pytest.mark.parametrize("diameter_cm", [15.0, 22.0, 30.0])
@pytest.mark.parametrize("excess", [0.5, 0.9, 1.5, 4.0])
def test_noise_gate_applies_the_change_beyond_the_noise_of_a_good_scan_of_that_size(diameter_cm, excess):
    native, water_cm = disc(diameter_cm, spacing_mm=1.4)
    gate = NoiseGate(noise=3.0, diameter=17.0, attenuation=0.2)
    level = excess * 3.0 * np.exp(0.1 * (water_cm - 17.0))
    change = torch.where(native > 0, level * torch.randn(native.shape).clamp(-3, 3) / 0.9867, 0.0)
    change[..., 128, 128] = 5000.0  # one spark does not open the gate
    gated = gate.invert(native + change, native, gate.fit(native[:, 0].numpy(), spacing_mm=(1.4, 1.4))) - native
    share = (gated / change)[change != 0].mean().item()
    # share = 1 - 1 / excess^2. 9000 draws and more know their sd to 1 %, and the spark adds up to 8 % to the power.
    assert share == pytest.approx(max(0.0, 1 - excess**-2), abs=0.06)
    if excess < 0.9:
        assert torch.equal(gated, torch.zeros_like(gated))


def test_noise_gate_judges_each_plane_by_itself():
    native = disc(17.0, 1.0)[0].repeat(2, 1, 1, 1)
    change = torch.stack([torch.full((1, 256, 256), 1.0), torch.full((1, 256, 256), 50.0)])
    gate = NoiseGate()
    gated = gate.invert(native + change, native, {"pixel_cm2": 0.01}) - native
    assert gated[0].abs().max() == 0
    assert gated[1].min() > 49


def test_noise_gate_needs_the_pixel_size():
    with pytest.raises(InputError, match="pixel size"):
        NoiseGate().fit(np.zeros((1, 3, 3), np.float32))


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


def test_robust_scale_lets_the_gradient_past_its_limit():
    output = torch.tensor([[[[-0.5, 0.5]]]], requires_grad=True)
    restored = RobustScale().invert(output, torch.tensor([[[[1.0, 1.0]]]]), {"scale": 10.0})
    restored.sum().backward()
    assert restored.flatten().tolist() == [0.0, 5.0]
    assert output.grad.flatten().tolist() == [10.0, 10.0]


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
        NoiseGate(noise=0)
    with pytest.raises(InputError, match="percentile"):
        RobustScale(0)


def test_noise_gate_makes_up_for_the_noise_that_the_model_leaves():
    native = disc(17.0, 1.0)[0]
    change = torch.full_like(native, 12.0)
    share = [
        (NoiseGate(shortfall=s).invert(native + change, native, {"pixel_cm2": 0.01}) - native).max().item()
        for s in (0.0, 6.0)
    ]
    assert share[1] == pytest.approx(1.5 * share[0], rel=1e-5)  # 1 + 6 / 12


@pytest.mark.parametrize(("ratio", "share"), [(0.1, 0.0), (0.3, 0.5), (0.8, 1.0)])
def test_leave_alone_keeps_planes_that_hardly_change(ratio, share):
    native = 100 + 7 * torch.randn(1, 1, 201, 200)
    change = torch.full_like(native, 7 * ratio)
    applied = LeaveAlone(0.2, 0.4).invert(native + change, native, {}) - native
    # 10 000 coefficients know their median to 1 %: 0.02 of the ramp.
    assert applied.mean().item() == pytest.approx(share * 7 * ratio, abs=0.1 * 7 * ratio)


def test_leave_alone_restores_what_has_no_noise_to_compare_with():
    native = torch.zeros(1, 1, 8, 8)
    assert torch.equal(LeaveAlone().invert(native + 1, native, {}), native + 1)
    single = torch.zeros(1, 1, 1, 1)
    assert torch.equal(LeaveAlone().invert(single + 1, single, {}), single + 1)
