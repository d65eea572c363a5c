"""What manifests say: every shipped one fits the schema and describes itself to machines."""

import importlib
import json
import warnings

import pytest
import yaml

from medseq.errors import ManifestError
from medseq.io.croissant import croissant
from medseq.io.manifest import read_manifest
from medseq.io.manifest_schema import load_manifest

PUBLIC = {
    *("fastmri", "fastmri_knee", "calgary_campinas", "ixi", "aapm_low_dose_ct", "camelyon16", "tcga_nsclc", "bracs"),
    "udpet",
}


@pytest.fixture(scope="module")
def names(repo_root):
    return sorted(path.stem for path in (repo_root / "data_manifests").glob("*.yaml"))


def test_the_public_sets_are_described_with_layout_split_and_reader(names):
    assert set(names) >= PUBLIC
    for name in PUBLIC:
        manifest = load_manifest(name)
        assert manifest.reader, name
        assert manifest.folders, name
        assert "unverified" in manifest.licence, "what was not read here must be said"
        # Nobody is told an address that may have moved.
        assert "://" not in manifest.get


def test_every_reader_exists(names):
    for name in names:
        if reader := load_manifest(name).reader:
            module, _, attribute = reader.rpartition(".")
            assert callable(getattr(importlib.import_module(module), attribute)), name


def test_every_manifest_is_a_croissant(names):
    with warnings.catch_warnings():
        # Of rdflib, and that our sets have no records.
        warnings.simplefilter("ignore")
        import mlcroissant

        for name in names:
            content = json.loads(json.dumps(croissant(name, load_manifest(name))))
            metadata = mlcroissant.Dataset(jsonld=content).metadata
            assert metadata.name == name
            assert not metadata.ctx.issues.errors
        del content["distribution"][0]["contentUrl"]
        with pytest.raises(mlcroissant.ValidationError, match="contentUrl"):
            mlcroissant.Dataset(jsonld=content)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"licence": None}, "licence: "),
        ({"licens": "MIT"}, "licens: Extra inputs"),
        ({"files": [{"path": "a", "subject": "x", "role": "train", "sha256": "12"}]}, "files.0.sha256"),
        ({"folders": [{"path": "a", "subject": "(", "role": "train"}]}, "no regular expression"),
        ({"reader": "os.system"}, "reader: "),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, complaint):
    whole = {"title": "t", "licence": "l", "get": "g", "cite": "c", "what": "w"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(whole))
    assert load_manifest(tmp_path / "a.yaml").title == "t"
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**whole, **change}))
    with pytest.raises(ManifestError, match=complaint):
        load_manifest(tmp_path / "a.yaml")


def test_shares_deal_subjects_not_files_and_stay_when_others_join(tmp_path):
    text = 'folders: [{path: ., pattern: "*/*.nii", subject: "(P[0-9]+)/", role: {train: 0.6, val: 0.2, test: 0.2}}]'
    (tmp_path / "m.yaml").write_text(text)
    for number in range(200):
        (tmp_path / f"P{number}").mkdir()
        for visit in "ab":
            (tmp_path / f"P{number}" / f"{visit}.nii").touch()
    first = {file.subject: file.role for file in read_manifest(tmp_path / "m.yaml")}
    assert len(first) == 200
    # 60 % of 200: three standard deviations of a binomial are 21.
    assert abs(sum(role == "train" for role in first.values()) - 120) <= 21
    assert set(first.values()) == {"train", "val", "test"}
    (tmp_path / "P9999").mkdir()
    (tmp_path / "P9999" / "a.nii").touch()
    second = {file.subject: file.role for file in read_manifest(tmp_path / "m.yaml")}
    assert {subject: second[subject] for subject in first} == first
    (tmp_path / "m.yaml").write_text(text.replace("0.6", "0.7"))
    with pytest.raises(ManifestError, match="shares are not of 1"):
        read_manifest(tmp_path / "m.yaml")
