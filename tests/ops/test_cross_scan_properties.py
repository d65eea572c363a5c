"""What must hold for every scan of an image, whatever its size: drawn by hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq.ops import cross_merge, cross_scan, cross_selective_scan
from medseq.ops.cross_scan import naive

# Rounding of sums in another order; every case is in float64.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
EXAMPLES = settings(max_examples=20, deadline=None)

sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "channels": st.integers(1, 9),
        "rows": st.integers(1, 20),
        "cols": st.integers(1, 20),
        "state": st.integers(1, 5),
        "seed": st.integers(0, 2**31 - 1),
    }
)
directions = st.sampled_from(list(naive.ORDERS))


@pytest.fixture(autouse=True, params=["chunked", "cpu"], scope="module")
def backend(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEQ_BACKEND", request.param)
        yield request.param


def draw(batch, channels, rows, cols, state, seed):
    """x, delta, A, B, C, D, delta_bias and that softplus is on."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, delta = normal(batch, channels, rows, cols), normal(batch, 4, channels, rows, cols)
    B, C = (normal(batch, 4, state, rows, cols) for _ in "BC")
    return [x, delta, -normal(4 * channels, state).exp(), B, C, normal(4 * channels), normal(4 * channels), True]


@EXAMPLES
@given(sizes, directions)
def test_the_merge_of_the_scan_is_four_times_the_image(size, order):
    x = draw(**size)[0]
    assert torch.equal(cross_merge(cross_scan(x, order), order), 4 * x)


@EXAMPLES
@given(sizes, directions, st.floats(-3, 3))
def test_linear_in_the_image(size, order, factor):
    x, *rest = draw(**size)
    other = draw(**(size | {"seed": size["seed"] ^ 1}))[0]
    mixed = cross_selective_scan(x + factor * other, *rest, order)
    parts = cross_selective_scan(x, *rest, order), cross_selective_scan(other, *rest, order)
    torch.testing.assert_close(mixed, parts[0] + factor * parts[1], **CLOSE)


@EXAMPLES
@given(sizes, st.sampled_from(["transposed", "half turn"]))
def test_turning_the_image_permutes_the_directions(size, how):
    turn = {"transposed": lambda t: t.transpose(-1, -2), "half turn": lambda t: t.flip(-1, -2)}[how]
    order = {"transposed": [1, 0, 3, 2], "half turn": [2, 3, 0, 1]}[how]
    x, delta, A, B, C, D, bias, softplus = draw(**size)
    delta, B, C = (turn(t)[:, order] for t in (delta, B, C))
    A, D, bias = (t.unflatten(0, (4, -1))[order].flatten(0, 1) for t in (A, D, bias))
    got = cross_selective_scan(turn(x), delta, A, B, C, D, bias, softplus)
    torch.testing.assert_close(got, turn(cross_selective_scan(*draw(**size))), **CLOSE)


@EXAMPLES
@given(sizes, st.data())
def test_forward_scans_are_causal(size, data):
    x, *rest = draw(**size)
    tokens = size["rows"] * size["cols"]
    cut = data.draw(st.integers(0, tokens - 1))
    changed = x.clone()
    changed.view(*x.shape[:2], tokens)[..., cut:] += 1
    y, other = (cross_selective_scan(image, *rest, "forward").flatten(2) for image in (x, changed))
    assert torch.equal(y[..., :cut], other[..., :cut])
    assert not torch.equal(y[..., cut:], other[..., cut:])


@EXAMPLES
@given(sizes)
def test_channels_are_scans_of_their_own(size):
    x, delta, A, B, C, D, bias, softplus = draw(**size)
    y = cross_selective_scan(x, delta, A, B, C, D, bias, softplus)
    for channel in {0, size["channels"] - 1}:
        own = slice(channel, channel + 1)
        A1, D1, bias1 = (t.unflatten(0, (4, -1))[:, own].flatten(0, 1) for t in (A, D, bias))
        alone = cross_selective_scan(x[:, own], delta[:, :, own], A1, B, C, D1, bias1, softplus)
        torch.testing.assert_close(y[:, own], alone, **CLOSE)


@EXAMPLES
@given(sizes)
def test_states_may_grow(size):
    # Positive rates are allowed; up to e^(0.1 softplus) a token, so that nothing overflows.
    x, delta, A, *rest = draw(**size)
    inputs = [x, delta, 0.1 * A.abs().clamp(max=1), *rest]
    torch.testing.assert_close(cross_selective_scan(*inputs), naive.cross_selective_scan(*inputs), **CLOSE)
