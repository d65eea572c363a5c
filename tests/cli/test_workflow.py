"""What a training leaves behind, and what can be asked of models: record, report, test set, sweep, benchmark, costs."""

import csv
import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from medseq.cli.fit_record import data_hash, patient_hashes
from medseq.cli.fit_report import read_metrics
from medseq.cli.fit_sweep import combinations
from medseq.cli.main import app
from medseq.errors import InputError

runner = CliRunner()
NET = {
    "class_path": "medseq.models.restore_unet.RestoreUNet",
    "init_args": {"in_channels": 1, "dims": [4, 8, 8], "num_blocks": [1, 1, 1]},
}
PHANTOMS = "medseq.data.restore.PhantomPairs"


def config(path, **changes):
    """A configuration that trains in a second."""
    content = {
        "seed_everything": 1,
        "model": {"net": NET, "lr": 0.001, "loss_unit": 100.0, "loss_window": [-160.0, 240.0], "ema_decay": 0.5},
        "data": {
            "train": {"class_path": PHANTOMS, "init_args": {"length": 8, "crop": 16, "seed": 1}},
            "val": {"class_path": PHANTOMS, "init_args": {"length": 3, "crop": 16, "seed": 2}},
            "test": {"class_path": PHANTOMS, "init_args": {"length": 4, "crop": 16, "seed": 3}},
            "batch_size": 4,
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        },
    }
    content["model"]["bundle"] = {
        "name": "small",
        "version": "0.0.1",
        "task": "restore",
        "input": {"kind": "volume", "modality": ["CT"], "units": "HU", "channels": 1},
        "output": {"kind": "volume", "units": "HU"},
    }
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        written = config(folder / "c.yaml")
        result = runner.invoke(app, ["fit", "restore", "--config", str(written), "--deterministic"])
    assert result.exit_code == 0, result.output
    (record,) = folder.rglob("run.json")
    return folder, record.parent, result


def test_the_record_says_what_decided_the_numbers(trained):
    _, run, _ = trained
    record = json.loads((run / "run.json").read_text())
    assert record["seed"] == 1
    assert record["versions"]["torch"] == torch.__version__
    for key in ("config_sha256", "data_sha256", "packages_sha256"):
        assert len(record[key]) == 64
    assert record["patients"] == {"train": [], "val": [], "test": []}


def test_without_a_logger_in_the_configuration_csv_and_tensorboard_are_kept(trained):
    _, run, result = trained
    assert {"val/psnr", "train/loss"} <= read_metrics(run / "metrics.csv").keys()
    assert list(run.glob("events.out.tfevents*"))
    # One line a validation, for logs of unattended runs.
    assert "epoch 1, step 4 of 4" in result.stderr


def test_the_report_shows_every_metric_the_curves_and_the_last_picture(trained):
    _, run, _ = trained
    text = (run / "report.html").read_text()
    for name in read_metrics(run / "metrics.csv"):
        assert f"<td>{name}</td>" in text
    assert text.count("data:image/svg+xml") == 1
    assert text.count("data:image/png") == 1
    assert "Research use only" in text
    assert len(list((run / "pictures").glob("*.png"))) == 2


def test_two_deterministic_runs_have_equal_weights(trained, tmp_path, monkeypatch):
    folder, run, _ = trained
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["fit", "restore", "--config", str(folder / "c.yaml"), "--deterministic", "-q"])
    assert result.exit_code == 0, result.output
    first, second = (next(where.rglob("model.safetensors")) for where in (run, tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_the_test_set_is_scored_and_its_absence_is_said(trained, tmp_path):
    folder, run, _ = trained
    (checkpoint,) = run.rglob("*.ckpt")
    arguments = ["test", "restore", "--ckpt", str(checkpoint), "--config"]
    result = runner.invoke(app, [*arguments, str(folder / "c.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert {"test/psnr", "test/ssim", "test/rmse", "input/psnr"} <= scores.keys()
    again = runner.invoke(app, [*arguments, str(config(tmp_path / "n.yaml", data={"test": None})), "--json"])
    assert again.exit_code == 2
    assert "there is no test set" in again.stderr


def test_the_newest_checkpoint_of_a_folder_is_resumed(trained, tmp_path, monkeypatch):
    folder, run, _ = trained
    monkeypatch.chdir(tmp_path)
    words = ["fit", "restore", "--config", str(folder / "c.yaml"), "--ckpt", str(run), "--trainer.max_epochs", "3"]
    assert runner.invoke(app, words).exit_code == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"] == 6
    empty = runner.invoke(app, [*words[:5], str(tmp_path / "c"), *words[6:]])
    assert empty.exit_code == 2


def test_a_loss_that_is_not_finite_leaves_its_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = config(tmp_path / "c.yaml")
    # A step this large overflows float32 at once.
    result = runner.invoke(app, ["fit", "restore", "--config", str(written), "--model.lr", "1e38", "-q"])
    assert result.exit_code == 2
    assert "not finite" in result.stderr
    (saved,) = tmp_path.rglob("nonfinite_batch.safetensors")
    assert load_file(saved)["image"].shape == (4, 1, 16, 16)


def test_a_sweep_runs_resumes_and_tabulates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = config(tmp_path / "c.yaml", trainer={"max_epochs": 1})
    words = ["fit", "restore", "--config", str(written), "--out", "s", "-q", "--sweep", "model.lr=0.001,0.01"]
    result = runner.invoke(app, [*words, "--sweep", "data.batch_size=4,8"])
    assert result.exit_code == 0, result.output
    with (tmp_path / "s" / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["model.lr"], row["data.batch_size"]) for row in rows] == [
        ("0.001", "4"),
        ("0.001", "8"),
        ("0.01", "4"),
        ("0.01", "8"),
    ]
    assert len({row["val/loss"] for row in rows}) == 4
    # Nothing is trained twice: only the combination whose result is gone.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("metrics.json")}
    gone = sorted(times)[1]
    gone.unlink()
    assert runner.invoke(app, [*words, "--sweep", "data.batch_size=4,8"]).exit_code == 0
    changed = [path for path in times if path.stat().st_mtime_ns != times[path]]
    assert changed == [gone]
    other = runner.invoke(app, [*words, "--sweep", "data.batch_size=4,8", "--model.loss_unit", "50"])
    assert other.exit_code == 2
    assert "sweep of other arguments" in other.stderr


@pytest.mark.parametrize("text", ["model.lr", "=1,2", "model.lr=", "a=1"])
def test_sweeps_that_are_none(text):
    with pytest.raises(InputError, match="sweep|swept"):
        combinations([text, "a=2,3"])


def test_lists_can_be_swept():
    assert combinations(["m.dims=[4, 8],[8,8]"]) == [(("m.dims", "[4, 8]"),), (("m.dims", "[8,8]"),)]


def test_benchmark_of_a_bundle_and_a_configuration(trained, tmp_path, monkeypatch):
    folder, run, _ = trained
    monkeypatch.chdir(tmp_path)
    bundle, written = run / "bundle", folder / "c.yaml"
    words = ["benchmark", "restore", "-m", str(bundle), "-m", str(written), "--data", str(written), "--out", "b"]
    result = runner.invoke(app, [*words, "--seeds", "2", "--steps", "2", "-q"])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "b" / "benchmark.json").read_text())
    assert content["title"].startswith("restore: test of")
    assert {score["method"] for score in content["scores"]} == {"input", str(bundle), str(written)}
    assert len(content["scores"]) == 3 * 4
    # The same numbers as `medseq test` gives for the bundle's checkpoint.
    (checkpoint,) = run.rglob("*.ckpt")
    tested = runner.invoke(app, ["test", "restore", "--ckpt", str(checkpoint), "--config", str(written), "--json"])
    mean = math.fsum(score["psnr"] for score in content["scores"] if score["method"] == str(bundle)) / 4
    assert mean == pytest.approx(json.loads(tested.stdout)["test/psnr"], rel=1e-5)
    assert content["seed_sd"].keys() == {str(written)}
    for name in ("benchmark.md", "benchmark.tex", "benchmark.csv", "benchmark.png"):
        assert (tmp_path / "b" / name).stat().st_size > 100
    assert "95 % CI" in result.stdout
    assert "GMAC" in result.stdout


def test_info_counts_a_bundle_and_a_configuration(trained):
    _, run, _ = trained
    result = runner.invoke(app, ["info", str(run / "bundle"), "--shape", "1,1,32,32", "--time", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    weights = load_file(run / "bundle" / "model.safetensors")
    assert found["parameters"] == sum(value.numel() for value in weights.values())
    assert found["seconds"] > 0
    double = json.loads(runner.invoke(app, ["info", str(run / "bundle"), "--shape", "2,1,32,32", "--json"]).stdout)
    # Twice the images: twice the work and the activations, the same weights.
    assert double["flops"] == 2 * found["flops"]
    assert double["weight_bytes"] == found["weight_bytes"]
    wrong = runner.invoke(app, ["info", str(run / "bundle"), "--shape", "1,32"])
    assert wrong.exit_code == 2
    assert runner.invoke(app, ["info", "mil/tiny", "--shape", "50,16"]).exit_code == 0


def test_the_data_hash_sees_what_the_files_hold(tmp_path):
    folder, table = tmp_path / "d", tmp_path / "t.csv"
    folder.mkdir()
    (folder / "a").write_text("1")
    table.write_text("x")
    settings = {"train": {"folder": str(folder), "table": str(table)}, "batch_size": 2}
    hashes = [data_hash(settings), data_hash(settings)]
    table.write_text("y")
    hashes.append(data_hash(settings))
    (folder / "b").write_text("2")
    hashes.append(data_hash(settings))
    hashes.append(data_hash({**settings, "batch_size": 3}))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


class Cases:
    patient_ids = ("a", "b", "a")


def test_patients_of_the_bundle_s_training_may_not_judge_it(trained, tmp_path):
    from medseq.cli.training import _require_unseen

    hashes = patient_hashes(Cases())
    assert len(hashes) == 2
    assert all(len(text) == 64 for text in hashes)

    class Data:
        train, val, test = None, None, Cases()

    _require_unseen(Data(), {"training": {}}, "x")
    with pytest.raises(InputError, match=r"data\.test are in the training data of the bundle"):
        _require_unseen(Data(), {"training": {"patients": hashes[:1]}}, "x")
