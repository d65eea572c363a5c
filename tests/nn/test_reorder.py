"""Orders of a sequence: each has a way back, and stride is the authors' reordering."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq.errors import InputError, ShapeError
from medseq.nn.mamba import Mamba
from medseq.nn.reorder import (
    Order,
    Reordered,
    column_order,
    hilbert_order,
    random_order,
    row_order,
    score_order,
    stride,
    unstride,
)


def grid(rows, cols, size=256):
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1)
    return places * size + torch.tensor([1024, 4096])


@pytest.mark.parametrize("rate", [1, 2, 5, 7, 10, 23, 30])
def test_stride_is_the_authors_reordering(rate, golden):
    numbers = golden("mambamil_reorder").tensors
    reordered = stride(numbers["in.x"], rate)
    assert torch.equal(reordered, numbers[f"out.reordered_rate{rate}"])
    assert torch.equal(unstride(reordered, rate, 23), numbers[f"out.restored_rate{rate}"])


@given(st.integers(1, 200), st.integers(1, 250))
@settings(max_examples=200, deadline=None)
def test_stride_has_a_way_back_for_any_length_and_rate(length, rate):
    x = torch.arange(1, length + 1).float()
    moved = stride(x, rate)
    assert len(moved) == -(-length // rate) * rate
    assert torch.equal(unstride(moved, rate, length), x)
    # The oracle: zeros at the end, then every r-th token from each start.
    padded = np.concatenate([x.numpy(), np.zeros(len(moved) - length, np.float32)])
    assert torch.equal(moved, torch.from_numpy(np.concatenate([padded[start::rate] for start in range(rate)])))


def test_stride_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="rate"):
        stride(torch.ones(3), 0)
    with pytest.raises(ShapeError, match="not a reordered sequence"):
        unstride(torch.ones(9), 5, 8)


@given(st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=60), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_every_order_has_a_way_back(cells, seed):
    coords = torch.tensor(sorted(cells)) * 256
    generator = torch.Generator().manual_seed(seed)
    coords = coords[torch.randperm(len(coords), generator=generator)]
    x = torch.randn(2, len(coords), 3, generator=generator)
    scores = torch.randn(len(coords), generator=generator)
    orders = [
        *(order(coords) for order in (row_order, column_order, hilbert_order)),
        random_order(len(coords), generator),
        score_order(scores),
    ]
    for order in orders:
        assert isinstance(order, Order)
        assert torch.equal(order.restore(order.apply(x)), x)
        assert torch.equal(order.apply(order.restore(x)), x)
    assert torch.equal(orders[-1].apply(scores, 0), scores.sort(descending=True).values)
    for order, key in ((orders[0], (1, 0)), (orders[1], (0, 1))):
        places = [tuple(place[axis] for axis in key) for place in order.apply(coords).tolist()]
        assert places == sorted(places)


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_the_hilbert_curve_goes_from_neighbour_to_neighbour(side):
    coords = grid(side, side)
    walked = hilbert_order(coords).apply(coords)
    steps = (walked[1:] - walked[:-1]).abs().sum(1)
    assert (steps == 256).all()


def test_a_hilbert_order_keeps_neighbours_closer_than_rows_do():
    coords = grid(32, 32)
    distances = {}
    for name, order in (("hilbert", hilbert_order(coords)), ("row", row_order(coords))):
        place = order.places.view(32, 32)
        distances[name] = (place[1:] - place[:-1]).abs().float().median()
    assert distances["hilbert"] < distances["row"]


@pytest.mark.parametrize("order", ["row", "column", "hilbert", "score", "random"])
def test_a_mixer_in_another_order_answers_in_that_of_the_input(order):
    torch.manual_seed(3)
    layer = Reordered(Mamba(8), order, dim=8).eval()
    x, coords = torch.randn(2, 12, 8), grid(3, 4).expand(2, -1, -1)
    y = layer(x, coords)
    assert y.shape == x.shape
    if order == "random":
        assert torch.equal(y, layer(x, coords))
        return
    # What the order depends on moves with the tokens, so shuffled tokens give shuffled results.
    shuffle = torch.randperm(12)
    torch.testing.assert_close(layer(x[:, shuffle], coords[:, shuffle]), y[:, shuffle], rtol=1e-4, atol=1e-6)


def test_scores_are_learned():
    layer = Reordered(Mamba(8), "score", dim=8)
    layer(torch.randn(1, 6, 8)).square().sum().backward()
    assert layer.score.weight.grad.abs().sum() > 0


def test_an_order_by_place_needs_places():
    with pytest.raises(InputError, match="'hilbert' needs the coordinates"):
        Reordered(Mamba(8), "hilbert")(torch.randn(1, 4, 8))
    with pytest.raises(InputError, match="width"):
        Reordered(Mamba(8), "score")
