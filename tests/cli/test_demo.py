"""`medseq demo`: real images through the shipped models, judged by a claim; inputs that no model was trained on."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medseq.cli import demo as module
from medseq.cli.main import app
from medseq.cli.share import read_manifests
from medseq.inference.zoo import zoo_entry, zoo_names

runner = CliRunner()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def every_string(value):
    """All strings anywhere in a structure of dicts and lists."""
    if isinstance(value, dict):
        return [text for entry in value.values() for text in every_string(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in every_string(entry)]
    return [value] if isinstance(value, str) else []


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, runner.invoke(app, ["demo", str(folder), "--json"])


def test_the_claims_are_met(ran):
    _, result = ran
    assert result.exit_code == 0, result.output
    tasks = {entry["task"]: entry for entry in json.loads(result.stdout)}
    assert tasks["CT"]["gain_db"] >= 2.0
    assert tasks["MR"]["gain_db"] >= 1.0
    assert tasks["MRI"]["gain_db"] >= 6.0
    assert all(tasks[name]["ssim_after"] > tasks[name]["ssim_before"] for name in ("CT", "MR", "MRI"))
    # A head that never saw tissue must say so of a real slide.
    assert tasks["WSI"]["auroc"] >= 0.9
    assert tasks["WSI"]["is_foreign"]
    assert "real" in tasks["WSI"]["image"]


def test_it_leaves_input_truth_and_results(ran):
    folder, _ = ran
    for name in ("ct", "mr", "mri"):
        assert list((folder / "input" / name).rglob("*.*"))
        assert list((folder / "truth" / name).rglob("*.*"))
        assert (folder / "out" / name / "report.html").is_file()
    # The scan as it was acquired goes through as well: a good image has to come back as one.
    assert len(list((folder / "out" / "ct").glob("*/result/*.dcm"))) == 2
    assert len(list((folder / "out" / "mr").glob("*/result.nii.gz"))) == 1


def test_the_gain_is_what_independent_code_measures(ran):
    import nibabel
    import pydicom
    from pydicom.pixels import apply_rescale

    folder, result = ran
    tasks = {entry["task"]: entry for entry in json.loads(result.stdout)}

    def hounsfield(path):
        dataset = pydicom.dcmread(path)
        return np.clip(apply_rescale(dataset.pixel_array, dataset).astype(np.float64), -160, 240)

    truth = hounsfield(folder / "truth/ct/0001.dcm")
    errors = [np.mean((hounsfield(path) - truth) ** 2) for path in (folder / "out/ct").glob("*/result/*.dcm")]
    # Two results: the low dose one is further from the truth; the original came back as it was. Stored are whole HU.
    assert min(errors) == 0
    assert 10 * np.log10(400**2 / max(errors)) == pytest.approx(tasks["CT"]["psnr_after"], abs=0.05)

    clean = nibabel.load(next((folder / "truth/mr").glob("*.nii.gz"))).get_fdata()
    level = np.percentile(clean[clean > 0], 99)
    restored = nibabel.load(next((folder / "out/mr").glob("*/result.nii.gz"))).get_fdata()
    psnr = 10 * np.log10(level**2 / np.mean((restored - clean) ** 2))
    assert psnr == pytest.approx(tasks["MR"]["psnr_after"], abs=0.01)

    clean = np.abs(np.load(folder / "truth/mri/image.npy"))
    image = nibabel.load(next((folder / "out/mri").glob("*/result.nii.gz"))).get_fdata()[..., 0].T
    psnr = 10 * np.log10(clean.max() ** 2 / np.mean((image - clean) ** 2))
    assert psnr == pytest.approx(tasks["MRI"]["psnr_after"], abs=0.01)


def test_no_input_was_trained_on():
    """Neither by the manifests, nor by any hash that a shipped bundle names."""
    inputs = {sha256(module.sample_file(claim)[0]) for claim in (module.CT, module.MR, module.MRI)}
    for manifest in read_manifests().values():
        for file in manifest.get("files", []):
            if file["role"] == "train":
                assert file["sha256"] not in inputs
    for name in zoo_names():
        metadata = zoo_entry(name).metadata
        hashes = {text for text in every_string(metadata.get("training_data")) if len(text) == 64}
        assert hashes, f"{name} does not say by hash what it was trained on"
        assert not hashes & inputs


def test_every_claim_names_a_shipped_model_and_an_image_that_is_here():
    for claim in (module.CT, module.MR, module.MRI):
        assert claim.bundle in zoo_names()
        path, what = module.sample_file(claim)
        assert path.is_file()
        assert "real" in what


def test_a_claim_that_is_not_met_is_said_and_fails(monkeypatch, tmp_path):
    def poor(folder, quiet):
        return module.Result("CT", "image", "noise", 30.0, 31.0, 0.8, 0.9, "window", 2.0, "report.html")

    def good(folder, quiet):
        return dataclasses.replace(poor(folder, quiet), task="MR", claimed_gain_db=1.0)

    monkeypatch.setattr(module, "_demo_ct", poor)
    monkeypatch.setattr(module, "_demo_mr", good)
    monkeypatch.setattr(module, "_demo_mri", good)
    result = runner.invoke(app, ["demo", str(tmp_path / "demo")])
    assert result.exit_code == 3
    assert "gain +1.00 dB, claimed >= 2 dB: NOT MET" in result.stderr
    assert "gain +1.00 dB, claimed >= 1 dB: met" in result.stderr


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    result = runner.invoke(app, ["demo", str(tmp_path)])
    assert result.exit_code == 2
    assert "the folder holds something else" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"
