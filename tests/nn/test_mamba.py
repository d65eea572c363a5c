"""Mamba layers against the original's numbers; whole, in pieces and token by token."""

import pytest
import torch
from torch.nn import functional as F

from medseq.errors import BundleError, InputError, ShapeError
from medseq.inference.reference import load
from medseq.nn.mamba import BiMamba, Mamba, Mamba2
from medseq.nn.ssm_init import step_bias

LAYERS = {
    "mamba": lambda: Mamba(12, d_state=5),
    "mamba_wide": lambda: Mamba(8, d_state=3, d_conv=2, expand=1.5, dt_rank=3, conv_bias=False, bias=True),
    "mamba_no_conv": lambda: Mamba(8, d_state=2, d_conv=1),
    "mamba2": lambda: Mamba2(16, d_state=4, headdim=8, chunk_size=5),
    "mamba2_groups": lambda: Mamba2(16, d_state=4, headdim=4, ngroups=2, chunk_size=64, learnable_init_states=True),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    made = LAYERS[request.param]()
    if hasattr(made, "init_states"):
        torch.nn.init.normal_(made.init_states)
    return made


@pytest.mark.parametrize("name", ["ss2d_mamba1_0", "ss2d_mamba2simple_0"])
def test_matches_the_original(name, golden, close):
    numbers = golden(name)
    module = load("mamba-ssm", numbers.state, numbers.config)
    y = module(numbers.tensors["in.x"])
    close(y, numbers.tensors["out.y"])
    y.backward(numbers.tensors["in.gy"])
    parameters = dict(module.named_parameters())
    gradients = numbers.under("grad.")
    assert gradients
    for key, wanted in gradients.items():
        # Gradients pass through twice the operations.
        close(parameters[key].grad, wanted, 1e-4)


def test_steps_match_the_originals_steps_and_states(golden, close):
    numbers = golden("ss2d_mamba1_0")
    module = load("mamba-ssm", numbers.state)
    tokens, outputs = numbers.tensors["in.x"], []
    state = module.initial_state(len(tokens))
    with torch.no_grad():
        for token in tokens.unbind(1):
            y, state = module.step(token, state)
            outputs.append(y)
    close(torch.stack(outputs, 1), numbers.tensors["out.y_step"])
    close(state.ssm, numbers.tensors["out.final_ssm_state"])
    # Theirs keeps one input more than the next step needs.
    close(state.conv, numbers.tensors["out.final_conv_state"][..., 1:])


def test_pieces_and_steps_give_what_the_whole_gives(layer, draw):
    x = draw(2, 23, layer.d_model)
    whole = layer(x)
    pieces, state = [], None
    for length in (1, 2, 7, 13):
        y, state = layer.stream(x[:, sum(p.shape[1] for p in pieces) :][:, :length], state)
        pieces.append(y)
    # The same sums in another order of chunks.
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)

    steps, stepped = [], layer.initial_state(2)
    for token in x.unbind(1):
        before = [tensor.clone() for tensor in stepped]
        y, after = layer.step(token, stepped)
        assert all(torch.equal(a, b) for a, b in zip(before, stepped, strict=True))
        stepped = after
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stepped.ssm, state.ssm, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stepped.conv, state.conv, rtol=1e-4, atol=1e-5)


def test_a_state_carries_gradients_to_the_tokens_before(layer, draw):
    x = draw(1, 6, layer.d_model).requires_grad_()
    _, state = layer.stream(x[:, :5])
    y, _ = layer.stream(x[:, 5:], state)
    (streamed,) = torch.autograd.grad(y.square().sum(), x)
    (whole,) = torch.autograd.grad(layer(x)[:, 5:].square().sum(), x)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)
    assert streamed[:, 0].abs().max() > 0


def test_causal(layer, draw):
    x = draw(1, 9, layer.d_model)
    later = x.clone()
    later[:, 6:] += 1
    torch.testing.assert_close(layer(x)[:, :6], layer(later)[:, :6], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(x)[:, 6:], layer(later)[:, 6:])


def test_bimamba_is_the_sum_of_both_directions(draw):
    both, x = BiMamba(8, d_state=4), draw(2, 11, 8)
    forward, backward = Mamba(8, d_state=4), Mamba(8, d_state=4)
    state = both.state_dict()
    forward.load_state_dict({key: state[key] for key in forward.state_dict()})
    second = {
        key.replace("_b.", ".").replace("A_b_log", "A_log").replace("D_b", "D"): state[key]
        for key in state
        if "_b" in key
    }
    backward.load_state_dict({**forward.state_dict(), **second})
    assert len(second) == 7
    torch.testing.assert_close(both(x), forward(x) + backward(x.flip(1)).flip(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="BiMamba needs the whole sequence; use Mamba to stream"):
        both.stream(x)
    with pytest.raises(InputError, match="BiMamba needs the whole sequence"):
        both.step(x[:, 0], both.initial_state(2))


def test_gradients_are_exact(layer, draw):
    layer.double()
    x = draw(1, 5, layer.d_model, dtype=torch.float64).requires_grad_()
    # Differences in float64 tell rounding to float32 anywhere inside.
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(layer, dtype, draw):
    x = draw(2, 9, layer.d_model)
    wanted = layer(x)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    # Eight bits of mantissa, 0.4 % each, through three matrix products and the convolution.
    assert (y.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
    half = layer.to(dtype)
    y, state = half.stream(x.to(dtype))
    assert (y.dtype, state.conv.dtype, state.ssm.dtype) == (dtype, dtype, torch.float32)
    assert half.step(x[:, 0].to(dtype), state)[0].dtype == dtype


def test_compiles_into_one_graph(layer, draw):
    x = draw(1, 7, layer.d_model)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_names_and_order_of_parameters_are_the_originals():
    one = ["A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight"]
    assert list(Mamba(8).state_dict()) == [*one, "dt_proj.weight", "dt_proj.bias", "out_proj.weight"]
    two = ["dt_bias", "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "norm.weight", "out_proj.weight"]
    assert list(Mamba2(8, headdim=8).state_dict()) == two
    assert list(Mamba2(8, headdim=8, learnable_init_states=True).state_dict()) == ["init_states", *two]


def test_time_steps_start_between_a_thousandth_and_a_tenth():
    mamba, mamba2, both = Mamba(256), Mamba2(256, headdim=2), BiMamba(256)
    for bias in (mamba.dt_proj.bias, mamba2.dt_bias, both.dt_proj_b.bias):
        steps = F.softplus(bias)
        # Inverting softplus costs a few float32 roundings.
        assert 0.000999 < steps.min() < 0.003
        assert 0.03 < steps.max() < 0.1001
    assert mamba.dt_proj.weight.abs().max() <= 16**-0.5
    assert torch.equal(mamba.A_log.exp().round(), torch.arange(1.0, 17).expand(512, 16))
    assert torch.equal(mamba.D, torch.ones(512))
    assert 1 <= mamba2.A_log.exp().min() < mamba2.A_log.exp().max() <= 16.001
    with pytest.raises(InputError, match=r"0 < dt_min <= dt_max \(found \(0.1, 0.001\)\)"):
        step_bias(4, dt_min=0.1, dt_max=0.001)


def test_sizes_are_read_off_the_state_dict(layer, draw):
    config = {"ngroups": layer.ngroups} if isinstance(layer, Mamba2) else {}
    again = load("mamba-ssm", layer.state_dict(), config)
    x = draw(2, 7, layer.d_model)
    torch.testing.assert_close(again(x), layer(x), rtol=1e-4, atol=1e-5)


def test_steps_can_be_limited(draw):
    layer, x = Mamba2(16, d_state=4, headdim=8, dt_limit=(0.01, 0.02)), draw(1, 7, 16)
    again = load("mamba-ssm", layer.state_dict(), {"dt_limit": [0.01, 0.02], "activation": "swish"})
    torch.testing.assert_close(again(x), layer(x))
    assert not torch.allclose(load("mamba-ssm", layer.state_dict())(x), layer(x))
    with pytest.raises(BundleError, match="activation is not supported \\(found relu, wanted swish"):
        load("mamba-ssm", layer.state_dict(), {"activation": "relu"})


def test_both_directions_load_too(draw):
    layer, x = BiMamba(8, d_state=4), draw(1, 5, 8)
    again = load("mamba-ssm", layer.state_dict(), {"d_model": 8, "expand": 2})
    assert isinstance(again, BiMamba)
    torch.testing.assert_close(again(x), layer(x))


def test_unknown_missing_and_contradicting_keys_are_refused():
    state = Mamba(8, d_state=4).state_dict()
    with pytest.raises(BundleError, match=r"'d_state' \(found 16, wanted 4\)"):
        load("mamba-ssm", state, {"d_state": 16})
    with pytest.raises(BundleError, match=r"unknown configuration key \(found heads"):
        load("mamba-ssm", state, {"heads": 2})
    with pytest.raises(BundleError, match="surprise"):
        load("mamba-ssm", {**state, "surprise": torch.zeros(1)})
    with pytest.raises(BundleError, match=r"x_proj\.weight"):
        load("mamba-ssm", {key: value for key, value in state.items() if key != "x_proj.weight"})
    with pytest.raises(BundleError, match="not a Mamba state dict"):
        load("mamba-ssm", {"weight": torch.zeros(1)})
    with pytest.raises(BundleError, match=r"'headdim' \(found 4, wanted 8\)"):
        load("mamba-ssm", Mamba2(8, headdim=8).state_dict(), {"headdim": 4})


def test_wrong_shapes_and_sizes_are_named():
    for layer in (Mamba(8), Mamba2(8, headdim=8)):
        with pytest.raises(ShapeError, match=r"found \(2, 5, 7\), wanted \(batch, length, 8\)"):
            layer(torch.zeros(2, 5, 7))
    with pytest.raises(InputError, match="inner width 16, headdim 5"):
        Mamba2(8, headdim=5)
    with pytest.raises(InputError, match="dt_rank \\(found 0, wanted auto or a number >= 1\\)"):
        Mamba(8, dt_rank=0)
