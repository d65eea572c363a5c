"""Losses of restoration: each term is its formula, blur and noise are told apart, gradients stay finite."""

import math

import pytest
import torch
from torch.nn import functional as F

from medseq.errors import InputError
from medseq.tasks.restore_loss import RestoreLoss


@pytest.fixture
def pair(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(2, 1, 24, 20, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def only(**weights):
    return RestoreLoss(**{"l1": 0.0, **weights})


def test_every_term_is_its_formula(pair):
    x, t = pair
    change = (x - t).double()
    assert RestoreLoss()(x, t) == (x - t).abs().mean()
    expected = (torch.sqrt(change**2 + 0.04) - 0.2).mean()
    # Means of a thousand float32 numbers.
    torch.testing.assert_close(only(charbonnier=1, epsilon=0.2)(x, t).double(), expected, rtol=1e-5, atol=1e-7)
    expected = torch.fft.rfft2(change).abs().mean() / math.sqrt(24 * 20)
    torch.testing.assert_close(only(frequency=1)(x, t).double(), expected, rtol=1e-5, atol=1e-7)


def test_charbonnier_is_l1_for_large_errors_and_square_for_small_ones(pair):
    x, t = pair
    near = only(charbonnier=1, epsilon=1e-6)(x, t)
    torch.testing.assert_close(near, (x - t).abs().mean(), rtol=1e-4, atol=1e-6)
    flat = only(charbonnier=1, epsilon=100.0)(x.double(), t.double())
    torch.testing.assert_close(flat, (x - t).double().square().mean() / 200, rtol=1e-3, atol=0)


def test_an_exact_result_costs_nothing_and_has_finite_gradients(pair):
    _, t = pair
    x = t.clone().requires_grad_()
    loss = RestoreLoss(l1=1, charbonnier=1, ssim=1, frequency=1)(x, t)
    loss.backward()
    # SSIM of an image with itself is 1 to float32.
    assert abs(loss.item()) < 1e-5
    assert torch.isfinite(x.grad).all()


def test_terms_add_up(pair):
    x, t = pair
    parts = [RestoreLoss(l1=0.5), only(ssim=2.0), only(frequency=0.3)]
    total = RestoreLoss(l1=0.5, ssim=2.0, frequency=0.3)(x, t)
    torch.testing.assert_close(total, sum(part(x, t) for part in parts))


def test_frequencies_see_a_pattern_that_l1_takes_for_noise(pair):
    _, t = pair
    stripes = 0.1 * torch.sign(torch.sin(torch.arange(20) * math.pi / 2 + 0.3)).expand_as(t)
    order = torch.randperm(t[0].numel(), generator=torch.Generator().manual_seed(0))
    noise = stripes.flatten(1)[:, order].view_as(t)
    assert RestoreLoss()(t + stripes, t).item() == pytest.approx(RestoreLoss()(t + noise, t).item(), rel=1e-5)
    assert only(frequency=1)(t + stripes, t) < 0.5 * only(frequency=1)(t + noise, t)
    blurred = F.avg_pool2d(F.pad(t, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    assert only(ssim=1)(blurred, t) > 0.1


def test_weights_that_make_no_loss_are_refused():
    with pytest.raises(InputError, match="needs a positive weight"):
        only()
    with pytest.raises(InputError, match="needs a positive weight"):
        RestoreLoss(l1=1, ssim=-0.1)
    with pytest.raises(InputError, match="must be positive"):
        RestoreLoss(epsilon=0)
