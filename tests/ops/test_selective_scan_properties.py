"""What must hold for every selective scan, whatever its sizes: drawn by hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseq.ops import bidirectional_selective_scan, selective_scan

# Rounding of sums in another order; every case is in float64.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
EXAMPLES = settings(max_examples=15, deadline=None)

sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "groups": st.integers(1, 3),
        "channels": st.integers(1, 9),
        "length": st.integers(1, 150),
        "state": st.integers(1, 17),
        "seed": st.integers(0, 2**31 - 1),
        "gated": st.booleans(),
    }
)


@pytest.fixture(autouse=True, params=["chunked", "cpu"], scope="module")
def backend(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEQ_BACKEND", request.param)
        yield request.param


def draw(batch, groups, channels, length, state, seed, gated):
    """Keyword arguments of `selective_scan`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dim = groups * channels
    inputs = {"u": normal(batch, dim, length), "delta": normal(batch, dim, length), "A": -normal(dim, state).exp()}
    inputs |= {"B": normal(batch, groups, state, length), "C": normal(batch, groups, state, length), "D": normal(dim)}
    inputs |= {"delta_bias": normal(dim), "initial_state": normal(batch, dim, state), "delta_softplus": True}
    if gated:
        inputs["z"] = normal(batch, dim, length)
    return inputs


def piece(inputs, start, stop):
    """The tokens [start, stop) of the inputs."""
    per_token = ("u", "delta", "B", "C", "z")
    return {name: x[..., start:stop] if name in per_token else x for name, x in inputs.items()}


@EXAMPLES
@given(sizes, st.data())
def test_causal(size, data):
    inputs = draw(**size)
    cut = data.draw(st.integers(0, size["length"] - 1))
    changed = inputs | {name: inputs[name].clone() for name in ("u", "delta", "B", "C")}
    for name in ("u", "delta", "B", "C"):
        changed[name][..., cut:] += 1
    y, other = selective_scan(**inputs), selective_scan(**changed)
    assert torch.equal(y[..., :cut], other[..., :cut])
    assert not torch.equal(y[..., cut:], other[..., cut:])


@EXAMPLES
@given(sizes, st.floats(-3, 3))
def test_linear_in_u_and_the_initial_state(size, factor):
    first, second = draw(**size), draw(**(size | {"seed": size["seed"] + 1}))
    linear = ("u", "initial_state")
    mixed = first | {name: first[name] + factor * second[name] for name in linear}
    parts = [selective_scan(**(first | {name: x[name] for name in linear})) for x in (first, second)]
    torch.testing.assert_close(selective_scan(**mixed), parts[0] + factor * parts[1], **CLOSE)


@EXAMPLES
@given(sizes, st.data())
def test_whole_is_two_pieces_with_the_state_carried(size, data):
    inputs = draw(**size)
    cut = data.draw(st.integers(0, size["length"]))
    y, last_state = selective_scan(**inputs, return_last_state=True)
    first, carried = selective_scan(**piece(inputs, 0, cut), return_last_state=True)
    rest = piece(inputs, cut, None) | {"initial_state": carried}
    second, ended = selective_scan(**rest, return_last_state=True)
    torch.testing.assert_close(torch.cat([first, second], -1), y, **CLOSE)
    torch.testing.assert_close(ended, last_state, **CLOSE)


@EXAMPLES
@given(sizes)
def test_groups_are_scans_of_their_own(size):
    inputs = draw(**size)
    channels = size["channels"]
    y = selective_scan(**inputs)
    for group in range(size["groups"]):
        own = slice(group * channels, (group + 1) * channels)
        alone = {name: x[:, own] for name, x in inputs.items() if name in ("u", "delta", "z", "initial_state")}
        alone |= {name: inputs[name][own] for name in ("A", "D", "delta_bias")}
        alone |= {name: inputs[name][:, group] for name in ("B", "C")}
        torch.testing.assert_close(y[:, own], selective_scan(**alone, delta_softplus=True), **CLOSE)


@EXAMPLES
@given(sizes)
def test_constant_b_and_c_are_tokens_all_alike(size):
    inputs = draw(**(size | {"groups": 1}))
    dim, length = inputs["u"].shape[1:]
    generator = torch.Generator().manual_seed(size["seed"])
    B, C = (torch.randn(dim, size["state"], generator=generator, dtype=torch.float64) for _ in "BC")
    alike = (x[None, :, :, None].expand(size["batch"], -1, -1, length) for x in (B, C))
    y = selective_scan(**(inputs | {"B": B, "C": C}))
    torch.testing.assert_close(y, selective_scan(**(inputs | dict(zip("BC", alike, strict=True)))), **CLOSE)


@EXAMPLES
@given(sizes)
def test_flipping_the_sequence_exchanges_the_directions(size):
    inputs = draw(**(size | {"groups": 2, "gated": False}))
    u = inputs["u"].unflatten(1, (2, -1))
    tensors = {"u": u, "delta": inputs["delta"].unflatten(1, (2, -1))} | {name: inputs[name] for name in ("B", "C")}
    fixed = {name: inputs[name] for name in ("A", "D", "delta_bias")}
    y = bidirectional_selective_scan(**tensors, **fixed, delta_softplus=True, merge=False)
    turned = {name: x.flip(1, -1) for name, x in tensors.items()}
    exchanged = {name: x.unflatten(0, (2, -1)).flip(0).flatten(0, 1) for name, x in fixed.items()}
    other = bidirectional_selective_scan(**turned, **exchanged, delta_softplus=True, merge=False)
    torch.testing.assert_close(other.flip(1, -1), y, **CLOSE)


@EXAMPLES
@given(sizes)
def test_tokens_without_a_step_change_nothing(size):
    # delta = 0 after softplus: the state passes by, which is how holes in a sparse grid are left out.
    inputs = draw(**(size | {"gated": False})) | {"delta_softplus": False, "delta_bias": None}
    inputs["delta"] = inputs["delta"].abs()
    keep = torch.rand(size["length"], generator=torch.Generator().manual_seed(size["seed"])) < 0.5
    keep[0] = True
    holed = inputs | {"delta": inputs["delta"] * keep}
    y, last_state = selective_scan(**holed, return_last_state=True)
    dense = {name: x[..., keep] if name in ("u", "delta", "B", "C") else x for name, x in inputs.items()}
    want, want_state = selective_scan(**dense, return_last_state=True)
    torch.testing.assert_close(y[..., keep], want, **CLOSE)
    torch.testing.assert_close(last_state, want_state, **CLOSE)
