"""Bundles in the formats of others: the numbers are the bundle's, and the way back leads to the same bundle."""

import json
import shutil

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from medseq.errors import BackendError, BundleError, InputError, OutputError
from medseq.inference import export
from medseq.inference.bundle import load_bundle, save_bundle
from medseq.inference.export import export_bundle, from_export
from medseq.inference.zoo import zoo_names
from medseq.models.mil_mamba import MambaMIL
from medseq.models.recon_unet import ReconUNet
from medseq.models.restore_ensemble import RotationAverage
from medseq.models.restore_rwkv import RestoreRWKV

# The exporters' own use of what torch and onnxscript call deprecated, outside the calls that we silence.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def run_onnx(folder, inputs):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_bags_of_any_length_leave_as_onnx(tmp_path, seed):
    bundle = load_bundle("mil-ucsb")
    report = export_bundle(bundle, "onnx", tmp_path / "onnx", seed=seed)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert [entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")] == [18]
    assert report.facts["opset"] == json.loads((tmp_path / "onnx" / "model.json").read_text())["opset"] == 18
    assert report.parity.difference <= 1e-4
    model = bundle.build_model()
    for count in (4, 5, 311):
        # Long tails, as histogram counts have: the network takes their logarithm.
        features = drawn(seed + count, count, 708).exp()
        with torch.no_grad():
            wanted = model(features)
        logits, attention, embedding = run_onnx(tmp_path / "onnx", {"features": features})
        np.testing.assert_allclose(logits, wanted.logits, atol=1e-4)
        np.testing.assert_allclose(attention, wanted.attention, atol=1e-4)
        np.testing.assert_allclose(embedding, wanted.embedding, atol=1e-4)


@pytest.fixture
def turned_bundle(tmp_path, seed):
    """What ct-denoise is, with fewer layers: tracing the shipped ones takes a minute each."""
    torch.manual_seed(seed)
    sizes = {"in_channels": 2, "dim": 8, "num_blocks": [1, 0, 0, 0], "num_refinement_blocks": 0, "shuffle": 2}
    model = RotationAverage(RestoreRWKV(**sizes))
    net = {"class_path": "medseq.models.restore_rwkv.RestoreRWKV", "init_args": sizes}
    config = {
        "name": "turned",
        "version": "1",
        "task": "restore",
        "model": {"class_path": "medseq.models.restore_ensemble.RotationAverage", "init_args": {"net": net}},
        "preprocess": [{"class_path": "medseq.data.transforms.HounsfieldChannels"}],
        "input": {"kind": "volume", "modality": ["CT"], "units": "HU", "channels": 2},
    }
    return save_bundle(tmp_path / "turned", config, model.state_dict(), metadata={}, card="# Turned\n").folder


@pytest.mark.parametrize(
    "name", ["turned", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ct-denoise", "mr-denoise", "mr-sr-x2"))]
)
def test_images_leave_as_onnx(name, turned_bundle, tmp_path, seed):
    bundle = load_bundle(turned_bundle if name == "turned" else name)
    export_bundle(bundle, "onnx", tmp_path / "onnx", size=(32, 32), seed=seed)
    image = drawn(seed, 1, bundle.config.input.channels, 32, 32)
    with torch.no_grad():
        wanted = bundle.build_model()(image)
    (found,) = run_onnx(tmp_path / "onnx", {"image": image})
    # The change is what the network is for; a graph that returned its input would be far off.
    assert float((wanted - image[:, :1]).abs().max()) > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    about = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert about["fixed"]["image"] == [1, bundle.config.input.channels, 32, 32]
    assert [step["class_path"] for step in about["preprocess"]] == [s.class_path for s in bundle.config.preprocess]


def recon_bundle(folder, seed):
    torch.manual_seed(seed)
    sizes = {"channels": 4, "pools": 1}
    config = {
        "name": "tiny",
        "version": "1",
        "task": "recon",
        "model": {"class_path": "medseq.models.recon_unet.ReconUNet", "init_args": sizes},
        "input": {"kind": "kspace"},
    }
    return save_bundle(folder, config, ReconUNet(**sizes).state_dict(), metadata={}, card="# Tiny\n")


def test_complex_arithmetic_leaves_as_real(tmp_path, seed):
    bundle = recon_bundle(tmp_path / "bundle", seed)
    # An odd side and a side with a large prime.
    export_bundle(bundle, "onnx", tmp_path / "onnx", size=(17, 26), seed=seed)
    kspace, maps = drawn(seed, 1, 4, 17, 26, 2), drawn(seed + 1, 1, 4, 17, 26, 2)
    mask = torch.rand(1, 1, 1, 26, generator=torch.Generator().manual_seed(seed)) < 0.5
    kspace = kspace * mask[..., None]
    with torch.no_grad():
        wanted = bundle.build_model()(torch.view_as_complex(kspace), mask, torch.view_as_complex(maps)).image
    (found,) = run_onnx(tmp_path / "onnx", {"kspace": kspace, "mask": mask, "sens_maps": maps})
    # Sums of 26 samples and four coils in float32, and a division by the image's deviation.
    np.testing.assert_allclose(found, torch.view_as_real(wanted), atol=1e-4)


def test_what_a_graph_cannot_hold_is_said(tmp_path):
    with pytest.raises(InputError, match=r"mri-recon: the network decides slice by slice.*--to hf"):
        export_bundle(load_bundle("mri-recon"), "onnx", tmp_path / "a")
    with pytest.raises(InputError, match="images to images.*found task mil.*--to hf"):
        export_bundle(load_bundle("mil-ucsb"), "monai", tmp_path / "b")
    with pytest.raises(InputError, match="quarter turns.*a square"):
        export_bundle(load_bundle("ct-denoise"), "onnx", tmp_path / "c", size=(32, 48))
    with pytest.raises(InputError, match="unknown format.*onnx, monai, hf, torch-export"):
        export_bundle(load_bundle("ct-denoise"), "coreml", tmp_path / "d")
    # Refused exports leave nothing.
    assert not list(tmp_path.iterdir())
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine").touch()
    with pytest.raises(OutputError, match="in use"):
        export_bundle(load_bundle("ct-denoise"), "hf", tmp_path / "e")


def test_a_graph_that_is_not_the_network_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(BackendError, match="the graph is not the network"):
        export_bundle(load_bundle("mil-ucsb"), "torch-export", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def scan2d_bundle(folder, scan2d=True):
    sizes = {"in_dim": 6, "d_model": 8, "attention_dim": 4, "num_layers": 1, "scan2d": scan2d}
    config = {
        "name": "grid",
        "version": "1",
        "task": "mil",
        "model": {"class_path": "medseq.models.mil_mamba.MambaMIL", "init_args": sizes},
        "input": {"kind": "bag", "feature_dim": 6},
        "output": {"kind": "scores", "classes": ["a", "b"]},
    }
    return save_bundle(folder, config, MambaMIL(**sizes).state_dict(), metadata={}, card="# Grid\n")


def test_a_slides_grid_is_no_part_of_a_graph(tmp_path):
    with pytest.raises(InputError, match="slide's grid"):
        export_bundle(scan2d_bundle(tmp_path / "grid"), "onnx", tmp_path / "out")


def test_sizes_that_must_fit_a_stride_are_refused_in_our_words(tmp_path):
    # SRMamba, the default mixer, reads every fifth patch.
    bundle = scan2d_bundle(tmp_path / "strided", scan2d=False)
    with pytest.raises(InputError, match="grid: the network cannot become a graph.*--to hf"):
        export_bundle(bundle, "torch-export", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def same_bundle(one, other):
    assert one.config.model_dump(exclude={"weights"}) == other.config.model_dump(exclude={"weights"})
    assert one.metadata == other.metadata
    first, second = one.build_model().state_dict(), other.build_model().state_dict()
    assert first.keys() == second.keys()
    # Stored as they were: float16 to float32 and back is exact.
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", zoo_names())
def test_hugging_face_folders_load_offline_and_come_back(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bundle, folder = load_bundle(name), tmp_path / "hub"
    export_bundle(bundle, "hf", folder)
    from medseq.inference.export_hub import HubModel

    model = HubModel.from_pretrained(str(folder))
    wanted = bundle.build_model().state_dict()
    assert all(torch.equal(wanted[key], value) for key, value in model.net.state_dict().items())
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: medseq\n")
    # Wherever its line is broken.
    assert "Research use only" in " ".join(text.split())
    back = from_export("hf", folder, tmp_path / "back")
    same_bundle(bundle, back)
    assert (back.folder / "README.md").read_text().startswith((bundle.folder / "README.md").read_text().rstrip())


def test_a_folder_that_names_foreign_classes_is_refused(tmp_path):
    folder = tmp_path / "hub"
    export_bundle(load_bundle("mil-ucsb"), "hf", folder)
    for name in ("config.json", "medseq.json"):
        text = (folder / name).read_text().replace("medseq.models.mil_fitted.FittedMIL", "subprocess.Popen")
        (folder / name).write_text(text)
    from medseq.inference.export_hub import HubModel

    with pytest.raises(BundleError, match="outside medseq"):
        HubModel.from_pretrained(str(folder))
    with pytest.raises(BundleError, match="outside medseq"):
        from_export("hf", folder, tmp_path / "back")
    with pytest.raises(InputError, match="no bundle can be made of this format"):
        from_export("onnx", folder, tmp_path / "back")
    (folder / "medseq.json").unlink()
    with pytest.raises(BundleError, match=r"medseq.json is missing"):
        from_export("hf", folder, tmp_path / "back")


def test_a_program_of_torch_export_runs_and_comes_back(tmp_path, seed):
    bundle = load_bundle("mil-ucsb")
    report = export_bundle(bundle, "torch-export", tmp_path / "out", seed=seed)
    assert report.facts["operators_of_medseq"] == ["medseq.causal_conv1d.default", "medseq.selective_scan.default"]
    program = torch.export.load(tmp_path / "out" / "program.pt2").module()
    features = drawn(seed, 57, 708).exp()
    with torch.no_grad():
        torch.testing.assert_close(program(features)[0], bundle.build_model()(features).logits, rtol=1e-5, atol=1e-5)
    same_bundle(bundle, from_export("torch-export", tmp_path / "out", tmp_path / "back"))


# MONAI says once a process which optional readers it does without.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_monai_bundle_verifies_runs_as_predict_does_and_comes_back(tmp_path, seed, monkeypatch):
    from monai.bundle import run, verify_metadata, verify_net_in_out

    from medseq.inference.run import predict_folder

    bundle, folder = load_bundle("mr-sr-x2"), tmp_path / "monai"
    export_bundle(bundle, "monai", folder)
    meta, config = folder / "configs" / "metadata.json", folder / "configs" / "inference.json"
    verify_metadata(meta_file=str(meta), filepath=str(folder / "configs" / "metadata_schema.json"))
    monkeypatch.chdir(folder)
    verify_net_in_out("network_def", meta_file=str(meta), config_file=str(config), device="cpu", n=2)

    rng = np.random.default_rng(seed)
    affine = np.array([[0.0, -0.9, 0, 3], [0.8, 0, 0, -5], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(rng.gamma(2.0, 50.0, (20, 26, 2)).astype(np.float32), affine)
    (folder / "input").mkdir()
    nib.save(image, folder / "input" / "a.nii.gz")
    run(config_file=str(config))
    found = nib.load(folder / "output" / "a_restored.nii.gz")
    predict_folder("mr-sr-x2", folder / "input", tmp_path / "out", modality="MR")
    (wanted,) = (tmp_path / "out").glob("*/result.nii.gz")
    wanted = nib.load(wanted)
    assert found.shape == (40, 52, 2)
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-5)
    # The same code on the same planes; files hold float32.
    np.testing.assert_allclose(found.get_fdata(), wanted.get_fdata(), rtol=1e-5, atol=1e-3)
    same_bundle(bundle, from_export("monai", folder, tmp_path / "back"))
    shutil.copy(folder / "LICENSE", folder / "models" / "model.pt")
    with pytest.raises(InputError, match="weights that cannot be read"):
        from_export("monai", folder, tmp_path / "again")


def test_metadata_that_lacks_a_field_fails_the_schema(tmp_path):
    import jsonschema

    from medseq.inference.export_monai import SCHEMA

    export_bundle(load_bundle("ct-denoise"), "monai", tmp_path / "monai")
    meta = json.loads((tmp_path / "monai" / "configs" / "metadata.json").read_text())
    jsonschema.validate(meta, json.loads(SCHEMA.read_text()))
    del meta["network_data_format"]["inputs"]["image"]["num_channels"]
    with pytest.raises(jsonschema.ValidationError, match="num_channels"):
        jsonschema.validate(meta, json.loads(SCHEMA.read_text()))
