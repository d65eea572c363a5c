"""Discrete-time survival: the original's numbers, and agreement with the definitions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseq.errors import InputError, ShapeError
from medseq.ops.survival import hazards, nll_survival, risk, survival_curve

GOLDEN = Path(__file__).parents[1] / "golden"
SURVIVAL = ["mambamil_bimamba_L1_n29_surv4", "mambamil_mamba_L1_n64_surv4"]


@pytest.fixture
def case(seed):
    """Logits of 9 cases in 4 bins, their bins and events, float64."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, 4, generator=g, dtype=torch.float64)
    return logits, torch.randint(4, (9,), generator=g), torch.rand(9, generator=g) < 0.5


def definition(logits, time_bin, event):
    """The likelihood, case by case and bin by bin, as it stands in the paper."""
    out = []
    for row, y, seen in zip(logits.tolist(), time_bin.tolist(), event.tolist(), strict=True):
        h = [1 / (1 + torch.tensor(-x, dtype=torch.float64).exp().item()) for x in row]
        likelihood = 1.0
        for k in range(y if seen else y + 1):
            likelihood *= 1 - h[k]
        out.append(-torch.tensor(likelihood * (h[y] if seen else 1), dtype=torch.float64).log())
    return torch.stack(out)


@pytest.mark.parametrize("name", SURVIVAL)
def test_the_originals_numbers(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    logits, y, event = golden["out.logits"], golden["in.Y"], golden["in.c"] == 0
    # The promise for state dicts of the original code: 1e-5.
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(hazards(logits), golden["out.hazards"], **close)
    torch.testing.assert_close(survival_curve(logits), golden["out.survival"], **close)
    torch.testing.assert_close(risk(logits), golden["out.risk"], **close)
    for alpha in (0, 0.4):
        torch.testing.assert_close(nll_survival(logits, y, event, alpha), golden[f"out.nll_loss_alpha{alpha}"], **close)


def test_likelihood_is_the_definition(case):
    # float64 on both sides: rounding only.
    torch.testing.assert_close(nll_survival(*case), definition(*case), rtol=1e-10, atol=1e-10)


def test_the_probabilities_of_all_outcomes_sum_to_one(case):
    logits = case[0][:1]
    bins = torch.arange(4)
    events = nll_survival(logits.expand(4, -1), bins, torch.ones(4, dtype=torch.bool))
    none = nll_survival(logits, torch.tensor([3]), torch.tensor([False]))
    torch.testing.assert_close(torch.cat([events, none]).neg().exp().sum().item(), 1.0, rtol=1e-10, atol=0)


def test_alpha_takes_weight_from_the_censored_only(case):
    logits, y, event = case
    whole, part = nll_survival(logits, y, event), nll_survival(logits, y, event, alpha=0.25)
    torch.testing.assert_close(part, torch.where(event, whole, 0.75 * whole))


def test_the_curve_falls_and_the_risk_follows_it(case):
    curve = survival_curve(case[0])
    assert (curve.diff(dim=1) < 0).all()
    worse = case[0] + 1
    assert (risk(worse) > risk(case[0])).all()


def test_gradients(case):
    logits, y, event = case
    assert torch.autograd.gradcheck(lambda x: nll_survival(x, y, event, 0.3), logits.requires_grad_())


def test_certain_hazards_stay_finite():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = nll_survival(logits, torch.tensor([1, 0]), torch.tensor([True, True]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("bins", "event", "alpha", "complaint"),
    [([0, 4], [True, True], 0.0, "0 to 3"), ([-1, 0], [True, True], 0.0, "-1"), ([0, 1], [True, True], 1.5, "alpha")],
)
def test_impossible_labels_are_refused(bins, event, alpha, complaint):
    with pytest.raises(InputError, match=complaint):
        nll_survival(torch.zeros(2, 4), torch.tensor(bins), torch.tensor(event), alpha)


def test_one_label_a_case():
    with pytest.raises(ShapeError, match="labels do not fit"):
        nll_survival(torch.zeros(2, 4), torch.tensor([0]), torch.tensor([True, True]))
