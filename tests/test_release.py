"""What a release needs: licences that fit, vendored files that are named, archives that build by themselves."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile

import pytest
import yaml


@pytest.fixture
def check(repo_root, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("release_check", repo_root / ".ci" / "release_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "release")
    return module


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("MIT", False),
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
        ("AGPL-3.0", True),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v2 or later (LGPLv2+)", False),
        ("Apache-2.0 OR GPL-2.0-only", False),
        ("not stated", False),
    ],
)
def test_which_licences_are_refused(check, text, bad):
    assert check.refused(text) is bad


def test_nothing_that_users_install_is_under_the_gpl(check):
    assert check.check_licences() == []
    report = (check.OUT / "licences.md").read_text()
    for name in ("torch", "pydicom", "openslide-python", "onnxruntime"):
        assert f"| {name} |" in report
    assert "pylibjpeg-libjpeg" not in report


def test_a_package_under_the_gpl_fails_the_check(check, monkeypatch):
    monkeypatch.setattr(check, "licence", lambda name: "GPL-3.0-only" if name == "einops" else "MIT")
    assert check.check_licences() == ["einops: GPL-3.0-only"]


@pytest.mark.slow
def test_the_bill_of_materials_names_what_is_installed(check):
    check.OUT.mkdir()
    assert check.bill_of_materials() == []
    content = json.loads((check.OUT / "sbom.json").read_text())
    assert content["bomFormat"] == "CycloneDX"
    assert {"torch", "medseq", "numpy"} <= {entry["name"] for entry in content["components"]}


def test_vendored_files_are_named_with_their_licence(repo_root):
    table = (repo_root / "LICENSES" / "README.md").read_text()
    vendored = [
        path
        for folder in ("medseq", "apps")
        for path in (repo_root / folder).rglob("*")
        if path.is_file() and "vendor" in path.parts and "__pycache__" not in path.parts
    ]
    assert [path.name for path in vendored if path.name not in table] == []


def test_the_source_archive_is_whole_and_needs_no_network(check, repo_root, tmp_path):

    done = subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(repo_root)],
        capture_output=True,
        text=True,
        timeout=300,
        # No index can be asked.
        env={**os.environ, "PIP_NO_INDEX": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        inside = {name.partition("/")[2] for name in files.getnames()}
    for path in ("pyproject.toml", "CMakeLists.txt", "LICENSE", "medseq/ops/csrc/processor.hpp", "medseq/py.typed"):
        assert path in inside
    assert not [name for name in inside if name.startswith((".venv", "build/", "runs/"))]


def test_the_citation_is_that_of_this_version(repo_root):
    import medseq

    content = yaml.safe_load((repo_root / "CITATION.cff").read_text())
    assert content["version"] == medseq.__version__
    assert {"cff-version", "title", "authors", "license", "message"} <= content.keys()
