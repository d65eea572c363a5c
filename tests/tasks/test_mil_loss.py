"""Losses of bags: the original's numbers, the ordinal head's probabilities, CLAM's instance loss by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from medseq.data.mil import MILBatch
from medseq.errors import InputError, ShapeError
from medseq.nn.mil import MILOutput
from medseq.tasks.mil_loss import MILLoss, class_probabilities, instance_loss

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def g(seed):
    return torch.Generator().manual_seed(seed)


def batch(label, event=None, lengths=None):
    label = torch.as_tensor(label)
    lengths = torch.ones(len(label), dtype=torch.long) if lengths is None else torch.as_tensor(lengths)
    event = None if event is None else torch.as_tensor(event)
    return MILBatch(torch.zeros(len(label), 1, 1), lengths, None, label, event, None, [""] * len(label))


def output(logits):
    return MILOutput(logits, torch.ones(len(logits), 1))


@pytest.mark.parametrize("name", ["mamba_L2_n37_cls2", "srmamba_L1_r5_n40_cls7"])
def test_cross_entropy_of_the_original(name):
    golden = load_file(GOLDEN / f"mambamil_{name}.safetensors")
    logits = golden["out.logits"]
    found = MILLoss()(output(logits), batch(golden["in.Y"]))
    # The promise for the original code: 1e-5.
    torch.testing.assert_close(found[None], golden["out.ce_loss"], rtol=0, atol=1e-5)
    torch.testing.assert_close(class_probabilities(logits, "class"), golden["out.probs"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bimamba_L1_n29_surv4", "mamba_L1_n64_surv4"])
@pytest.mark.parametrize("alpha", [0, 0.4])
def test_survival_loss_of_the_original(name, alpha):
    golden = load_file(GOLDEN / f"mambamil_{name}.safetensors")
    loss = MILLoss("survival", alpha=alpha)(output(golden["out.logits"]), batch(golden["in.Y"], golden["in.c"] == 0))
    torch.testing.assert_close(loss[None], golden[f"out.nll_loss_alpha{alpha}"], rtol=0, atol=1e-5)


def test_one_logit_is_a_sigmoid(g):
    x, y = torch.randn(8, 1, generator=g), torch.randint(2, (8,), generator=g)
    torch.testing.assert_close(MILLoss()(output(x), batch(y)), F.binary_cross_entropy_with_logits(x[:, 0], y.float()))
    torch.testing.assert_close(class_probabilities(x, "class")[:, 1], x[:, 0].sigmoid())


@pytest.mark.parametrize("target", ["ordinal", "survival"])
def test_probabilities_of_every_outcome_sum_to_one(g, target):
    p = class_probabilities(3 * torch.randn(6, 4, generator=g), target)
    assert p.shape == (6, 5)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(6))


def test_ordinal_loss_is_the_log_of_the_class_probability(g):
    logits, y = torch.randn(7, 3, generator=g), torch.tensor([0, 1, 2, 3, 3, 0, 2])
    expected = -class_probabilities(logits, "ordinal").gather(1, y[:, None]).log().mean()
    torch.testing.assert_close(MILLoss("ordinal")(output(logits), batch(y)), expected)


def test_an_ordinal_head_learns_the_order(g):
    x = torch.rand(300, 1, generator=g) * 4
    y = x[:, 0].long()
    weight, bias = torch.zeros(1, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        MILLoss("ordinal")(output(x @ weight + bias), batch(y)).backward()
        optimizer.step()
    with torch.no_grad():
        call = class_probabilities(x @ weight + bias, "ordinal").argmax(1)
    # One input and four bands of it: only cases at the borders are missed.
    assert (call == y).float().mean() > 0.85


def test_class_weights_hold_for_a_single_bag(g):
    logits = torch.randn(1, 3, generator=g)
    plain, weighted = (MILLoss()(output(logits), batch([2]), w) for w in (None, torch.tensor([1.0, 1.0, 2.5])))
    torch.testing.assert_close(weighted, 2.5 * plain)


def instance_output(g, n=10, classes=3):
    attention = torch.rand(1, n, generator=g)
    logits = torch.randn(1, n, classes, 2, generator=g)
    return MILOutput(torch.zeros(1, classes), attention / attention.sum(), logits)


def test_instance_loss_by_hand(g):
    out, k = instance_output(g), 2
    order = out.attention[0].argsort(descending=True)
    log = out.instance_logits[0].log_softmax(-1)
    top, bottom = order[:k], order[-k:]
    of_class = -(log[top, 1, 1].sum() + log[bottom, 1, 0].sum()) / (2 * k)
    others = [-log[top, c, 0].mean() for c in (0, 2)]
    expected = (of_class + others[0] + others[1]) / 3
    torch.testing.assert_close(instance_loss(out, torch.tensor([1]), torch.tensor([10]), k), expected)
    whole = MILLoss(instance_weight=0.3, instance_samples=k)(out, batch([1], lengths=[10]))
    torch.testing.assert_close(whole, 0.7 * torch.tensor(3.0).log() + 0.3 * expected)


def test_instance_loss_never_looks_at_padding(g):
    out = instance_output(g)
    poisoned = out._replace(instance_logits=out.instance_logits.clone())
    poisoned.instance_logits[:, 7:] = float("nan")
    cut = MILOutput(out.logits, out.attention[:, :7], out.instance_logits[:, :7])
    label, seven = torch.tensor([0]), torch.tensor([7])
    torch.testing.assert_close(instance_loss(poisoned, label, seven, 3), instance_loss(cut, label, seven, 3))


@pytest.mark.parametrize("n", [1, 2, 3, 15])
def test_bags_smaller_than_the_sample_work(g, n):
    out = instance_output(g, n)
    loss = instance_loss(out, torch.tensor([0]), torch.tensor([n]), 8)
    assert torch.isfinite(loss)
    assert (loss == 0) == (n == 1)


def test_what_does_not_fit_is_refused(g):
    with pytest.raises(ShapeError, match="logits of instances"):
        MILLoss(instance_weight=0.3)(output(torch.zeros(1, 2)), batch([0]))
    with pytest.raises(InputError, match="0 to 5"):
        MILLoss()(output(torch.zeros(2, 2)), batch([0, 5]))
    with pytest.raises(InputError, match="needs events"):
        MILLoss("survival")(output(torch.zeros(1, 4)), batch([0]))
    with pytest.raises(InputError, match="label_smoothing"):
        MILLoss("survival", label_smoothing=0.1)
    with pytest.raises(InputError, match="alpha is no share"):
        MILLoss("survival", alpha=1.5)
    with pytest.raises(InputError, match="instance_samples"):
        MILLoss(instance_samples=0)
