"""One line of YAML swaps the recurrent unit of CIRIM and of RecurrentVarNet."""

import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import ClassSpec
from medseq.nn.recurrent import Recurrent
from medseq.ops.coils import sens_expand

MIXERS = {
    "ConvGRU": "{class_path: medseq.nn.recurrent.ConvGRU, init_args: {reset: before}}",
    "SS2D": "{class_path: medseq.nn.ss2d.SS2DMixer, init_args: {d_state: 1}}",
    "SS2D recurrent": "{class_path: medseq.nn.ss2d.SS2DRecurrentMixer, init_args: {d_state: 2}}",
    "Re-WKV": "{class_path: medseq.nn.rwkv.SpatialMix, init_args: {init: stable, decay_length: 1024}}",
    "Re-WKV recurrent": "{class_path: medseq.nn.rwkv.ReWKVRecurrentMixer}",
    "depthwise": "{class_path: medseq.nn.depthwise.DepthwiseMixer, init_args: {kernel_size: 5}}",
}
MODELS = {
    "cirim": "class_path: medseq.models.recon_cirim.CIRIM\n"
    "init_args: {num_cascades: 2, time_steps: 3, channels: [8, 8], hidden: carry, mixer: MIXER}",
    "recurrent_varnet": "class_path: medseq.models.recon_recurrent_varnet.RecurrentVarNet\n"
    "init_args: {num_steps: 4, channels: 8, num_layers: 2, initializer_channels: [4, 4],"
    " initializer_dilations: [1, 2], initializer_multiscale: 2, mixer: MIXER}",
}


def text(model, mixer):
    return MODELS[model].replace("MIXER", MIXERS[mixer])


def from_bundle(model, mixer):
    return build_class(ClassSpec(**yaml.safe_load(text(model, mixer))), where="test")


def scan(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 17, 22, dtype=torch.complex64, generator=generator)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = torch.rand(2, 1, 1, 22, generator=generator) < 0.4
    image = torch.randn(2, 17, 22, dtype=torch.complex64, generator=generator)
    return {"masked_kspace": sens_expand(image, maps) * mask, "mask": mask, "sens_maps": maps}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_mixer_runs_and_learns_in_both_networks(model, mixer, seed):
    net = from_bundle(model, mixer)
    out = net(**scan(seed), return_states=True)
    assert torch.isfinite(out.image.abs()).all()
    out.image.abs().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    # Only the step size of the first step has no effect: k-space starts at the data.
    idle = [key for key, p in net.named_parameters() if not p.grad.any() and "mixer" in key]
    assert not idle


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("model", MODELS)
def test_the_state_matters_from_step_to_step(model, mixer, seed):
    """A unit without memory would give the same result if its states were thrown away."""
    net = from_bundle(model, mixer).eval()
    given = scan(seed)
    units = [unit for unit in net.modules() if isinstance(unit, Recurrent) or type(unit).__name__ == "ConvGRU"]
    with torch.no_grad():
        wanted = net(**given).image
        outer = [u for u in units if not any(u is c for r in units for c in r.modules() if c is not r)]
        for unit in outer:
            unit.forward = lambda x, state=None, forward=unit.forward: forward(x, None)
        forgetful = net(**given).image
    assert not torch.allclose(forgetful, wanted, rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mixer", ["ConvGRU", "SS2D"])
def test_the_training_configuration_builds_the_same_network(model, mixer):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    parsed = parser.parse_object({"net": yaml.safe_load(text(model, mixer))})
    net = parser.instantiate(parsed).net
    sizes = {key: value.shape for key, value in net.state_dict().items()}
    assert sizes == {key: value.shape for key, value in from_bundle(model, mixer).state_dict().items()}


@pytest.mark.parametrize("model", MODELS)
def test_a_misspelt_option_of_a_mixer_is_refused_before_training(model):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    content = yaml.safe_load(text(model, "SS2D").replace("d_state", "d_stat"))
    with pytest.raises(ArgumentError, match="d_stat"):
        parser.parse_object({"net": content})


def test_items_of_a_batch_do_not_see_each_other(seed):
    given = scan(seed)
    for mixer in MIXERS:
        net = from_bundle("cirim", mixer).eval()
        with torch.no_grad():
            whole, single = net(**given).image, net(**{key: value[:1] for key, value in given.items()}).image
        # Other batch sizes take other blockings of the matrix products: float32 rounding only.
        torch.testing.assert_close(whole[:1], single, rtol=1e-4, atol=1e-5)
