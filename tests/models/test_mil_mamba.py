"""MambaMIL against its authors' code, and what makes it a model of bags."""

import pytest
import torch
from torch.nn import functional as F

from medseq.errors import InputError, ShapeError
from medseq.models.mil_mamba import MambaMIL, tiny
from medseq.nn.mamba import Mamba


@pytest.fixture
def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def model(**keywords):
    torch.manual_seed(0)
    return MambaMIL(**{"in_dim": 12, "d_model": 16, "attention_dim": 8, **keywords}).eval()


@pytest.mark.parametrize("name", [name for name in tiny() if name != "scan2d"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_any_size_of_bag_in_the_order_of_the_input(name, n, draw):
    net = tiny()[name].eval()
    out = net(draw(n, 12))
    assert out.attention.shape == (1, n)
    torch.testing.assert_close(out.attention.sum(1), torch.ones(1))
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("name", list(tiny()))
def test_padding_changes_nothing_and_gets_no_attention(name, draw):
    net = tiny()[name].eval()
    coords = 256 * torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], 1)
    x = draw(9, 12)
    alone = net(x[:6], coords[:6])
    bags = torch.stack([x, torch.cat([x[:6], torch.full((3, 12), 1e6)])])
    batch = net(bags, coords.expand(2, -1, -1), torch.tensor([9, 6]))
    # One bag alone and in a batch take other blockings of the matrix products.
    torch.testing.assert_close(batch.logits[1:], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.attention[1:, :6], alone.attention, rtol=1e-4, atol=1e-5)
    assert (batch.attention[1, 6:] == 0).all()


def test_the_grid_matters_to_scan2d(draw):
    net = model(scan2d=True)
    x = draw(6, 12)
    row = 256 * torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)], 1)
    block = 256 * torch.stack([torch.arange(6) % 3, torch.arange(6) // 3], 1)
    assert not torch.allclose(net(x, row).logits, net(x, block).logits)
    # A slide has no origin, and the order of its patches in the file means nothing to a scan over its grid.
    moved = net(x, block + torch.tensor([5120, 1024]))
    torch.testing.assert_close(moved.logits, net(x, block).logits)
    order = torch.randperm(6)
    shuffled = net(x[order], block[order])
    torch.testing.assert_close(shuffled.logits, net(x, block).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.attention, net(x, block).attention[:, order], rtol=1e-4, atol=1e-5)


def test_scan2d_refuses_bags_without_coordinates(draw):
    with pytest.raises(InputError, match="needs their coordinates"):
        model(scan2d=True)(draw(4, 12))


def test_scan2d_refuses_a_mixer_without_a_grid():
    with pytest.raises(InputError, match="slide's grid"):
        model(scan2d=True, mixer=Mamba)


def test_another_width_of_features_is_named(draw):
    with pytest.raises(ShapeError, match=r"5, 7\).*\(n, 12\)"):
        model()(draw(5, 7))


@pytest.mark.parametrize("lengths", [[0, 3], [2, 9]])
def test_lengths_that_cannot_be_are_refused(lengths, draw):
    with pytest.raises(ShapeError, match="lengths do not fit"):
        model()(draw(2, 5, 12), lengths=torch.tensor(lengths))


def test_an_empty_bag_is_refused(draw):
    with pytest.raises(ShapeError, match="empty bag"):
        model()(draw(0, 12))


def test_starts_with_mambas_time_steps_unless_asked_for_the_originals():
    def steps(net):
        return F.softplus(net.layers[0].mixer.dt_proj.bias.detach())

    ours, theirs = steps(model()), steps(model(init="original"))
    assert ours.min() >= 0.0009
    assert ours.max() <= 0.11
    torch.testing.assert_close(theirs, torch.full_like(theirs, 0.6931), rtol=1e-3, atol=1e-3)
