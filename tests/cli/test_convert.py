"""`medseq convert`: a checkpoint as the original code saves it becomes a bundle with the same numbers."""

import json

import pytest
import torch
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.inference import reference
from medseq.inference.bundle import load_bundle

runner = CliRunner()


@pytest.fixture
def checkpoint(tmp_path):
    """A state dict with the original's names, in the wrapping of a training script on several GPUs."""
    from medseq.models.restore_rwkv import RestoreRWKV

    generator = torch.Generator().manual_seed(7)
    model = RestoreRWKV(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, convention="chunk64")
    state = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    path = tmp_path / "their.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path, state


def test_the_bundle_computes_what_the_reference_does(checkpoint, tmp_path):
    path, state = checkpoint
    out = tmp_path / "converted"
    result = runner.invoke(
        app,
        ["convert", "restore-rwkv", str(path), str(out), "--config", "dim=8", "--config", "num_blocks=[1, 1, 1, 1]"]
        + ["--modality", "MR", "--json"],
    )
    assert result.exit_code == 0, result.output
    bundle = load_bundle(out)
    assert json.loads(result.stdout)["hash"] == bundle.hash
    assert bundle.config.input.modality == ["MR"]
    assert bundle.metadata["converted_from"]["config"] == {"dim": 8, "num_blocks": [1, 1, 1, 1]}
    image = torch.randn(1, 1, 17, 24, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        ours, theirs = bundle.build_model()(image), reference.load("restore-rwkv", state)(image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_surroundings_come_from_another_bundle(checkpoint, tiny_bundle, tmp_path):
    path, _ = checkpoint
    out = tmp_path / "converted"
    result = runner.invoke(app, ["convert", "restore-rwkv", str(path), str(out), "--like", str(tiny_bundle)])
    assert result.exit_code == 0, result.output
    config, model = load_bundle(out).config, load_bundle(tiny_bundle).config
    assert (config.input, config.preprocess, config.inference) == (model.input, model.preprocess, model.inference)
    assert config.name == "converted"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["restore-rwkv", "CKPT", "OUT", "--config", "dim=16"], "contradicts the state dict in 'dim'"),
        (["restore-rwkv", "CKPT", "OUT", "--config", "width=8"], "unknown configuration key"),
        (["restore-rwkv", "CKPT", "OUT", "--config", "dim"], "wanted KEY=VALUE"),
        (["no-such-source", "CKPT", "OUT"], "wanted restore-rwkv"),
        (["restore-rwkv", "missing.pt", "OUT"], "no such checkpoint"),
    ],
)
def test_refusals(arguments, complaint, checkpoint, tmp_path):
    path, _ = checkpoint
    words = {"CKPT": str(path), "OUT": str(tmp_path / "out")}
    result = runner.invoke(app, ["convert", *(words.get(word, word) for word in arguments)])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    path = tmp_path / "evil.pt"
    torch.save({"weight": Evil()}, path)
    result = runner.invoke(app, ["convert", "restore-rwkv", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "cannot be loaded as plain tensors" in result.stderr
    assert not (tmp_path / "owned").exists()


def test_a_block_alone_is_no_bundle(tmp_path):
    from medseq.nn.rwkv import SpatialMix

    path = tmp_path / "block.pt"
    torch.save(SpatialMix(8, convention="chunk64").state_dict(), path)
    result = runner.invoke(app, ["convert", "restore-rwkv", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "only whole networks become bundles" in result.stderr
