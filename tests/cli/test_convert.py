"""`medseq convert`: a checkpoint as the original code saves it becomes a bundle with the same numbers."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
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
        (
            ["no-such-source", "CKPT", "OUT"],
            "unknown reference implementation (found no-such-source, wanted atommic, direct",
        ),
        (["restore-rwkv", "missing.pt", "OUT"], "no such checkpoint"),
        (["restore-rwkv", "CKPT", "OUT", "one-too-many"], "wanted KEY=VALUE"),
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


def golden(name):
    return load_file(Path(__file__).parents[1] / "golden" / f"{name}.safetensors")


def golden_state(name):
    return {key.removeprefix("state."): value for key, value in golden(name).items() if key.startswith("state.")}


@pytest.mark.parametrize(
    ("source", "name", "config"),
    [
        ("atommic", "cirim_5_indrnn_rsscombine_2casc_8t", ["coil_combination_method=RSS", "time_steps=3"]),
        ("mridc", "cirim_9_mridc_nodc_3casc", ["fft_centered=true", "fft_normalization=ortho"]),
        ("direct", "recurrentvarnet_1_sense_noshare", ["initializer_initialization=sense"]),
    ],
)
def test_reconstruction_networks_are_told_by_their_keys(source, name, config, tmp_path):
    path, out = tmp_path / "their.pt", tmp_path / "converted"
    state = golden_state(name)
    content = {"model": state, "optimizer": {}}
    if source == "direct":
        from medseq.nn.unet import UNet

        content["sensitivity_model"] = UNet(2, 2, 4, 2).state_dict()
    torch.save(content, path)
    words = [word for pair in config for word in ("--config", pair)]
    result = runner.invoke(app, ["convert", "auto", str(path), str(out), *words])
    assert result.exit_code == 0, result.output
    bundle = load_bundle(out)
    assert bundle.config.task == "recon"
    assert bundle.config.input.fft == ("corner-backward" if source == "atommic" else "centre-ortho")
    assert bundle.metadata["converted_from"]["source"] == source
    (rule,) = bundle.transforms()
    assert type(rule).__name__ == {"direct": "KSpaceQuantile"}.get(source, "CoilImageMax")
    model = bundle.build_model()
    if source == "direct":
        assert model.sens_net.sigma == 0.7
    else:
        quirk = {"atommic": "real and of imaginary parts", "mridc": "no gradient passes"}[source]
        assert quirk in (out / "README.md").read_text()

    generator = torch.Generator().manual_seed(8)
    maps = torch.randn(1, 3, 16, 20, dtype=torch.complex64, generator=generator)
    kspace = torch.randn(1, 3, 16, 20, dtype=torch.complex64, generator=generator)
    arguments = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in config)}
    with torch.inference_mode():
        theirs = reference.load(source, state, arguments)(kspace, torch.ones(1, 1, 1, 20), maps).image
        ours = model(kspace, torch.ones(1, 1, 1, 20), maps).image
    assert torch.equal(ours, theirs)


def test_keys_of_nobody_are_not_guessed(tmp_path):
    path = tmp_path / "their.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    result = runner.invoke(app, ["convert", "auto", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "cannot be told by its keys" in result.stderr
    assert "name the source" in result.stderr


def archive(path, members, mode="w"):
    """A tar of ``{name: bytes}``; a name that maps to None becomes a link."""
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            file.addfile(info, io.BytesIO(content or b""))
    return path


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


RSS_CONFIG = {
    "model_name": "CIRIM",
    "coil_combination_method": "RSS",
    "time_steps": 3,
    "num_cascades": 2,
    "fft_centered": False,
    "fft_normalization": "backward",
    "train_loss_fn": "l1",
    "train_ds": {"data_path": "x", "normalize_inputs": True, "normalization_type": "MAX"},
    "optim": {"lr": 1e-4},
}


@pytest.mark.parametrize(("mode", "wrapped"), [("w", False), ("w:gz", True)])
def test_archives_of_atommic_bring_their_configuration(mode, wrapped, tmp_path):
    state = golden_state("cirim_5_indrnn_rsscombine_2casc_8t")
    # Lightning keeps the window of the loss beside the network.
    kept = {**state, "val_loss_fn.w": torch.ones(1, 1, 7, 7)}
    members = {
        "./model_config.yaml": yaml.safe_dump(RSS_CONFIG).encode(),
        "./model_weights.ckpt": saved({"state_dict": kept, "epoch": 3} if wrapped else kept),
    }
    path, out = archive(tmp_path / "their.atommic", members, mode), tmp_path / "converted"
    result = runner.invoke(app, ["convert", "auto", str(path), str(out)])
    assert result.exit_code == 0, result.output
    bundle = load_bundle(out)
    assert bundle.metadata["converted_from"]["config"]["time_steps"] == 3
    assert bundle.metadata["converted_from"]["config"]["normalization_type"] == "max"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["converted", "their.atommic"]
    generator = torch.Generator().manual_seed(8)
    maps, kspace = (torch.randn(1, 3, 16, 20, dtype=torch.complex64, generator=generator) for _ in range(2))
    arguments = {"coil_combination_method": "RSS", "time_steps": 3}
    with torch.inference_mode():
        theirs = reference.load("atommic", state, arguments)(kspace, torch.ones(1, 1, 1, 20), maps).image
        ours = bundle.build_model()(kspace, torch.ones(1, 1, 1, 20), maps).image
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"../model_weights.ckpt": b"x"}, "points outside of it"),
        ({"/etc/model_config.yaml": b"x"}, "points outside of it"),
        ({"model_weights.ckpt": None}, "points outside of it"),
        ({"other/model_config.yaml": b"x: 1"}, "comes twice"),
        ({"model_config.yaml": b"a: [1"}, "not YAML"),
        ({"model_config.yaml": b"1"}, "names no arguments"),
        ({"model_config.yaml": b"x" * (1 << 20) + b"y"}, "'model_config.yaml' of the archive is too large"),
        ({f"{i}.txt": b"" for i in range(20)}, "too many members"),
        ({"model_weights.ckpt": b"not a checkpoint"}, "cannot be loaded as plain tensors"),
        ({"model_weights.ckpt": saved([1])}, "holds no state dict"),
    ],
)
def test_archives_that_are_refused(change, complaint, tmp_path):
    members = {"model_config.yaml": b"time_steps: 8", "model_weights.ckpt": saved({"x": torch.zeros(1)})}
    path = archive(tmp_path / "their.atommic", members | change)
    result = runner.invoke(app, ["convert", "atommic", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["their.atommic"]


def test_a_converted_network_is_asked_at_the_scale_of_its_training(tmp_path):
    import h5py
    import numpy as np

    from medseq.inference.run import predict_folder
    from tests.io.kspace_synthetic import head_kspace

    state = golden_state("recurrentvarnet_1_sense_noshare")
    torch.save({"model": state}, tmp_path / "their.pt")
    words = ["--config", "initializer_initialization=sense", "--config", "scale_percentile=0.995"]
    result = runner.invoke(app, ["convert", "direct", str(tmp_path / "their.pt"), str(tmp_path / "made"), *words])
    assert result.exit_code == 0, result.output
    mask = np.arange(28) % 2 == 0
    mask[10:18] = True
    kspace = head_kspace(np.random.default_rng(3), 1, 3, 24, 28) * mask * 1e-5
    maps = np.ones_like(kspace) / np.float32(3**0.5)
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.h5", "w") as file:
        file["kspace"], file["mask"], file["sensitivity_map"] = kspace, mask, maps
    predict_folder(str(tmp_path / "made"), tmp_path / "in", tmp_path / "out")
    with h5py.File(next((tmp_path / "out").glob("*/result.h5"))) as file:
        ours = torch.from_numpy(file["reconstruction"][0])
    # By hand, as direct does it: divide by the quantile of the samples of all coils, ask, multiply.
    data, modulus = torch.from_numpy(kspace.astype(np.complex64)), np.sort(np.abs(kspace), axis=None)
    scale = float(modulus[len(modulus) - 1 - int(0.005 * len(modulus))])
    net = reference.load("direct", state, {"initializer_initialization": "sense"})
    with torch.inference_mode():
        theirs = net(data / scale, torch.from_numpy(mask).view(1, 1, 1, -1), torch.from_numpy(maps)).image[0] * scale
    # The centred transform is computed from the corner here: rounding of single precision.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.max()))


def test_a_normalisation_that_is_not_linear_is_refused(tmp_path):
    torch.save(golden_state("cirim_5_indrnn_rsscombine_2casc_8t"), tmp_path / "their.pt")
    words = ["--config", "normalization_type=minmax"]
    result = runner.invoke(app, ["convert", "atommic", str(tmp_path / "their.pt"), str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert "this normalisation is not supported" in result.stderr


def test_archives_without_weights_or_cut_short(tmp_path):
    path = archive(tmp_path / "their.atommic", {"model_config.yaml": b"time_steps: 8"})
    result = runner.invoke(app, ["convert", "atommic", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "lacks a member (found model_config.yaml, wanted model_weights.ckpt)" in result.stderr
    path.write_bytes(b"no tar")
    result = runner.invoke(app, ["convert", "atommic", str(path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "not an archive of atommic, or damaged" in result.stderr


def test_mambamil_needs_to_be_told_its_mixer_and_then_gives_the_authors_logits(tmp_path):
    name = "mambamil_srmamba_L1_r5_n40_cls7"
    tensors, state = golden(name), golden_state(name)
    path, out = tmp_path / "s_0_checkpoint.pt", tmp_path / "converted"
    torch.save(state, path)
    command = ["convert", "auto", str(path), str(out)]
    untold = runner.invoke(app, command)
    assert untold.exit_code == 2
    assert "do not tell which mixer" in untold.stderr
    told = runner.invoke(app, [*command, "--config", "type=SRMamba", "rate=5", "act=gelu"])
    assert told.exit_code == 0, told.output
    bundle = load_bundle(out)
    assert bundle.config.task == "mil"
    assert bundle.config.input.feature_dim == 24
    with torch.inference_mode():
        logits = bundle.build_model()(tensors["in.x"]).logits
    # Goldens were made by float32 on another machine.
    assert (logits - tensors["out.logits"]).abs().max() <= 1e-5 * tensors["out.logits"].abs().max()
