"""Every shipped configuration parses through the real parser; every tiny one trains."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medseq.cli.fit_report import read_metrics
from medseq.cli.main import app
from medseq.cli.share import config_names, find_config
from medseq.cli.training import TASKS
from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import ClassSpec, validate_config

ROOT = Path(__file__).resolve().parents[1]
NAMES = config_names()
TINY = [name for name in NAMES if name.endswith("/tiny")]
runner = CliRunner()


def test_there_are_configurations_for_every_task():
    assert {name.partition("/")[0] for name in NAMES} == set(TASKS)
    assert {name.partition("/")[0] for name in TINY} == set(TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_parses_and_builds_the_network(name):
    # The data sets are parsed, not built: some need images that only `medseq data example` installs.
    result = runner.invoke(app, ["fit", name.partition("/")[0], "--config", name, "--print_config"])
    assert result.exit_code == 0, result.output
    resolved = yaml.safe_load(result.stdout)
    net = build_class(ClassSpec(**resolved["model"]["net"]), where=name)
    assert sum(parameter.numel() for parameter in net.parameters()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_command_and_its_expectation(name):
    first, second = find_config(name).read_text().splitlines()[:2]
    assert first == f"# medseq fit {name.partition('/')[0]} --config {name}"
    assert re.match(r"# [A-Z]", second)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_its_bundle_will_be(name):
    model = yaml.safe_load(find_config(name).read_text())["model"]
    if "bundle" not in model:
        pytest.fail("no model.bundle: medseq bundle would refuse its checkpoints")
    about = {key: value for key, value in model["bundle"].items() if key != "metadata"}
    weights = {"sha256": "0" * 64}
    content = {
        "format": 1,
        **about,
        "model": model["net"],
        "preprocess": model.get("preprocess", []),
        "weights": weights,
    }
    assert validate_config(content, where=name).task == name.partition("/")[0]


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_one_trains_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = name.partition("/")[0]
    result = runner.invoke(app, ["fit", task, "--config", name, "--trainer.fast_dev_run", "2"])
    assert result.exit_code == 0, result.output
    # A dry run leaves nothing behind.
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("--model.net.init_args.deptth=3", "deptth"),
        ("--data.batchsize=3", "batchsize"),
        ("--trainer.max_step=3", "max_step"),
        ("--model.lr=fast", "lr"),
        ("--model.net=medseq.models.restore_rwkv.NoSuchNet", "NoSuchNet"),
    ],
)
def test_a_misspelt_key_is_refused_before_training(override, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["fit", "restore", "--config", "restore/tiny", override])
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.startswith("medseq: ")
    # One readable message, not the dump of every key.
    assert len(result.stderr) < 1500
    assert not list(tmp_path.iterdir())


def test_an_unknown_configuration_names_those_that_exist():
    result = runner.invoke(app, ["fit", "restore", "--config", "restore/tinny"])
    assert result.exit_code == 2
    assert "restore/tiny" in result.stderr


def test_the_table_of_configurations_is_up_to_date():
    script = ROOT / ".ci" / "config_table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}; run python .ci/config_table.py"


# What the second line of each tiny configuration promises: the metric, what it is compared with, and by how much.
PROMISES = {
    "mil/tiny": ("val/auroc", None, 0.9),
    "recon/tiny": ("val/psnr", "input/psnr", 3.0),
    "restore/tiny": ("val/psnr", "input/psnr", 2.0),
}


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_one_reaches_what_it_promises(name, tmp_path, monkeypatch):
    metric, reference, margin = PROMISES[name]
    line = find_config(name).read_text().splitlines()[1]
    assert f"{metric} above" in line
    assert f"{margin:g}" in line
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["fit", name.partition("/")[0], "--config", name, "-q"])
    assert result.exit_code == 0, result.output
    curves = read_metrics(next(tmp_path.rglob("metrics.csv")))
    best = max(value for _, value in curves[metric])
    assert best > margin + (curves[reference][-1][1] if reference else 0.0)
