"""The other multiple-instance models: closed forms, order, sizes."""

import importlib

import pytest
import torch

from medseq.errors import InputError
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_clam import CLAM
from medseq.models.mil_pooling import LinearProbe, PoolingMIL
from medseq.models.mil_transmil import TransMIL

HEADS = [
    (module, name)
    for module in ("mil_abmil", "mil_clam", "mil_pooling", "mil_transmil")
    for name in importlib.import_module(f"medseq.models.{module}").tiny()
]


@pytest.fixture
def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def build(module, name):
    return importlib.import_module(f"medseq.models.{module}").tiny()[name].eval()


@pytest.mark.parametrize(("module", "name"), HEADS)
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_attention_is_a_share_of_each_instance(module, name, n, draw):
    out = build(module, name)(draw(n, 12))
    assert out.attention.shape == (1, n)
    assert (out.attention >= 0).all()
    torch.testing.assert_close(out.attention.sum(1), torch.ones(1))
    assert torch.isfinite(out.logits).all()
    assert out.embedding is not None


@pytest.mark.parametrize(("module", "name"), HEADS)
def test_padding_changes_nothing(module, name, draw):
    net, x = build(module, name), draw(9, 12)
    alone = net(x[:5])
    batch = net(torch.stack([x, torch.cat([x[:5], torch.full((4, 12), 1e5)])]), lengths=torch.tensor([9, 5]))
    torch.testing.assert_close(batch.logits[1:], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.attention[1:, :5], alone.attention, rtol=1e-4, atol=1e-5)
    assert (batch.attention[1, 5:] == 0).all()


@pytest.mark.parametrize(("module", "name"), [case for case in HEADS if case[0] != "mil_transmil"])
def test_the_order_of_the_instances_means_nothing(module, name, draw):
    net, x = build(module, name), draw(20, 12)
    order = torch.randperm(20)
    torch.testing.assert_close(net(x[order]).logits, net(x).logits, rtol=1e-4, atol=1e-5)
    if (module, name) not in (("mil_pooling", "max"), ("mil_pooling", "mean+max")):
        # A maximum that instances share, such as 0 behind a ReLU, counts for the first of them.
        torch.testing.assert_close(net(x[order]).attention, net(x).attention[:, order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gated", [True, False])
def test_abmil_is_its_equation(gated, draw):
    net, x = ABMIL(12, d_model=16, attention_dim=8, gated=gated).eval(), draw(7, 12)
    h = torch.relu(net.embed[0](x))
    u = torch.tanh(net.attention.hidden(h))
    if gated:
        u = u * torch.sigmoid(net.attention.gate(h))
    weights = net.attention.score(u).softmax(0)
    torch.testing.assert_close(net(x).logits[0], net.classifier((weights * h).sum(0)))


def test_pooling_is_its_name(draw):
    x = draw(7, 12)
    for pool, wanted in (
        ("mean", x.mean(0)),
        ("max", x.amax(0)),
        ("mean+max", torch.cat([x.mean(0), x.amax(0)])),
    ):
        torch.testing.assert_close(LinearProbe(12, pool=pool)(x).embedding[0], wanted)
    with pytest.raises(InputError, match="unknown pooling"):
        PoolingMIL(pool="median")


def test_clam_scores_every_instance_for_every_class(draw):
    net = CLAM(12, n_classes=3, d_model=16, attention_dim=8).eval()
    out = net(draw(2, 7, 12))
    assert out.instance_logits.shape == (2, 7, 3, 2)


def test_transmil_depends_on_the_order_and_fills_a_square(draw):
    torch.manual_seed(0)
    net, x = TransMIL(12, d_model=16, heads=2, dropout=0.0).eval(), draw(5, 12)
    assert not torch.allclose(net(x.flip(0)).logits, net(x).logits)
    # Nine places for five patches: the first four stand there twice.
    squared = net(torch.cat([x, x[:4]]))
    torch.testing.assert_close(squared.logits, net(x).logits)
    merged = squared.attention[0, :5] + torch.nn.functional.pad(squared.attention[0, 5:], (0, 1))
    torch.testing.assert_close(merged, net(x).attention[0])
