"""Restore-RWKV against numbers of the original implementation, and what is special about it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from medseq.errors import BundleError, ShapeError
from medseq.inference.reference import load
from medseq.models.restore_rwkv import RestoreRWKV, restore_rwkv, restore_rwkv_light
from medseq.nn.rwkv import OmniShift

GOLDEN = Path(__file__).parents[1] / "golden"
TEST_ONLY = ("grad_params", "save_reparam")


def read(name):
    with safe_open(GOLDEN / f"restore_rwkv_{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return tensors, state, {key: value for key, value in config.items() if key not in TEST_ONLY}


def close(found, wanted, tolerance=1e-5):
    """Largest error in units of the largest reference value: float32 goldens reproduce to about 1e-6 of it."""
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error <= tolerance, f"error {error:.2e} of the maximum, allowed {tolerance:.0e}"


@pytest.mark.parametrize("name", ["model_16x16", "model_nonsq_24x40"])
def test_model_matches_the_original(name):
    tensors, state, config = read(name)
    model = load("restore-rwkv", state, config)
    close(model(tensors["in.x"]), tensors["out.y_eval"])
    close(model.deployed()(tensors["in.x"]), tensors["out.y_eval"])

    loss = (model.train()(tensors["in.x"]) - tensors["in.target"]).abs().mean()
    close(loss.view(1), tensors["out.l1_loss"])
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in tensors if key.startswith("grad.")]
    assert names
    for key in names:
        # Gradients pass through twice the operations: 1e-4 of the largest entry.
        close(parameters[key].grad, tensors[f"grad.{key}"], 1e-4)


@pytest.mark.parametrize("name", ["model_16x16", "model_nonsq_24x40"])
def test_exact_convention_gives_the_papers_formula(name):
    tensors, state, config = read(name)
    model = load("restore-rwkv", state, config)
    for module in model.modules():
        if hasattr(module, "convention"):
            module.convention = "exact"
    close(model(tensors["in.x"]), tensors["out.y_eval_ideal0"])


def test_block_channel_mix_and_omni_shift_match_the_original():
    for name in ("block_10x6", "omnishift"):
        tensors, state, config = read(name)
        found = load("restore-rwkv", state, config)(tensors["in.x"])
        close(found, tensors["out.y_eval" if "out.y_eval" in tensors else "out.eval"])


@pytest.mark.parametrize("name", ["spatialmix_16x12", "channelmix_7x9"])
def test_mixers_match_the_original(name):
    tensors, state, config = read(name)
    rows, cols = config["resolution"]
    module = load("restore-rwkv", state, config)
    tokens = tensors["in.x"]
    image = tokens.mT.reshape(tokens.shape[0], -1, rows, cols)
    found = module(image)
    close(found.flatten(2).mT, tensors["out.y_eval"])
    if "in.gy" in tensors:
        found.flatten(2).mT.backward(tensors["in.gy"])
        for key in (key for key in tensors if key.startswith("grad.")):
            close(dict(module.named_parameters())[key.removeprefix("grad.")].grad, tensors[key], 1e-4)


def test_old_checkpoints_with_the_unused_convolution_load():
    tensors, state, config = read("model_16x16")
    state["encoder_level1.0.att.dwconv.weight"] = torch.randn(8, 1, 3, 3)
    close(load("restore-rwkv", state, config)(tensors["in.x"]), tensors["out.y_eval"])


def test_unknown_missing_and_contradicting_keys_are_refused():
    _, state, config = read("model_16x16")
    with pytest.raises(BundleError, match="surprise"):
        load("restore-rwkv", {**state, "surprise": torch.zeros(1)}, config)
    with pytest.raises(BundleError, match=r"latent\.0\.gamma1"):
        load("restore-rwkv", {key: value for key, value in state.items() if key != "latent.0.gamma1"}, config)
    with pytest.raises(BundleError, match=r"'dim' \(found 16, wanted 8\)"):
        load("restore-rwkv", state, {**config, "dim": 16})
    with pytest.raises(BundleError, match="unknown configuration key"):
        load("restore-rwkv", state, {**config, "depth": 3})


def test_named_sizes_have_the_stated_parameters():
    paper = restore_rwkv()
    assert sum(p.numel() for p in paper.parameters()) == 27_996_737
    assert sum(p.numel() for p in paper.deployed().parameters()) == 27_846_625
    light = sum(p.numel() for p in restore_rwkv_light(2, 1).parameters())
    assert 1.1e6 < light < 1.2e6


def test_merged_kernel_equals_the_sum_of_the_branches_and_is_never_stale():
    omni, x = OmniShift(6), torch.randn(2, 6, 9, 7)

    def branches(module):
        a = module.alpha
        return a[0] * x + a[1] * module.conv1x1(x) + a[2] * module.conv3x3(x) + a[3] * module.conv5x5(x)

    # Four convolutions summed against one: a few float32 roundings of values of order 10.
    torch.testing.assert_close(omni(x), branches(omni), rtol=1e-5, atol=1e-5)
    before = omni.reparameterized()
    parameters = set(map(id, omni.parameters()))
    omni.load_state_dict({key: torch.randn_like(value) for key, value in omni.state_dict().items()})
    torch.testing.assert_close(omni(x), branches(omni), rtol=1e-5, atol=1e-4)
    assert set(map(id, omni.parameters())) == parameters
    assert not torch.allclose(before(x), omni(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (8, 8), (17, 33)])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_any_size_keeps_its_size(size, shuffle):
    model = RestoreRWKV(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=0, shuffle=shuffle).eval()
    with torch.no_grad():
        y = model(torch.randn(1, 1, *size))
    assert y.shape == (1, 1, *size)
    assert torch.isfinite(y).all()


def test_stable_start_is_the_identity():
    x = torch.randn(1, 2, 16, 24)
    assert torch.equal(restore_rwkv_light(2, 1)(x), x[:, :1])


def test_mixer_is_one_argument():
    model = RestoreRWKV(
        dim=8, num_blocks=(1, 1, 1, 1), mixer=lambda channels: torch.nn.Conv2d(channels, channels, 3, padding=1)
    )
    assert isinstance(model.latent[0].att, torch.nn.Conv2d)
    assert model(torch.randn(1, 1, 16, 16)).shape == (1, 1, 16, 16)


def test_wrong_channels_are_named():
    with pytest.raises(ShapeError, match=r"image \(1, 3, 8, 8\).*wanted \(batch, 1, row, col\)"):
        RestoreRWKV(dim=8)(torch.randn(1, 3, 8, 8))
