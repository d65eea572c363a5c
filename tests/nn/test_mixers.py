"""The three forms of every mixer, and swapping one for another by a line of configuration."""

import pytest
import torch
import yaml
from torch.nn import functional as F
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.errors import InputError
from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import ClassSpec
from medseq.models import recon_cirim
from medseq.models.recon_cirim import CIRIM
from medseq.nn.depthwise import DepthwiseMixer, DepthwiseRecurrentMixer, DepthwiseSequenceMixer
from medseq.nn.mamba import BiMamba, Mamba, Mamba2
from medseq.nn.rwkv import ReWKVRecurrentMixer, ReWKVSequenceMixer, SpatialMix
from medseq.nn.ss2d import SS2DMixer, SS2DRecurrentMixer, SS2DSequenceMixer

IMAGE = [SS2DMixer, SpatialMix, DepthwiseMixer]
RECURRENT = [SS2DRecurrentMixer, ReWKVRecurrentMixer, DepthwiseRecurrentMixer]
ON_GRID = [SS2DSequenceMixer, ReWKVSequenceMixer, DepthwiseSequenceMixer]
SEQUENCE = [*ON_GRID, Mamba, BiMamba, lambda dim: Mamba2(dim, headdim=dim)]
runner = CliRunner()


def trains(module, *outputs):
    sum(output.square().sum() for output in outputs).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("make", IMAGE)
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_image_mixers_keep_the_shape(make, size, draw):
    mixer = make(8)
    y = mixer(draw(2, 8, *size))
    assert y.shape == (2, 8, *size)
    trains(mixer, y)


@pytest.mark.parametrize("make", IMAGE)
def test_masked_pixels_are_neither_read_nor_written(make, draw):
    mixer, x = make(8), draw(1, 8, 5, 6)
    mask = torch.ones(1, 5, 6, dtype=torch.bool)
    mask[0, 1:3, 2:5] = False
    y = mixer(x, mask)
    assert not y[:, :, ~mask[0]].any()
    assert torch.equal(mixer(torch.where(mask[:, None], x, 50.0), mask), y)
    # Float32 roundings: a mask takes another way through the scans.
    torch.testing.assert_close(mixer(x, torch.ones_like(mask)), mixer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", RECURRENT)
def test_recurrent_mixers_carry_a_state(make, draw):
    mixer = make(8)
    first, state = mixer(draw(2, 8, 4, 5))
    second, last = mixer(draw(2, 8, 4, 5), state)
    assert first.shape == second.shape == last.shape == (2, 8, 4, 5)
    trains(mixer, second)
    x = draw(2, 8, 4, 5)
    assert not torch.allclose(mixer(x)[0], mixer(x, state)[0])
    torch.testing.assert_close(mixer(x)[0], mixer(x, torch.zeros_like(x))[0])


@pytest.mark.parametrize("make", [*RECURRENT, *IMAGE])
def test_reconstruction_takes_any_mixer(make):
    model = CIRIM(1, 2, channels=(4, 4), hidden="carry", mixer=make)
    assert any(isinstance(module, make) for module in model.modules())
    image = model(**recon_cirim.example_inputs("gru"))[0]
    trains(model, image.abs())


@pytest.mark.parametrize("make", SEQUENCE)
@pytest.mark.parametrize("length", [0, 1, 10])
def test_sequence_mixers_keep_the_shape(make, length, draw):
    mixer = make(8)
    y = mixer(draw(1, length, 8))
    assert y.shape == (1, length, 8)
    if length:
        trains(mixer, y)


@pytest.mark.parametrize("make", ON_GRID)
def test_a_slide_is_mixed_where_its_patches_lie(make, draw):
    mixer, x = make(8), draw(1, 12, 8)
    coords = torch.cartesian_prod(torch.arange(4), torch.arange(5))[torch.randperm(20)[:12]] * 256 + 1000
    y = mixer(x, coords[None], patch_size_level0=256)
    # The order of the patches in the file means nothing, nor does the slide's origin.
    order = torch.randperm(12)
    moved = mixer(x[:, order], coords[order] + 5120, patch_size_level0=256)
    torch.testing.assert_close(moved, y[:, order], rtol=1e-4, atol=1e-5)
    # A full grid is an image.
    coords = torch.cartesian_prod(torch.arange(4), torch.arange(3)).flip(1) * 256
    image = x.mT.reshape(1, 8, 4, 3)
    torch.testing.assert_close(mixer(x, coords), mixer.mixer(image).flatten(2).mT, rtol=1e-4, atol=1e-5)


def test_the_patch_size_is_the_calls_then_the_layers_then_the_slides(draw):
    coords, x = torch.tensor([[0, 0], [256, 0], [1024, 0]]), draw(1, 3, 8)
    near, apart = (
        DepthwiseSequenceMixer(8, kernel_size=3, patch_size_level0=512),
        DepthwiseSequenceMixer(8, kernel_size=3),
    )
    apart.load_state_dict(near.state_dict())
    assert not torch.allclose(near(x, coords), apart(x, coords))
    torch.testing.assert_close(near(x, coords, patch_size_level0=256), apart(x, coords))
    with pytest.raises(InputError, match="two patches lie in one cell"):
        near(x, coords, patch_size_level0=600)


def test_state_space_mixers_start_with_small_steps():
    for mixer in (SS2DMixer(32), SS2DRecurrentMixer(32).mixer, SS2DSequenceMixer(32).mixer):
        steps = F.softplus(mixer.dt_projs_bias)
        assert 0.000999 < steps.min() < steps.max() < 0.1001


@pytest.mark.parametrize(
    ("name", "options"),
    [("medseq.nn.ss2d.SS2DMixer", "d_state: 2"), ("medseq.nn.depthwise.DepthwiseMixer", "kernel_size: 5")],
)
def test_restore_rwkv_swaps_its_mixer_by_one_line(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"--model.net.init_args.mixer={{class_path: {name}, init_args: {{{options}}}}}"
    command = ["fit", "restore", "--config", "restore/tiny", line]
    result = runner.invoke(app, [*command, "--trainer.fast_dev_run", "2"])
    assert result.exit_code == 0, result.output
    # What a bundle of that run would say builds the same network.
    resolved = yaml.safe_load(runner.invoke(app, [*command, "--print_config"]).stdout)
    net = build_class(ClassSpec(**resolved["model"]["net"]), where="test")
    mixers = {type(block.att).__name__ for block in net.modules() if hasattr(block, "att")}
    assert mixers == {name.rpartition(".")[2]}


def test_a_misspelt_option_of_a_mixer_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "--model.net.init_args.mixer={class_path: medseq.nn.ss2d.SS2DMixer, init_args: {d_stat: 2}}"
    result = runner.invoke(app, ["fit", "restore", "--config", "restore/tiny", line, "--trainer.fast_dev_run", "2"])
    assert result.exit_code == 2
    assert "d_stat" in result.stderr


def test_kernels_have_a_centre():
    with pytest.raises(InputError, match="kernel_size \\(found 4, wanted odd and positive\\)"):
        DepthwiseMixer(8, kernel_size=4)
