"""`medseq predict` and `medseq check`: exit codes, resuming, answers for machines, and no identifiers."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medseq.cli.main import app

runner = CliRunner()


def predict(bundle, source, out, *options):
    return runner.invoke(app, ["predict", str(bundle), str(source), str(out), "--modality", "MR", *options])


def test_predict_in_a_process_of_its_own(tiny_bundle, volumes, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "medseq.cli.main", "predict", str(tiny_bundle), str(volumes), str(out)]
    done = subprocess.run([*command, "--modality", "MR"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "2 done" in done.stderr
    assert (out / "report.html").is_file()
    assert len(list(out.rglob("result.nii.gz"))) == 2
    # Neither the terminal nor the report tells who was in the folder.
    assert "JANE" not in done.stderr
    assert "JANE" not in (out / "report.html").read_text()
    assert "JANE" not in (out / "report.json").read_text()


def test_json_is_the_whole_of_standard_output(tiny_bundle, volumes, tmp_path):
    result = predict(tiny_bundle, volumes, tmp_path / "out", "--json")
    answer = json.loads(result.stdout)
    assert answer["exit_code"] == result.exit_code == 0
    assert answer["counts"]["done"] == 2
    assert answer["processed"] == 2
    assert answer["report"].endswith("report.html")


def test_quiet_says_nothing(tiny_bundle, volumes, tmp_path):
    result = predict(tiny_bundle, volumes, tmp_path / "out", "--quiet")
    assert result.exit_code == 0
    assert result.output == ""


def test_a_second_run_does_nothing(tiny_bundle, volumes, tmp_path):
    out = tmp_path / "out"
    assert predict(tiny_bundle, volumes, out).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("result.nii.gz")}
    result = predict(tiny_bundle, volumes, out, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["processed"] == 0
    assert {path: path.read_bytes() for path in out.rglob("result.nii.gz")} == before


def test_one_broken_input_fails_alone_with_exit_code_3(tiny_bundle, volumes, tmp_path):
    (volumes / "cut.nii").write_bytes((volumes / "b.nii").read_bytes()[:400])
    out = tmp_path / "out"
    result = predict(tiny_bundle, volumes, out)
    assert result.exit_code == 3
    assert "2 done" in result.stderr
    assert "1 failed" in result.stderr
    assert len(list(out.rglob("result.nii.gz"))) == 2
    # Said even when quiet: a failure is part of the answer.
    assert "1 failed" in predict(tiny_bundle, volumes, out, "--quiet").stderr


@pytest.mark.parametrize(
    "content", [{}, {"notes.txt": b"hello", "more/list.csv": b"a,b\n"}], ids=["empty", "no images"]
)
def test_nothing_to_do_is_exit_code_2(content, tiny_bundle, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name, data in content.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    result = predict(tiny_bundle, source, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("medseq: ")
    assert result.stderr.count("\n") == 1


def test_the_wrong_modality_is_refused_with_what_to_pass(tiny_bundle, volumes, tmp_path):
    result = runner.invoke(app, ["predict", str(tiny_bundle), str(volumes), str(tmp_path / "out"), "--modality", "CT"])
    assert result.exit_code == 2
    assert "found CT, wanted MR" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_bundle_names_those_that_exist(volumes, tmp_path):
    result = predict("no-such-bundle", volumes, tmp_path / "out")
    assert result.exit_code == 2
    assert "no bundle of this name" in result.stderr
    assert "ct-denoise" in result.stderr


def test_another_strength_needs_another_folder_or_a_new_run(tiny_bundle, volumes, tmp_path):
    out = tmp_path / "out"
    assert predict(tiny_bundle, volumes, out).exit_code == 0
    refused = predict(tiny_bundle, volumes, out, "--strength", "0.5")
    assert refused.exit_code == 2
    assert "--new-run" in refused.stderr
    assert predict(tiny_bundle, volumes, out, "--strength", "0.5", "--new-run").exit_code == 0


def test_options_reach_the_function_by_the_same_names():
    import inspect

    from medseq.cli.predict import predict as command
    from medseq.inference.run import predict_folder

    ours = set(inspect.signature(command).parameters) - {"as_json", "quiet", "verbose", "json_log"}
    theirs = set(inspect.signature(predict_folder).parameters) - {"progress", "created_utc"}
    assert ours == theirs


def test_check_finds_what_was_changed_and_what_is_missing(tiny_bundle, volumes, tmp_path):
    out = tmp_path / "out"
    assert predict(tiny_bundle, volumes, out).exit_code == 0
    good = runner.invoke(app, ["check", str(out), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["problems"] == []

    first, second = sorted(out.rglob("result.nii.gz"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    os.remove(second)
    bad = runner.invoke(app, ["check", str(out), "--json"])
    assert bad.exit_code == 3
    problems = json.loads(bad.stdout)["problems"]
    assert {(entry["item_id"], entry["what"]) for entry in problems} == {
        (first.parent.name, "changed"),
        (second.parent.name, "missing"),
    }
    words = runner.invoke(app, ["check", str(out)])
    assert words.exit_code == 3
    assert "changed: result" in words.stderr


def test_check_of_a_folder_without_a_run(tmp_path):
    result = runner.invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 2
    assert "no run was recorded here" in result.stderr
    assert not list(tmp_path.iterdir())
