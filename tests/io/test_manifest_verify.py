"""Every kind of fault of a data set is found, by name and only once."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import yaml

from medseq.data.task_examples import write_recon_example, write_restore_example
from medseq.errors import ManifestError
from medseq.io.manifest_verify import verify_manifest


@pytest.fixture
def volumes(tmp_path, seed):
    write_restore_example(tmp_path / "set", size=16, slices=2, seed=seed)
    return tmp_path / "set"


def faults(folder, **options):
    return {(fault.kind, fault.file) for fault in verify_manifest(folder / "manifest.yaml", **options).faults}


def test_a_whole_set_has_no_faults(volumes, tmp_path, seed):
    found = verify_manifest(volumes / "manifest.yaml")
    assert (found.files, found.subjects, found.faults) == (5, 5, [])
    write_recon_example(tmp_path / "scans", size=16, slices=1, seed=seed)
    assert faults(tmp_path / "scans") == set()


def test_empty_cut_and_copied_files_are_told_apart(volumes):
    noisy = volumes / "noisy"
    (noisy / "subject1.nii.gz").write_bytes(b"")
    whole = (noisy / "subject2.nii.gz").read_bytes()
    (noisy / "subject2.nii.gz").write_bytes(whole[: len(whole) // 2])
    (noisy / "subject4.nii.gz").write_bytes((noisy / "subject3.nii.gz").read_bytes())
    assert faults(volumes) == {
        ("empty", "noisy/subject1.nii.gz"),
        ("corrupt", "noisy/subject2.nii.gz"),
        ("duplicate", "noisy/subject4.nii.gz"),
    }
    # Hashes alone do not see that a file was cut short.
    assert ("corrupt", "noisy/subject2.nii.gz") not in faults(volumes, open_files=False)


def test_a_dicom_file_that_was_cut_short_is_corrupt(tmp_path):
    from pydicom.data import get_testdata_file

    whole = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    for name, data in (("a", whole), ("b", whole[: len(whole) // 2])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_bytes(data)
    text = {"title": "t", "licence": "l", "get": "g", "cite": "c", "what": "w"}
    folder = {"path": ".", "pattern": "*/*.dcm", "subject": "^([ab])/", "role": "train"}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({**text, "folders": [folder]}))
    assert faults(tmp_path) == {("corrupt", "b/1.dcm")}


def test_a_file_that_is_not_there_is_missing(volumes):
    (volumes / "noisy" / "subject5.nii.gz").unlink()
    assert faults(volumes) == {("missing", "noisy/subject5.nii.gz")}


def test_the_lock_tells_changed_files(volumes, tmp_path):
    lock = tmp_path / "lock.json"
    assert faults(volumes, lock=lock) == set()
    path = volumes / "noisy" / "subject1.nii.gz"
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    voxels[-4:] = np.float32(7).tobytes()
    path.write_bytes(gzip.compress(bytes(voxels)))
    before = lock.read_text()
    assert faults(volumes, lock=lock) == {("changed", "noisy/subject1.nii.gz")}
    assert lock.read_text() == before
    lock.write_text("[")
    with pytest.raises(ManifestError, match="lock file cannot be read"):
        verify_manifest(volumes / "manifest.yaml", lock=lock)


def test_a_checksum_of_the_manifest_and_a_person_in_two_parts(volumes):
    content = yaml.safe_load((volumes / "manifest.yaml").read_text())
    content["files"][0]["sha256"] = "0" * 64
    content["files"][4]["subject"] = "subject1"
    (volumes / "manifest.yaml").write_text(yaml.safe_dump(content))
    assert faults(volumes) == {("changed", "noisy/subject1.nii.gz"), ("split", "subject subject1")}
