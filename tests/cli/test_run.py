"""`medseq run`, and what `medseq predict` tells before and while it works."""

import json
import logging

import pytest
from typer.testing import CliRunner

from medseq.cli.main import app

runner = CliRunner()


@pytest.fixture
def done(tiny_bundle, volumes, tmp_path):
    (volumes / "cut.nii").write_bytes((volumes / "b.nii").read_bytes()[:400])
    out = tmp_path / "out"
    words = ["predict", str(tiny_bundle), str(volumes), str(out), "--modality", "MR"]
    assert runner.invoke(app, words).exit_code == 3
    return out, words


def test_a_failed_item_is_explained_retried_and_explained_again(done):
    out, words = done
    report = json.loads((out / "report.json").read_text())
    [failed] = [item["id"] for item in report["items"] if item["state"] == "failed"]
    told = runner.invoke(app, ["run", "explain", failed, str(out)])
    assert told.exit_code == 0
    assert "state     failed, 1 attempts" in told.stdout
    assert "cut.nii" not in told.stdout
    assert json.loads(runner.invoke(app, ["run", "explain", failed, str(out), "--json"]).stdout)["item"]["id"] == failed
    assert "1 items queued" in runner.invoke(app, ["run", "retry-failed", str(out)]).stderr
    assert json.loads(runner.invoke(app, [*words, "--json"]).stdout)["processed"] == 1
    assert runner.invoke(app, ["run", "explain", "nothing", str(out)]).exit_code == 2


def test_pause_and_resume(done, tmp_path):
    out, _ = done
    assert "paused" in runner.invoke(app, ["run", "pause", str(out)]).stderr
    assert (out / ".paused").exists()
    assert "goes on" in runner.invoke(app, ["run", "resume", str(out)]).stderr
    assert "was not paused" in runner.invoke(app, ["run", "resume", str(out)]).stderr
    assert runner.invoke(app, ["run", "pause", str(tmp_path)]).exit_code == 2


def test_shards_are_merged(tiny_bundle, volumes, tmp_path):
    out = tmp_path / "out"
    words = ["predict", str(tiny_bundle), str(volumes), str(out), "--modality", "MR", "--shard"]
    assert runner.invoke(app, ["run", "merge", str(out)]).exit_code == 2
    for part in ("1/2", "2/2"):
        assert runner.invoke(app, [*words, part]).exit_code == 0
    answer = json.loads(runner.invoke(app, ["run", "merge", str(out), "--json"]).stdout)
    assert (answer["shards"], answer["counts"]["done"]) == (2, 2)


def test_a_dry_run_prints_the_plan(tiny_bundle, volumes, tmp_path):
    words = ["predict", str(tiny_bundle), str(volumes), str(tmp_path / "out"), "--modality", "MR", "--dry-run"]
    told = runner.invoke(app, words)
    assert told.exit_code == 0
    assert "to compute   2 items (2 nifti), 2 files" in told.stdout
    assert "time         about" in told.stdout
    assert "memory       up to" in told.stdout
    assert json.loads(runner.invoke(app, [*words, "--json"]).stdout)["plan"]["items"] == 2
    assert not (tmp_path / "out").exists()


def test_the_log_as_json_holds_no_names(tiny_bundle, volumes, tmp_path):
    (volumes / "JANE_DOE_cut.nii").write_bytes((volumes / "b.nii").read_bytes()[:400])
    words = ["predict", str(tiny_bundle), str(volumes), str(tmp_path / "out"), "--modality", "MR", "--json-log", "-q"]
    ours = logging.getLogger("medseq")
    before = (list(ours.handlers), ours.level, ours.propagate)
    try:
        told = runner.invoke(app, words)
    finally:
        ours.handlers[:], ours.level, ours.propagate = before
    lines = [json.loads(line) for line in told.stderr.splitlines() if line.startswith("{")]
    assert {"INFO", "WARNING"} == {line["level"] for line in lines}
    assert any("failed" in line["message"] for line in lines)
    assert "JANE" not in told.stderr
