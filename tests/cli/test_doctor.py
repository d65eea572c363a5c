"""`medseq doctor`: versions, devices, what each operator runs and why, missing extras, zoo integrity."""

import importlib.metadata
import json
import os
import shutil

import pytest
from typer.testing import CliRunner

from medseq.cli import doctor as doctor_module
from medseq.cli import operator_times
from medseq.cli.main import app
from medseq.inference.zoo import zoo_names

runner = CliRunner()


@pytest.fixture(scope="module")
def report():
    result = runner.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_versions_are_those_installed(report):
    for name in ("torch", "numpy", "monai", "nibabel"):
        assert report["versions"][name] == importlib.metadata.version(name)


def test_devices(report):
    assert report["devices"]["cores"] >= 1
    assert report["devices"]["memory_gb"] > 0.5
    assert isinstance(report["devices"]["cuda"], list)


def test_every_operator_says_what_it_runs_and_why(report):
    from medseq import ops

    named = {(entry["operator"], entry["device"]) for entry in report["operators"]}
    assert {operator for operator, _ in named} == set(ops.backends())
    assert all(entry["implementation"] and entry["reason"] for entry in report["operators"])


def test_the_environment_changes_what_runs(monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", "naive")
    entries = json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)["operators"]
    (cpu,) = [entry for entry in entries if entry["operator"] == "bi_wkv" and entry["device"] == "cpu"]
    assert cpu["implementation"] == "naive"
    assert "MEDSEQ_BACKEND" in cpu["reason"]


def test_missing_extras_come_with_their_command(monkeypatch):
    monkeypatch.setattr(doctor_module, "_installed", lambda name: name != "pydicom")
    extras = {entry["extra"]: entry for entry in doctor_module.examine()["extras"]}
    assert extras["dicom"] == {"extra": "dicom", "missing": ["pydicom"], "command": "pip install 'medseq[dicom]'"}
    assert extras["mri"] == {"extra": "mri", "missing": [], "command": None}
    text = runner.invoke(app, ["doctor"]).stdout
    assert "pip install 'medseq[dicom]'" in text


def test_a_changed_bundle_is_found(monkeypatch, tmp_path):
    from medseq.inference import zoo

    folder = tmp_path / "zoo"
    shutil.copytree(zoo.zoo_folder() / "ct-denoise", folder / "ct-denoise")
    weights = folder / "ct-denoise" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(zoo, "zoo_folder", lambda: folder)
    monkeypatch.setattr("medseq.inference.bundle.zoo_folder", lambda: folder)
    result = runner.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 3
    (entry,) = json.loads(result.stdout)["zoo"]
    assert entry["state"] == "broken"
    assert "the weights were changed or truncated" in entry["reason"]


def test_shipped_bundles_are_whole(report):
    assert {entry["name"]: entry["state"] for entry in report["zoo"]} == dict.fromkeys(zoo_names(), "ok")
    assert "mri-recon" in zoo_names()


def test_the_benchmark_times_every_candidate_and_says_what_auto_takes(monkeypatch):
    monkeypatch.setenv("MEDSEQ_BACKEND", "chunked")  # what is forced outside does not hide the other candidates
    result = runner.invoke(app, ["doctor", "--benchmark", "--device", "cpu", "--shape", "1,4,16,2", "--json"])
    assert result.exit_code == 0, result.output
    benchmark = json.loads(result.stdout)["benchmark"]
    assert (benchmark["device"], benchmark["shape"]) == ("cpu", [1, 4, 16, 2])
    entries = {(entry["operator"], entry["implementation"]): entry for entry in benchmark["times"]}
    for operator in ("selective_scan", "cross_selective_scan", "bi_wkv", "causal_conv1d"):
        assert {name for kind, name in entries if kind == operator} == {"cpu", "chunked"}
        assert entries[operator, "cpu"]["auto"]
        assert not entries[operator, "chunked"]["auto"]
        own = [entry for (kind, _), entry in entries.items() if kind == operator]
        assert [entry["fastest"] for entry in own].count(True) == 1
        assert all(0 < entry["forward_seconds"] < 60 and 0 < entry["training_seconds"] < 60 for entry in own)
    assert os.environ["MEDSEQ_BACKEND"] == "chunked"
    text = runner.invoke(app, ["doctor", "--benchmark", "--device", "cpu", "--shape", "1,2,4,1"]).stdout
    assert "fastest" in text


def test_a_benchmark_that_cannot_run_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (
        (["--shape", "1,2,3"], "--shape: not a shape (found 1,2,3, wanted batch,channels,length,state)"),
        (["--shape", "1,2,0,4"], "not a shape"),
        (["--device", "cuda"], "no CUDA device"),
    ):
        result = runner.invoke(app, ["doctor", "--benchmark", *arguments])
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_a_candidate_that_fails_is_shown_as_failed(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of registers\nand a long trace")

    monkeypatch.setattr("medseq.ops.wkv.chunked.forward", broken)
    times = operator_times.operator_times("cpu", operator_times.Sizes(1, 2, 4, 1))
    (entry,) = [e for e in times if (e["operator"], e["implementation"]) == ("bi_wkv", "chunked")]
    assert entry["failure"] == "out of registers"
    assert not entry["fastest"]
