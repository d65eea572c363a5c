import re
import subprocess
import sys
from pathlib import Path

import pytest

from medseq.io.privacy import label, path_label, show_identifiers


def test_label_hides_the_identifier_and_is_stable():
    shown = label("DOE^JANE")
    assert re.fullmatch(r"id-[0-9a-f]{10}", shown)
    assert label("DOE^JANE") == shown
    assert label("DOE^JOHN") != shown


def test_show_identifiers_turns_hashing_off_and_on():
    show_identifiers(True)
    assert label("DOE^JANE") == "DOE^JANE"
    assert path_label("/data/doe/1.dcm", "/data") == "doe/1.dcm"
    show_identifiers(False)
    assert "DOE" not in label("DOE^JANE")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.dcm", ".dcm"), ("a.NII.GZ", ".nii.gz"), ("scan.DOE_JANE", ""), ("noext", ""), ("a.b.nii", ".nii")],
)
def test_path_label_keeps_only_suffixes_that_cannot_be_a_name(name, suffix):
    shown = path_label(f"/data/DOE/{name}", "/data")
    assert re.fullmatch(rf"file-[0-9a-f]{{10}}{re.escape(suffix)}", shown)


def test_path_label_depends_on_the_place_below_the_root_only():
    assert path_label("/data/doe/1.dcm", "/data") == path_label("/mnt/x/doe/1.dcm", "/mnt/x")
    assert path_label("/data/doe/1.dcm", "/data") != path_label("/data/roe/1.dcm", "/data")
    assert path_label("/elsewhere/1.dcm", "/data").startswith("file-")


def test_path_label_takes_names_that_are_not_unicode():
    assert path_label(Path("/data/\udcff\udcfe.dcm")).endswith(".dcm")


def _label_in_new_process(**environment: str) -> str:
    code = "from medseq.io.privacy import label; print(label('DOE^JANE'))"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root, **environment},
    )
    return done.stdout.strip()


def test_salt_is_random_a_process_unless_given():
    assert _label_in_new_process() != _label_in_new_process()
    salted = _label_in_new_process(MEDSEQ_SALT="pepper")
    assert salted == _label_in_new_process(MEDSEQ_SALT="pepper")
    assert salted != _label_in_new_process(MEDSEQ_SALT="salt")
