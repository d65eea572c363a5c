"""`medseq predict --deidentify`: the run sees the copy only, and tells when something was left out."""

import json

from typer.testing import CliRunner

from medseq.cli.main import app


def test_predict_works_on_a_copy_without_identifiers(tiny_bundle, volumes, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_SALT", "a long secret of this test")
    out = tmp_path / "out"
    command = ["predict", str(tiny_bundle), str(volumes), str(out), "--modality", "MR", "--names", "source"]
    done = CliRunner().invoke(app, [*command, "--deidentify", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"]["done"] == 2
    assert [path for path in out.rglob("*") if "JANE" in path.name] == []
    assert (out / "deidentified" / "deidentify.json").is_file()
    (volumes / "letter.ndpi").write_bytes(b"x")
    assert CliRunner().invoke(app, [*command, "--deidentify"]).exit_code == 3
