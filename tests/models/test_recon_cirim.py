"""CIRIM against numbers of the original toolkits, and what its options mean."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from medseq.errors import BundleError, InputError, ShapeError
from medseq.inference.reference import load
from medseq.models.recon_cirim import CIRIM, cirim
from medseq.ops.coils import sens_expand, sens_reduce
from medseq.ops.fourier import ifft2

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("cirim_*.safetensors"))


def read(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        meta = file.metadata()
    config = json.loads(meta["config"])
    if meta.get("override_time_steps", "null") != "null":
        config |= {"time_steps": int(meta["override_time_steps"]), "exact_time_steps": True}
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    source = "mridc" if meta["kind"] == "cirim_mridc" else "atommic"
    return source, tensors, state, config


def cplx(x):
    return torch.view_as_complex(x.contiguous())


def inputs(tensors):
    start = tensors.get("in.initial_prediction")
    return {
        "masked_kspace": cplx(tensors["in.y"]),
        "mask": tensors["in.mask"][..., 0],
        "sens_maps": cplx(tensors["in.sensitivity_maps"]),
        "initial_image": None if start is None else cplx(start),
    }


def double(given):
    return {
        key: value.to(torch.complex128) if key != "mask" and value is not None else value
        for key, value in given.items()
    }


def error(found, wanted):
    """Largest error in units of the largest reference value."""
    found = torch.view_as_real(found.detach()) if found.is_complex() else found.detach()
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


# The originals in float32 are within 1.6e-6 of their own float64 results, gradients within 2.4e-6.
FORWARD, BACKWARD = 1e-5, 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_prediction_state_and_gradient_matches_the_original(name):
    source, tensors, state, config = read(name)
    model = load(source, state, config)
    out = model(**inputs(tensors), return_states=True)
    predictions = [key for key in tensors if key.startswith("out.pred.")]
    assert len(predictions) == sum(len(steps) for steps in out.intermediates)
    for key in predictions:
        cascade, step = (int(part[1:]) for part in key.split(".")[2:])
        assert error(out.intermediates[cascade][step], tensors[key]) <= FORWARD, key
    # 32 steps of a GRU with dilated gates amplify rounding: the original's own float32 states are up to 2e-5 from its
    # float64 ones, so the bound is that distance where it is larger.
    with torch.no_grad():
        exact = load(source, state, config).double()(**double(inputs(tensors)), return_states=True)
    for key in (key for key in tensors if key.startswith("out.hidden.")):
        cascade, level = (int(part[1:]) for part in key.split(".")[2:])
        own = error(exact.states[cascade][level], tensors[key])
        assert own <= 3e-5
        assert error(out.states[cascade][level], tensors[key]) <= max(FORWARD, 2 * own), key
    final = out.intermediates[-1][-1]
    assert error(final, tensors["out.final"]) <= FORWARD

    final.abs().square().sum().backward()
    parameters = dict(model.named_parameters())
    gradients = [key for key in tensors if key.startswith("grad.")]
    assert gradients
    for key in gradients:
        ours = parameters[our_name(key)].grad
        if tensors[key].any():
            assert error(ours, tensors[key]) <= BACKWARD, key
        else:
            assert not ours.any(), key


def our_name(key):
    _, _, cascade, *rest = key.split(".")
    rest = ".".join(rest).replace("final_layer.0.conv_layer", "final")
    for level in "01":
        rest = rest.replace(f"layers.{level}.convs.conv_layer", f"convs.{level}")
        rest = rest.replace(f"layers.{level}.rnn", f"units.{level}")
    return f"dc_weights.{cascade}" if rest == "dc_weight" else f"cascades.{cascade}.{rest}"


def test_implicit_models_return_the_last_image_explicit_ones_k_space():
    _, tensors, state, config = read("cirim_8_explicitdc_1casc_8t")
    given = inputs(tensors)
    out = load("atommic", state, config)(**given)
    assert torch.equal(out.kspace, out.intermediates[-1][-1])
    torch.testing.assert_close(out.image, sens_reduce(out.kspace, given["sens_maps"]))
    unsampled = ~given["mask"].expand_as(out.kspace)
    wanted = cplx(tensors["out.final"])
    # The sampled centre dominates the maximum: what the network adds is compared on its own.
    assert (out.kspace - wanted)[unsampled].abs().max() <= 1e-5 * wanted[unsampled].abs().max()
    source, tensors, state, config = read("cirim_1_indrnn_1casc_8t")
    out = load(source, state, config)(**inputs(tensors))
    assert out.kspace is None
    assert torch.equal(out.image, out.intermediates[-1][-1])


def scan(seed, batch=2, coils=3, size=(11, 14), dtype=torch.complex64):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(batch, coils, *size, dtype=dtype, generator=generator)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.rand(batch, 1, *size, generator=generator) < 0.4
    image = torch.randn(batch, *size, dtype=dtype, generator=generator)
    return {"masked_kspace": sens_expand(image, maps) * mask, "mask": mask, "sens_maps": maps}, image


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("cascades", [1, 3])
def test_explicit_consistency_takes_any_mask_and_any_number_of_cascades(kind, cascades, seed):
    given, _ = scan(seed)
    model = CIRIM(cascades, 2, channels=(4, 4), data_consistency="explicit").eval()
    with torch.no_grad():
        wanted, found = model(**given), model(**{**given, "mask": given["mask"].to(kind)})
    assert torch.equal(wanted.image, found.image)
    assert [len(steps) for steps in found.intermediates] == [2] * cascades
    assert all(k.shape == given["masked_kspace"].shape for steps in found.intermediates for k in steps)


def test_explicit_consistency_is_the_equation(seed):
    """Second cascade: k = y - w M (k_in - y) - F S x, with k_in the first cascade's last k-space."""
    given, _ = scan(seed)
    y, mask, maps = given["masked_kspace"], given["mask"], given["sens_maps"]
    model = CIRIM(2, 1, channels=(4, 4), data_consistency="explicit", hidden="carry").eval()
    plain = CIRIM(2, 1, channels=(4, 4), hidden="carry").eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("dc_weights")})
    with torch.no_grad():
        model.dc_weights[1].fill_(0.3)
        out, images = model(**given), plain(**given).intermediates
        first = y - sens_expand(images[0][0], maps)
        second = y - 0.3 * mask * (first - y) - sens_expand(images[1][0], maps)
    # Float32 round trips of a network of small weights.
    torch.testing.assert_close(out.intermediates[0][0], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.kspace, second, rtol=1e-4, atol=1e-5)


def test_time_steps_are_exact_and_rounded_only_for_the_originals():
    assert CIRIM(1, 3, channels=(4, 4)).time_steps == 3
    _, _, state, config = read("cirim_4_indrnn_2casc_1t")
    assert load("atommic", state, config).time_steps == 1
    for asked, made in ((1, 8), (8, 8), (9, 16)):
        assert load("atommic", state, {**config, "time_steps": asked, "exact_time_steps": False}).time_steps == made


@pytest.mark.parametrize("cell", ["indrnn", "gru", "mgu"])
def test_hidden_states_are_reset_or_carried(cell, seed):
    """With one machine for both cascades, carrying states over equals one cascade of twice the steps."""
    given, _ = scan(seed)
    long = CIRIM(1, 4, cell, channels=(4, 4)).eval()
    state = {key: 0.3 * torch.randn_like(value) for key, value in long.state_dict().items()}
    long.load_state_dict(state)
    twice = {key.replace("cascades.0", f"cascades.{i}"): value for key, value in state.items() for i in (0, 1)}
    images = {}
    for hidden in ("carry", "reset"):
        model = CIRIM(2, 2, cell, channels=(4, 4), hidden=hidden).eval()
        model.load_state_dict(twice)
        with torch.no_grad():
            images[hidden] = model(**given).image
    with torch.no_grad():
        wanted = long(**given).image
    assert torch.equal(images["carry"], wanted)
    assert not torch.allclose(images["reset"], wanted, rtol=1e-3)


def straightforward(machines, given, steps, origin, norm, *, explicit, weights):
    """mridc's loop as its equations read, with images and k-space in the scan's own order."""
    y, mask, maps = given["masked_kspace"], given["mask"].bool(), given["sens_maps"]
    fft = {"origin": origin, "norm": norm}
    k, result = y, []
    x = sens_reduce(y, maps, **fft)
    for index, machine in enumerate(machines):
        if index and explicit:
            x = sens_reduce(k, maps, **fft)
        elif index:
            x = (maps.conj() * ifft2(x, **fft)[:, None]).sum(1)
        h, images = [None, None], []
        for _ in range(steps):
            u = sens_reduce((sens_expand(x, maps, **fft) - y) * mask, maps, **fft)
            u = torch.stack([x.real, x.imag, u.real, u.imag], dim=1)
            for level in range(2):
                u, h[level] = machine.units[level](torch.relu(machine.convs[level](u)), h[level])
            u = machine.final(u)
            x = x + torch.complex(u[:, 0], u[:, 1])
            images.append(x)
        if explicit:
            ks = [y - weights[index] * mask * (k - y) - sens_expand(image, maps, **fft) for image in images]
            k, images = ks[-1], [sens_reduce(step, maps, **fft) for step in ks]
        result.append(images)
    return result


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(("origin", "norm"), [("centre", "ortho"), ("corner", "backward")])
@pytest.mark.parametrize("cell", ["indrnn", "gru", "mgu"])
def test_mridc_with_restarts_is_its_equations(explicit, origin, norm, cell, seed):
    """Cells, conventions, odd sizes and explicit consistency that no golden covers."""
    torch.manual_seed(seed)
    theirs = CIRIM(3, 8, cell, channels=(5, 5), data_consistency="explicit" if explicit else "implicit").double()
    names = {f"cascades.{i}.{a}.{j}": f"cirim.{i}.layers.{j}.{b}" for i in range(3) for j in (0, 1)
             for a, b in (("convs", "convs.conv_layer"), ("units", "rnn"))}  # fmt: skip
    names |= {f"cascades.{i}.final": f"cirim.{i}.final_layer.0.conv_layer" for i in range(3)}
    names |= {f"dc_weights.{i}": f"cirim.{i}.dc_weight" for i in range(3)}
    state = {"dc_weight": torch.ones(1)}
    for key, value in theirs.state_dict().items():
        prefix = next(name for name in names if key == name or key.startswith(f"{name}."))
        state[names[prefix] + key.removeprefix(prefix)] = value + 0.1 * torch.randn_like(value)
    config = {"keep_eta": False, "fft_centered": origin == "centre", "fft_normalization": norm, "time_steps": 5}
    model = load("mridc", state, config).double()
    given = double(scan(seed)[0])
    out = model(**given)
    weights = model.dc_weights
    wanted = straightforward(model.cascades, given, 8, origin, norm, explicit=explicit, weights=weights)
    for found, expected in zip(out.intermediates, wanted, strict=True):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(out.image, wanted[-1][-1], rtol=1e-8, atol=1e-8)
    assert any("Fourier transform of the last image" in quirk for quirk in model.quirks) != explicit


@pytest.mark.parametrize("detach", [False, True])
def test_detached_cascades_get_no_gradient_from_later_ones(detach, seed):
    given, _ = scan(seed)
    # A GRU: with four channels, all of the rectifiers of an IndRNN can be dead by chance.
    model = CIRIM(2, 2, "gru", channels=(4, 4), detach=detach)
    model(**given).image.abs().sum().backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in model.cascades[0].parameters()]
    assert any(reached) != detach


def test_the_gradient_of_the_data_term_matches_the_original():
    with safe_open(GOLDEN / "blocks_atommic.safetensors", "pt") as file:
        blocks = {key: file.get_tensor(key) for key in file.keys()}
    x, maps = cplx(blocks["in.prediction"]), cplx(blocks["in.sens"])
    y, mask = cplx(blocks["in.masked_kspace"]), blocks["in.mask"][..., 0].bool()
    seen = []
    model = CIRIM(1, 1, channels=(4, 4))
    model.cascades[0].register_forward_hook(lambda _, args, __: seen.extend(args[:2]))
    model(y, mask, maps, x)
    stacked = torch.stack([seen[0].real, seen[0].imag, seen[1].real, seen[1].imag], dim=1)
    assert error(stacked, blocks["out.loglik_grad.sigma1.0"]) <= 1e-6


@pytest.mark.parametrize("consistency", ["implicit", "explicit"])
def test_masks_of_whole_columns_take_the_short_way_to_the_same_image(consistency, seed):
    given = double(scan(seed)[0])
    given["mask"] = given["mask"][:, :, :1]
    model = CIRIM(2, 3, "gru", channels=(4, 4), data_consistency=consistency).double()
    short = model(**given)
    long = model(**{**given, "mask": given["mask"].expand(2, 1, 11, 14)})
    torch.testing.assert_close(short.image, long.image)
    # Single-row scans have no short way.
    row = {key: value[:, :, :1] for key, value in given.items()}
    assert model(**row).image.shape == (2, 1, 14)


@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize("origin", ["centre", "corner"])
def test_fully_sampled_data_start_at_the_image(origin, norm, seed):
    given, image = scan(seed)
    maps, full = given["sens_maps"], torch.ones_like(given["mask"])
    y = sens_expand(image, maps, origin=origin, norm=norm)
    model = CIRIM(1, 1, channels=(4, 4), fft_origin=origin, fft_norm=norm)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(model(y, full, maps).image, image)


def test_cells_and_sensitivity_nets_of_atommic_load():
    with safe_open(GOLDEN / "blocks_atommic.safetensors", "pt") as file:
        blocks = {key: file.get_tensor(key) for key in file.keys()}

    def part(name):
        return {k.removeprefix(f"state.{name}."): v for k, v in blocks.items() if k.startswith(f"state.{name}.")}

    for name, config in {
        "indrnn": {}, "gru": {}, "mgu": {}, "gru_k3d1": {"dilation": 1}, "indrnn_k3d2": {"dilation": 2},
        "mgu_k3d2": {"dilation": 2},
    }.items():  # fmt: skip
        found, _ = load("atommic", part(name), config)(blocks[f"in.{name}.x"], blocks[f"in.{name}.hx"])
        assert error(found, blocks[f"out.{name}"]) <= 1e-6, name
    for name, config in {
        "conv_k3d1_none": {}, "conv_k3d2_relu": {"dilation": 2, "nonlinear": "relu"},
        "conv_k4d1_relu": {"nonlinear": "relu"}, "conv_k5d1_relu": {"nonlinear": "relu"},
    }.items():  # fmt: skip
        assert error(load("atommic", part(name), config)(blocks[f"in.{name}.x"]), blocks[f"out.{name}"]) <= 1e-6, name
    kspace, mask = cplx(blocks["in.sensnet.kspace"]), blocks["in.sensnet.mask"][..., 0]
    fft = {"fft_centered": True, "fft_normalization": "ortho"}
    for kind in ("1D", "2D"):
        for normalize in (False, True):
            net = load("atommic", part("sensnet"), {"mask_type": kind, "normalize": normalize, **fft})
            wanted = blocks[f"out.sensnet.{kind}.normalize{int(normalize)}"]
            assert error(net(kspace, mask), wanted) <= FORWARD
    net = load("atommic", part("sensnet"), {"normalize": False, **fft})
    assert error(net.refine(cplx(blocks["in.sensnet.provided_maps"])), blocks["out.sensnet.refine_provided"]) <= FORWARD


def test_a_checkpoint_with_a_sensitivity_network_loads_and_names_its_quirks(seed):
    from medseq.nn.sensitivity import SensitivityNet

    source, tensors, state, config = read("cirim_4_indrnn_2casc_1t")
    net = SensitivityNet(4, 2)
    extra = {
        f"coil_sensitivity_maps_nn.norm_unet.{key.removeprefix('net.')}": value
        for key, value in net.state_dict().items()
    }
    model = load(source, {**state, **extra}, {**config, "estimate_coil_sensitivity_maps_with_nn": True})
    assert any("lacks the square" in quirk for quirk in model.quirks)
    given, _ = scan(seed, size=(16, 20))
    given["mask"][..., 7:13] = True
    assert torch.isfinite(model(given["masked_kspace"], given["mask"]).image.abs()).all()


def test_mixers_of_any_kind_replace_the_cell(seed):
    from medseq.nn.recurrent import ConvGRU, Recurrent
    from medseq.nn.rwkv import SpatialMix

    given, _ = scan(seed)
    for mixer, kind in ((ConvGRU, ConvGRU), (lambda channels: SpatialMix(channels, init="stable"), Recurrent)):
        model = CIRIM(2, 2, channels=(4, 6), mixer=mixer, hidden="carry")
        assert isinstance(model.cascades[0].units[1], kind)
        out = model(**given, return_states=True)
        assert out.image.shape == (2, 11, 14)
        assert out.states[1][1].shape == (2, 6, 11, 14)
        out.image.abs().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_named_sizes_have_the_stated_parameters():
    assert sum(p.numel() for p in cirim().parameters()) == 264_960
    assert sum(p.numel() for p in cirim(128).parameters()) == 980_480
    assert sum(p.numel() for p in cirim(num_cascades=8).parameters()) == 423_936


def test_bad_arguments_are_named(seed):
    given, _ = scan(seed)
    model = CIRIM(1, 1, channels=(4, 4))
    with pytest.raises(InputError, match="needs sensitivity maps"):
        model(given["masked_kspace"], given["mask"])
    with pytest.raises(ShapeError, match="k-space has 3 coils, sensitivity maps have 2"):
        model(given["masked_kspace"], given["mask"], given["sens_maps"][:, :2])
    with pytest.raises(ShapeError, match="mask and k-space disagree"):
        model(given["masked_kspace"], given["mask"][..., :7], given["sens_maps"])
    with pytest.raises(ShapeError, match=r"wanted complex \(batch, coil, row, col\)"):
        model(given["masked_kspace"].real, given["mask"], given["sens_maps"])
    with pytest.raises(InputError, match="levels do not fit"):
        CIRIM(channels=(4, 4, 4))
    with pytest.raises(InputError, match="at least one cascade"):
        CIRIM(0)
    with pytest.raises(InputError, match="restart='kspace' needs"):
        CIRIM(restart="kspace")


def test_unknown_missing_and_contradicting_keys_are_refused():
    source, _, state, config = read("cirim_1_indrnn_1casc_8t")
    with pytest.raises(BundleError, match="surprise"):
        load(source, {**state, "surprise": torch.zeros(1)}, config)
    with pytest.raises(BundleError, match=r"wanted reconstruction_module\.0\.layers\.1\.rnn\.ih\.weight"):
        load(source, {k: v for k, v in state.items() if "layers.1.rnn.ih.weight" not in k}, config)
    with pytest.raises(BundleError, match=r"contradicts the state dict in 'num_cascades' \(found 2, wanted 1\)"):
        load(source, state, {**config, "num_cascades": 2})
    with pytest.raises(BundleError, match="unknown configuration key"):
        load(source, state, {**config, "cascades": 1})
    with pytest.raises(BundleError, match="not a state dict of mridc's CIRIM"):
        load("mridc", state, {})
