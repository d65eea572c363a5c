import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from pydicom import dcmread

from medseq.errors import BackendError, FormatError, InputError
from medseq.inference.discover import discover, open_input, walk


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def by_file(items):
    """First relative path -> item."""
    return {item.files[0].relpath: item for item in items}


def test_every_file_ends_in_exactly_one_item(make, folder, rng):
    make.series(folder / "a", make.head(rng, 3))
    make.nifti(folder / "b" / "brain.nii.gz", make.head(rng, 2))
    make.nifti(folder / "flat.NII".lower(), make.head(rng, 1))
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.dcm").write_bytes(b"")
    items = list(discover(folder))
    files = [row.relpath for item in items for row in item.files]
    assert sorted(files) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    found = by_file(items)
    assert (found["a/slice0000.dcm"].kind, found["a/slice0000.dcm"].state) == ("dicom", "queued")
    assert len(found["a/slice0000.dcm"].files) == 3
    assert (found["b/brain.nii.gz"].kind, found["b/brain.nii.gz"].state) == ("nifti", "queued")
    assert (found["notes.txt"].state, found["notes.txt"].reason_code) == ("skipped", "not-dicom")
    assert found["empty.dcm"].state in ("skipped", "failed")
    assert len({item.item_id for item in items}) == len(items)


def test_item_ids_are_those_of_the_design_and_do_not_depend_on_place(make, folder, tmp_path, rng):
    paths = make.series(folder / "x", make.head(rng, 3))
    make.nifti(folder / "sub" / "v.nii", make.head(rng, 1))
    found = by_file(discover(folder))
    uids = sorted(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths)
    wanted = hashlib.sha256("\n".join(["dicom", *uids]).encode()).hexdigest()[:16]
    assert found["x/slice0000.dcm"].item_id == wanted
    wanted = hashlib.sha256(b"nifti\nsub/v.nii").hexdigest()[:16]
    assert found["sub/v.nii"].item_id == wanted
    (folder / "x").rename(folder / "y")
    folder.rename(tmp_path / "elsewhere")
    moved = by_file(discover(tmp_path / "elsewhere"))
    assert moved["y/slice0000.dcm"].item_id == found["x/slice0000.dcm"].item_id


def test_a_single_file_is_an_input(make, folder, rng):
    path = make.nifti(folder / "v.nii.gz", make.head(rng, 1))
    make.nifti(folder / "other.nii.gz", make.head(rng, 1))
    [item] = discover(path)
    assert item.files[0].relpath == "v.nii.gz"
    [dicom, _] = make.series(folder / "d", make.head(rng, 2))
    [item] = discover(dicom)
    assert (item.kind, len(item.files)) == ("dicom", 1)


def test_a_missing_input_is_refused_without_its_path(folder):
    with pytest.raises(InputError, match="input does not exist") as caught:
        list(discover(folder / "DOE_JOHN"))
    assert "DOE" not in str(caught.value)


def test_order_does_not_depend_on_how_the_folder_was_filled(make, folder, rng):
    for name in ("c", "a", "b"):
        make.nifti(folder / name / "v.nii", make.head(rng, 1))
    assert [item.files[0].relpath for item in discover(folder)] == ["a/v.nii", "b/v.nii", "c/v.nii"]


def test_links_hidden_and_special_files_are_skipped_with_a_reason(make, folder, tmp_path, rng):
    outside = make.nifti(tmp_path / "secret" / "v.nii", make.head(rng, 1))
    make.nifti(folder / "v.nii", make.head(rng, 1))
    (folder / "leaves.nii").symlink_to(outside)
    (folder / "inside.nii").symlink_to(folder / "v.nii")
    (folder / "away").symlink_to(tmp_path / "secret")
    (folder / "dangling.nii").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "v.nii").write_bytes(b"x")
    os.mkfifo(folder / "pipe.nii")
    found = by_file(discover(folder))
    codes = {name: (item.state, item.reason_code) for name, item in found.items()}
    assert codes == {
        "v.nii": ("queued", None),
        "leaves.nii": ("skipped", "link"),
        "inside.nii": ("skipped", "link"),
        "away": ("skipped", "link"),
        "dangling.nii": ("skipped", "link"),
        "loop": ("skipped", "link"),
        ".hidden": ("skipped", "hidden"),
        "pipe.nii": ("skipped", "special"),
    }


def test_an_input_that_is_itself_a_link_is_read(make, folder, tmp_path, rng):
    make.nifti(folder / "v.nii", make.head(rng, 1))
    (tmp_path / "link").symlink_to(folder)
    [item] = discover(tmp_path / "link")
    assert item.files[0].relpath == "v.nii"


def test_a_name_that_is_not_text_fails_with_a_remedy(folder):
    with open(os.fsencode(folder) + b"/m\xfcller.nii", "wb") as stream:
        stream.write(b"x")
    [item] = discover(folder)
    assert (item.state, item.reason_code, item.files[0].relpath) == ("failed", "name", "m\\udcfcller.nii")
    assert "rename it" in item.reason


def test_a_folder_without_permission_fails_and_the_rest_is_found(make, tmp_path, rng):
    # As root every folder is readable, so the walk runs as nobody, below a folder that nobody may enter.
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = os.path.join(name, "in")
        os.makedirs(os.path.join(root, "locked"))
        open(os.path.join(root, "open.txt"), "w").close()
        os.chmod(name, 0o755)
        os.chmod(os.path.join(root, "locked"), 0)
        script = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from medseq.inference.discover import walk\n"
            "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
            "for path, refusal in walk(Path(sys.argv[1])): sys.stdout.write(f'{path.name} {refusal}\\n')\n"
        )
        done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, timeout=60)
        os.chmod(os.path.join(root, "locked"), 0o755)
    assert done.stdout.splitlines() == [
        "locked ('failed', 'unreadable', 'the folder cannot be read (Permission denied)')",
        "open.txt None",
    ], done.stderr


def test_walking_streams(folder):
    for number in range(50):
        (folder / f"{number:03d}.txt").write_text("")
    stream = walk(folder)
    assert next(stream)[0].name == "000.txt"
    (folder / "049.txt").unlink()
    assert len(list(stream)) == 49


def test_an_item_opens_again_from_its_paths(make, folder, rng):
    pixels = make.head(rng, 3)
    make.series(folder / "a", pixels)
    make.series(folder / "b", make.head(rng, 2))
    for item in discover(folder):
        relpaths = [row.relpath for row in item.files]
        reader = open_input(folder, item.item_id, item.kind, relpaths, modality=None, units="HU")
        assert reader.header.planes == len(relpaths)
        if len(relpaths) == 3:
            np.testing.assert_array_equal(reader.read(0, 3), pixels - 1024)


def test_files_that_changed_since_discovery_are_noticed(make, folder, rng):
    make.series(folder / "a", make.head(rng, 3))
    [item] = discover(folder)
    relpaths = [row.relpath for row in item.files]
    make.series(folder / "a", make.head(rng, 3))
    with pytest.raises(InputError, match="files changed since they were found"):
        open_input(folder, item.item_id, item.kind, relpaths, modality=None, units="HU")
    (folder / "a" / "slice0001.dcm").write_bytes(b"")
    with pytest.raises((InputError, FormatError)):
        open_input(folder, item.item_id, item.kind, relpaths, modality=None, units="HU")


def test_without_pydicom_dicom_fails_with_the_command_and_nifti_goes_on(make, folder, rng, monkeypatch):
    make.series(folder / "a", make.head(rng, 1))
    make.nifti(folder / "v.nii", make.head(rng, 1))
    (folder / "notes.txt").write_text("hello")

    def refuse(paths):
        raise BackendError("DICOM needs pydicom", found="not installed", remedy="pip install 'medseq[dicom]'")

    monkeypatch.setattr("medseq.io.dicom.split_series", refuse)
    found = by_file(discover(folder))
    assert found["v.nii"].state == "queued"
    assert found["notes.txt"].reason_code == "not-dicom"
    assert (found["a/slice0000.dcm"].state, found["a/slice0000.dcm"].reason_code) == ("failed", "backend")
    assert "pip install 'medseq[dicom]'" in found["a/slice0000.dcm"].reason


def test_labels_and_reasons_hold_no_names(make, folder, rng):
    make.series(folder / "DOE_JOHN", make.head(rng, 2))
    make.nifti(folder / "DOE_JOHN.nii", make.head(rng, 1))
    (folder / "DOE_JOHN.txt").write_text("hello")
    for item in discover(folder):
        assert "DOE" not in item.label + (item.reason or "")
