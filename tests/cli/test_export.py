"""`medseq export` and the way back by `medseq convert`."""

import json

from typer.testing import CliRunner

from medseq.cli.main import app

runner = CliRunner()


def test_a_bundle_goes_out_and_comes_back(tmp_path):
    hub, back = str(tmp_path / "hub"), str(tmp_path / "back")
    done = runner.invoke(app, ["export", "mil-ucsb", hub, "--to", "hf", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["format"] == "hf"
    done = runner.invoke(app, ["convert", "hf", hub, back, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["name"] == "mil-ucsb"
    again = runner.invoke(app, ["export", back, hub, "--to", "hf"])
    assert again.exit_code == 2
    assert "in use" in again.stderr


def test_words_that_are_no_format_or_size_are_refused(tmp_path):
    done = runner.invoke(app, ["export", "ct-denoise", str(tmp_path / "x"), "--to", "coreml"])
    assert done.exit_code == 2
    for text in ("big", "32,32,32", "8,8", "32,9999"):
        done = runner.invoke(app, ["export", "ct-denoise", str(tmp_path / "x"), "--to", "onnx", "--size", text])
        assert done.exit_code == 2, text
        assert "--size" in done.stderr
    assert not list(tmp_path.iterdir())
