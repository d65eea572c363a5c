"""Manifests of training data: files, folders, and the split by people."""

import pytest

from medseq.errors import ManifestError
from medseq.io.manifest import find_manifest, read_manifest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEQ_DATA", str(tmp_path / "data"))
    for name in ("Train/e1s1.h5", "Train/e1s2.h5", "Train/e2s1.h5", "Val/e3s1.h5", "Val/readme.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def manifest(folder, text):
    (folder / "set.yaml").write_text(text)
    return folder / "set.yaml"


def test_folders_tell_subjects_by_names(folder):
    text = r"""
title: Set
files: [{path: Train/e1s1.h5, subject: single, role: train, slices: [2, 5]}]
folders:
  - {path: Val, subject: 'e(\d+)', role: val}
"""
    first, second = read_manifest(manifest(folder, text))
    assert (first.subject, first.role, first.slices) == ("single", "train", (2, 5))
    assert (second.path.name, second.subject, second.role) == ("e3s1.h5", "3", "val")


def test_beside_the_manifest_comes_first(folder):
    (folder / "Val").mkdir()
    (folder / "Val" / "e9s1.h5").touch()
    found = read_manifest(manifest(folder, "folders: [{path: Val, subject: 'e[0-9]', role: val}]"))
    assert [file.subject for file in found] == ["e9"]


def test_shipped_ones_are_found_by_name(folder, repo_root):
    assert find_manifest("calgary_campinas") == repo_root / "data_manifests" / "calgary_campinas.yaml"
    (folder / "data" / "own.yaml").touch()
    assert find_manifest("own.yaml") == folder / "data" / "own.yaml"
    with pytest.raises(ManifestError, match=r"no such manifest \(found nothing.yaml"):
        find_manifest("nothing.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not YAML"),
        ("title: x", r"names no files \(found keys: title"),
        ("files: 3", "lists of entries"),
        ("files: [{path: a.h5, role: train}]", r"files\[0\]: not an entry"),
        ("files: [{path: a.h5, subject: x, role: train, slice: 3}]", "not an entry"),
        ("files: [{path: a.h5, subject: x, role: training}]", "unknown role.*wanted train, val, test"),
        ("files: [{path: a.h5, subject: '', role: train}]", "needs a path and a subject"),
        ("files: [{path: a.h5, subject: x, role: train}]", "no such file"),
        ("files: [{path: ../a.h5, subject: x, role: train}]", "leaves its folder"),
        ("files: [{path: Val/e3s1.h5, subject: x, role: train, slices: [4, 4]}]", "slices are no range"),
        ("files: [{path: Val/e3s1.h5, subject: x, role: val}, {path: Val/e3s1.h5, subject: x, role: val}]", "twice"),
        ("folders: [{path: Nowhere, subject: e, role: train}]", "no such folder"),
        ("folders: [{path: Val, pattern: ../*, subject: e, role: train}]", "pattern leaves"),
        ("folders: [{path: Val, pattern: '*.mrd', subject: e, role: train}]", "holds no such files"),
        ("folders: [{path: Val, subject: '(e', role: train}]", "no regular expression"),
        ("folders: [{path: Val, subject: 'x[0-9]', role: train}]", "tells no subject"),
        (
            "folders: [{path: Train, subject: 'e[0-9]', role: train}]\n"
            "files: [{path: Val/e3s1.h5, subject: e2, role: val}]",
            "subject 'e2' is in two parts of the split.*one role",
        ),
    ],
)
def test_manifests_that_contradict_themselves(folder, text, complaint):
    with pytest.raises(ManifestError, match=complaint):
        read_manifest(manifest(folder, text))
