"""From a configuration to a bundle: fit, resume, validate, and what an interrupt leaves."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.inference.bundle import load_bundle

runner = CliRunner()
SHORT = ["--config", "restore/tiny", "--trainer.log_every_n_steps", "2", "--data.train.init_args.length", "24"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one short training run; the tests below only read it."""
    folder = tmp_path_factory.mktemp("train")
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = runner.invoke(app, ["fit", "restore", *SHORT, "--trainer.max_epochs", "2"])
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.output
    (checkpoint,) = folder.rglob("*.ckpt")
    return folder, checkpoint, result


def test_the_resolved_configuration_lies_beside_the_checkpoint(trained):
    _, checkpoint, _ = trained
    config = yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    # Defaults are written out: the file says what ran, not what was typed.
    assert config["model"]["betas"] == [0.9, 0.999]


def test_the_run_logs_its_metrics(trained):
    _, checkpoint, _ = trained
    with (checkpoint.parents[1] / "metrics.csv").open() as stream:
        names = set(csv.DictReader(stream).fieldnames)
    assert {"val/psnr", "val/ssim", "val/rmse", "input/psnr", "train/loss"} <= names


def test_the_run_ends_with_a_bundle_of_the_averaged_weights(trained):
    folder, checkpoint, result = trained
    bundle = load_bundle(next(folder.rglob("bundle.yaml")).parent)
    assert str(bundle.folder) in result.stderr.replace("\n", "")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    for name, value in bundle.build_model().state_dict().items():
        assert torch.equal(value, state[f"ema.{name}"])
    assert bundle.metadata["training"]["optimizer_steps"] == 12
    assert bundle.metadata["intended_use"] == "Research use only, not for diagnosis"
    assert "No model card" in (bundle.folder / "README.md").read_text()


def test_the_bundle_computes_what_the_checkpoint_does(trained):
    from medseq.tasks.restore import RestoreTask

    folder, checkpoint, _ = trained
    bundle = load_bundle(next(folder.rglob("bundle.yaml")).parent)
    task = RestoreTask(bundle.build_model(), bundle.transforms())
    task.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    image = torch.randn(1, task.net.in_channels, 32, 40, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(bundle.build_model()(image), task.ema.eval()(image), rtol=0, atol=0)


def test_bundle_with_a_card_metadata_and_half_precision(trained, tmp_path):
    _, checkpoint, _ = trained
    card, facts, out = tmp_path / "card.md", tmp_path / "facts.yaml", tmp_path / "out"
    card.write_text("# Card\n")
    facts.write_text("licence: none\ntraining_data: [{name: phantoms, n: 32}]\n")
    arguments = [
        "bundle",
        str(checkpoint),
        str(out),
        "--card",
        str(card),
        "--metadata",
        str(facts),
        "--dtype",
        "float16",
    ]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    bundle = load_bundle(out)
    assert json.loads(result.stdout)["hash"] == bundle.hash
    assert bundle.config.weights.dtype == "float16"
    assert bundle.metadata["licence"] == "none"
    assert bundle.metadata["versions"]["torch"] == torch.__version__
    assert (out / "README.md").read_text() == "# Card\n"
    again = runner.invoke(app, arguments)
    assert again.exit_code == 2
    assert "folder exists" in again.stderr


def test_bundle_refuses_what_is_no_training_checkpoint(trained, tmp_path):
    _, checkpoint, _ = trained
    card = tmp_path / "card.md"
    card.write_text("# Card\n")
    weights = tmp_path / "weights.ckpt"
    torch.save({"weight": torch.zeros(1)}, weights)
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"not a checkpoint")
    lonely = tmp_path / "a" / "b" / "lonely.ckpt"
    lonely.parent.mkdir(parents=True)
    lonely.write_bytes(checkpoint.read_bytes())
    for path, complaint in (
        (weights, "not a training checkpoint"),
        (garbage, "cannot be loaded as plain tensors"),
        (lonely, "no config.yaml beside the checkpoint"),
        (tmp_path / "missing.ckpt", "no such checkpoint"),
    ):
        result = runner.invoke(app, ["bundle", str(path), str(tmp_path / "out"), "--card", str(card)])
        assert result.exit_code == 2, path.name
        assert complaint in result.stderr
        assert not (tmp_path / "out").exists()


def test_validate_tells_the_metrics_of_the_checkpoint(trained, tmp_path, monkeypatch):
    _, checkpoint, _ = trained
    monkeypatch.chdir(tmp_path)
    config = str(checkpoint.parents[1] / "config.yaml")
    result = runner.invoke(app, ["validate", "restore", "--config", config, "--ckpt", str(checkpoint), "--json"])
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    with (checkpoint.parents[1] / "metrics.csv").open() as stream:
        logged = [row["val/psnr"] for row in csv.DictReader(stream) if row["val/psnr"]]
    assert not list(tmp_path.iterdir())
    # The same weights on the same samples; the log keeps about seven digits.
    assert metrics["val/psnr"] == pytest.approx(float(logged[-1]), rel=1e-4)


def test_training_resumes_where_it_stopped(trained, tmp_path, monkeypatch):
    _, checkpoint, _ = trained
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(
        app,
        ["fit", "restore", *SHORT, "--trainer.max_epochs", "3", "--ckpt", str(checkpoint)],
    )
    assert result.exit_code == 0, result.output
    (resumed,) = tmp_path.rglob("*.ckpt")
    assert torch.load(resumed, map_location="cpu", weights_only=True)["global_step"] == 18


def test_a_missing_checkpoint_is_refused_before_the_configuration_is_read():
    result = runner.invoke(app, ["validate", "restore", "--ckpt", "/nowhere/x.ckpt"])
    assert result.exit_code == 2
    assert "no such checkpoint" in result.stderr


def interrupt(process, patience=20, attempts=3):
    """Press Ctrl-C as a person does: again, if nothing happens. Python drops one that comes inside a destructor."""
    for _ in range(attempts):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=patience)[0]
        except subprocess.TimeoutExpired:
            continue
    return pytest.fail(f"still running after {attempts} interrupts")


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("unexpected pos"), 1), (KeyboardInterrupt(), 130)], ids=["bug", "interrupt"]
)
def test_an_interrupt_inside_a_checkpoint_is_one(error, code, tmp_path, monkeypatch):
    import pytorch_lightning as pl

    def fit(*_, **__):
        try:
            raise error
        except (RuntimeError, KeyboardInterrupt):
            raise RuntimeError("PytorchStreamWriter failed writing file")  # noqa: B904 (as torch does)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl.Trainer, "fit", fit)
    assert runner.invoke(app, ["fit", "restore", *SHORT]).exit_code == code


def test_an_interrupted_training_exits_with_130(tmp_path):
    endless = ["--trainer.max_epochs", "1000"]
    command = [sys.executable, "-m", "medseq.cli.main", "fit", "restore", *SHORT, *endless]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background of a shell ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.rglob("*.ckpt")):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "no checkpoint within 90 s"
            time.sleep(0.2)
        output = interrupt(process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == 130, output


def test_help_config_lists_every_key_of_the_task():
    result = runner.invoke(app, ["fit", "restore", "--help-config"])
    assert result.exit_code == 0
    for key in ("--model.net", "--model.lr", "--data.train", "--trainer.max_steps"):
        assert key in result.stdout
