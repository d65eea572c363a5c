"""`medseq fit mil`: to a bundle, and cross-validated."""

import csv
import json

import pytest
import yaml
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.inference.bundle import load_bundle

runner = CliRunner()
# A dozen patients: what is looked at is the files, not the scores.
FEW = [f"--data.{part}.init_args.patients=30" for part in ("train", "val", "cohort")]
SMALL = ["--config", "mil/tiny", *FEW, "--trainer.max_epochs", "1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folds_end_in_a_table_and_go_on_where_they_stopped(here):
    command = ["fit", "mil", *SMALL, "--folds", "2", "--out", "cv"]
    first = runner.invoke(app, command)
    assert first.exit_code == 0, first.output
    with (here / "cv" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["patient"] for row in rows}) == len(rows) == 30
    results = json.loads((here / "cv" / "results.json").read_text())
    assert results["patients"] == 30
    assert set(results["metrics"]) == {"auroc", "balanced_accuracy", "f1", "brier", "ece"}
    text = (here / "cv" / "results.md").read_text()
    assert text in first.stdout
    assert "n = 30 patients, 2 folds x 1 repetitions" in text
    config = yaml.safe_load((here / "cv" / "repeat_0" / "fold_1" / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    # Two folds of one run do not start from the same weights.
    assert config["seed_everything"] == 2
    (here / "cv" / "repeat_0" / "fold_1" / "predictions.csv").unlink()
    again = runner.invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "fold 0: kept" in again.stderr
    assert "fold 1: kept" not in again.stderr
    assert json.loads((here / "cv" / "results.json").read_text()) == results
    other = runner.invoke(app, [*command, "--model.lr", "0.5"])
    assert other.exit_code == 2
    assert "another model" in other.stderr


def test_a_training_ends_with_a_bundle_that_knows_its_operating_point(here):
    result = runner.invoke(app, ["fit", "mil", *SMALL])
    assert result.exit_code == 0, result.output
    bundle = load_bundle(next(here.rglob("bundle.yaml")).parent)
    assert bundle.config.output.classes == ["no witnesses", "witnesses"]
    assert bundle.config.output.temperature is not None
    assert 0 < bundle.config.output.threshold < 1
    assert bundle.metadata["training"]["validation"]["patients"] > 0
    model = bundle.build_model()
    assert model.knows_features
    assert model.knows_embeddings


@pytest.mark.parametrize(
    "arguments",
    [["restore", "--config", "restore/tiny", "--folds", "3"], ["mil", "--repeats", "2"], ["mil", "--out", "x"]],
)
def test_options_that_do_not_belong_together_are_refused(arguments, here):
    result = runner.invoke(app, ["fit", *arguments])
    assert result.exit_code == 2
    assert "--folds cross-validates mil" in result.stderr
    assert not list(here.iterdir())
