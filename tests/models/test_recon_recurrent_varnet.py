"""RecurrentVarNet against numbers of direct, and what its options mean."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from medseq.errors import BundleError, InputError
from medseq.inference.reference import load
from medseq.models.recon_recurrent_varnet import RecurrentVarNet, Regulariser, recurrent_varnet
from medseq.nn.sensitivity import SensitivityNet
from medseq.ops.coils import rss, sens_expand, sens_reduce
from medseq.ops.fourier import ifft2

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("recurrentvarnet_*.safetensors"))
# The original in float32 is within 2e-7 of its own float64 results, gradients within 2.4e-6.
FORWARD, BACKWARD = 1e-5, 1e-4


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        meta = file.metadata()
    config = json.loads(meta["config"]) | {"operators": json.loads(meta["operators"])}
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return tensors, state, config


def cplx(x):
    return torch.view_as_complex(x.contiguous())


def inputs(tensors):
    start = tensors.get("in.initial_image")
    return {
        "masked_kspace": cplx(tensors["in.masked_kspace"]),
        "mask": tensors["in.sampling_mask"][..., 0],
        "sens_maps": cplx(tensors["in.sensitivity_map"]),
        "initial_image": None if start is None else cplx(start),
    }


def error(found, wanted):
    """Largest error in units of the largest reference value."""
    found = found.detach()
    wanted = cplx(wanted) if found.is_complex() else wanted
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def gradient(model, key):
    """The gradient of direct's parameter `key`, put together from ours."""
    parameters = dict(model.named_parameters())
    parts = key.removeprefix("grad.").replace(".convgru", "").split(".")
    if parts[0] == "initializer":
        return parameters[f"initializer.convs.{parts[2]}.{parts[4]}"].grad
    block = parts[1]
    if parts[2] == "learning_rate":
        return parameters[f"step_sizes.{block}"].grad
    if parts[3] == "conv_blocks":
        return parameters[f"regularisers.{block}.convs.{parts[4]}.{parts[6]}"].grad
    assert parts[3] == "update_gates"
    unit = f"regularisers.{block}.units.{parts[4]}"
    grads = [parameters[f"{unit}.{part}.weight"].grad for part in ("ih", "hh")]
    width = grads[0].shape[0] // 3
    return -torch.cat([grad[width : 2 * width] for grad in grads], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_state_and_gradient_matches_the_original(name):
    tensors, state, config = read(name)
    model = load("direct", state, config)
    given = inputs(tensors)
    out = model(**given, return_states=True)
    assert len(out.intermediates) == 1
    unsampled = ~given["mask"].bool().expand_as(out.kspace)
    for step, kspace in enumerate(out.intermediates[0]):
        wanted = tensors[f"out.step{step}.kspace"]
        assert error(kspace, wanted) <= FORWARD, step
        # The sampled centre dominates the maximum: what the network adds is compared on its own.
        away = (kspace.detach() - cplx(wanted))[unsampled].abs().max() / cplx(wanted)[unsampled].abs().max()
        assert away <= FORWARD, step
        assert error(out.states[step], tensors[f"out.step{step}.hidden"]) <= FORWARD, step
    assert error(out.kspace, tensors["out.kspace"]) <= FORWARD
    assert error(out.image, tensors["out.image_rss"]) <= FORWARD

    out.kspace.abs().square().sum().backward()
    keys = [key for key in tensors if key.startswith("grad.")]
    assert keys
    for key in keys:
        if tensors[key].any():
            assert error(gradient(model, key), tensors[key]) <= BACKWARD, key
        else:
            assert not gradient(model, key).any(), key


@pytest.mark.parametrize("name", [name for name in NAMES if "noinit" not in name])
def test_learned_first_states_match_the_original(name):
    from medseq.nn.recon import prepare

    tensors, state, config = read(name)
    model, given = load("direct", state, config), inputs(tensors)
    start = given.pop("initial_image")
    scan = prepare(**given, sens_net=None, origin=model.fft_origin, norm=model.fft_norm)
    found = torch.stack(model.initial_states(scan, start), dim=-1)
    assert error(found, tensors["out.init_state"]) <= FORWARD


@pytest.fixture(scope="module")
def blocks():
    with safe_open(GOLDEN / "blocks_direct.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def part(blocks, name):
    return {k.removeprefix(f"state.{name}."): v for k, v in blocks.items() if k.startswith(f"state.{name}.")}


@pytest.mark.parametrize("name", ["gru", "normgru"])
@pytest.mark.parametrize("start", ["nostate", "withstate"])
def test_regularisers_of_direct_load(blocks, name, start):
    module = load("direct", part(blocks, name), {"num_layers": 3})
    x = cplx(blocks[f"in.{name}.x"].permute(0, 2, 3, 1))
    given = blocks[f"in.{name}.state"].unbind(-1) if start == "withstate" else [None] * 3
    y, states = module(x, list(given))
    wanted = cplx(blocks[f"out.{name}.{start}"].permute(0, 2, 3, 1))
    assert (y - wanted).abs().max() <= FORWARD * wanted.abs().max()
    assert error(torch.stack(states, dim=-1), blocks[f"out.{name}.{start}_newstate"]) <= FORWARD


def test_sensitivity_network_of_direct_loads(blocks):
    state = part(blocks, "sensitivity_model")
    unet = load("direct", state, {"num_filters": 4})
    assert error(unet(blocks["in.unet_odd"]), blocks["out.unet_odd"]) <= FORWARD
    net = SensitivityNet(4, 2, style="direct")
    net.net.load_state_dict(state)
    assert error(net.refine(cplx(blocks["in.sens_refine"])), blocks["out.sens_refine_normalized"]) <= FORWARD
    single = cplx(blocks["in.sens_refine"])[:, :1]
    torch.testing.assert_close(net.refine(single), single / single.abs())


def test_a_checkpoint_with_its_sensitivity_network_runs_without_maps(blocks, seed):
    tensors, state, config = read("recurrentvarnet_1_sense_noshare")
    state |= {f"sensitivity_model.{key}": value for key, value in part(blocks, "sensitivity_model").items()}
    model = load("direct", state, config)
    assert model.init_args["sens_net"]["init_args"]["sigma"] == 0.7
    given = inputs(tensors)
    out = model(given["masked_kspace"], torch.ones(1, 1, 1, 20))
    assert torch.isfinite(out.image).all()


def scan(seed, size=(11, 14)):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, *size, dtype=torch.complex64, generator=generator)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.rand(2, 1, *size, generator=generator) < 0.4
    image = torch.randn(2, *size, dtype=torch.complex64, generator=generator)
    return {"masked_kspace": sens_expand(image, maps) * mask, "mask": mask, "sens_maps": maps}


SMALL = {"channels": 4, "num_layers": 2}
START = {"initializer_channels": (4, 4), "initializer_dilations": (1, 2), "initializer_multiscale": 2}


def test_the_step_is_the_equation(seed):
    given = scan(seed)
    y, mask, maps = given["masked_kspace"], given["mask"], given["sens_maps"]
    model = RecurrentVarNet(2, initializer=None, **SMALL)
    with torch.no_grad():
        model.step_sizes[1].fill_(0.3)
        out = model(**given)
        k, states = y, [None, None]
        for step in range(2):
            w, states = model.regularisers[step](sens_reduce(k, maps), states)
            k = k - model.step_sizes[step] * mask * (k - y) + sens_expand(w, maps)
    torch.testing.assert_close(out.kspace, k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.image, rss(ifft2(k)), rtol=1e-4, atol=1e-5)


def test_zero_filled_states_see_the_sum_of_the_coils(seed):
    given = scan(seed)
    model = RecurrentVarNet(1, initializer="zero_filled", **SMALL, **START)
    wanted = model.initializer(given["masked_kspace"].sum(1))
    seen = []
    model.regularisers[0].register_forward_hook(lambda _, args, __: seen.extend(args[1]))
    model(**given)
    for a, b in zip(seen, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_one_layer_puts_the_dilation_on_the_last_convolution():
    assert [conv.dilation[0] for conv in Regulariser(4, 1, None, normalized=False).convs] == [1, 2]
    assert [conv.dilation[0] for conv in Regulariser(4, 3, None, normalized=False).convs] == [1, 2, 1, 1]


def test_shared_weights_are_one_set_for_any_number_of_steps(seed):
    model = RecurrentVarNet(5, shared=True, initializer=None, **SMALL)
    assert len(model.regularisers) == 1
    assert len(model(**scan(seed)).intermediates[0]) == 5


def test_a_constant_image_does_not_break_normalisation():
    model = RecurrentVarNet(1, normalized=True, initializer=None, **SMALL)
    zeros = torch.zeros(1, 2, 8, 8, dtype=torch.complex64)
    assert torch.isfinite(model(zeros, torch.ones(1, 1, 1, 8), zeros).image).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_any_mask_dtype(kind, seed):
    given, model = scan(seed), RecurrentVarNet(2, initializer=None, **SMALL)
    assert torch.equal(model(**given).image, model(**{**given, "mask": given["mask"].to(kind)}).image)


def test_mixers_of_any_kind_replace_the_gru(seed):
    from medseq.nn.recurrent import IndRNN, Recurrent
    from medseq.nn.rwkv import SpatialMix

    for mixer, kind in ((IndRNN, IndRNN), (lambda channels: SpatialMix(channels, init="stable"), Recurrent)):
        model = RecurrentVarNet(2, mixer=mixer, **SMALL, **START)
        assert isinstance(model.regularisers[1].units[0], kind)
        out = model(**scan(seed), return_states=True)
        assert out.states[1].shape == (2, 4, 11, 14, 2)
        out.image.sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_named_sizes_have_the_stated_parameters():
    assert sum(p.numel() for p in recurrent_varnet().parameters()) == 6_918_424
    axt1 = recurrent_varnet(channels=96, num_layers=3)
    assert sum(p.numel() for p in axt1.parameters()) == 2_827_320
    assert sum(p.numel() for p in SensitivityNet(8, 4).parameters()) == 484_898


def test_gates_start_as_the_original_starts_them():
    unit = RecurrentVarNet(1, initializer=None, **SMALL).regularisers[0].units[0]
    assert (unit.ih.bias[:4] == -1).all()
    assert not unit.ih.bias[4:].any()
    gate = torch.cat([unit.ih.weight[:4], unit.hh.weight[:4]], dim=1)[..., 0, 0]
    torch.testing.assert_close(gate @ gate.T, torch.eye(4), rtol=0, atol=1e-5)


def test_bad_arguments_are_named(seed):
    given = scan(seed)
    with pytest.raises(InputError, match="this network needs an initial image"):
        RecurrentVarNet(1, initializer="input_image", **SMALL, **START)(**given)
    with pytest.raises(InputError, match="unknown initializer"):
        RecurrentVarNet(1, initializer="random")
    with pytest.raises(InputError, match=r"found \(0, 4\), wanted 1 or more"):
        RecurrentVarNet(0)
    with pytest.raises(InputError, match="multiscale 5"):
        RecurrentVarNet(1, initializer_multiscale=5)


def test_unknown_missing_and_contradicting_keys_are_refused():
    _, state, config = read("recurrentvarnet_1_sense_noshare")
    with pytest.raises(BundleError, match="surprise"):
        load("direct", {**state, "surprise": torch.zeros(1)}, config)
    with pytest.raises(BundleError, match=r"regularisers\.0\.odd"):
        load("direct", {**state, "block_list.0.regularizer.odd": torch.zeros(1)}, config)
    gone = "block_list.1.regularizer.out_gates.0.0.bias"
    with pytest.raises(BundleError, match=r"wanted out_gates\.0\.0\.bias"):
        load("direct", {key: value for key, value in state.items() if key != gone}, config)
    with pytest.raises(BundleError, match=r"'recurrent_hidden_channels' \(found 9, wanted 8\)"):
        load("direct", state, {**config, "recurrent_hidden_channels": 9})
    with pytest.raises(BundleError, match=r"'num_steps' \(found 4, wanted 3\)"):
        load("direct", state, {**config, "num_steps": 4})
    with pytest.raises(BundleError, match="unknown configuration key"):
        load("direct", state, {**config, "steps": 3})
    with pytest.raises(BundleError, match="wanted initializer_initialization"):
        load("direct", state, {k: v for k, v in config.items() if k != "initializer_initialization"})
