"""An independent validator on source and result: a derived image may not have an error that its source has not.

`dciodvfy` (Debian package dicom3tools) is run on every file; its exit code says little, its 'Error' lines are compared.
"""

import warnings
from pathlib import Path

import data_store
import pydicom.data
import pytest

from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from tests.io.dciodvfy import errors
from tests.io.synthetic import OBLIQUE, enhanced, save, stack

MADE = {
    "bundle_name": "ct-denoise",
    "bundle_hash": "ab" * 32,
    "params_hash": "cd" * 32,
    "version": "0.1.0",
    "created_utc": "2026-11-22T10:11:12Z",
}
ROOTS = (Path(pydicom.data.__file__).parent / "test_files", Path(data_store.__file__).parent / "data")


def real():
    """Every real CT and MR file of pydicom that can be read, found by walking its folders."""
    found = {}
    for root in ROOTS:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                stacks, _, _ = group_dicom([path])
                if stacks and stacks[0].header.modality in ("CT", "MR"):
                    found[path.name] = stacks[0]
    return found


REAL = real()


def derive(stack, folder, role="result"):
    reader = open_dicom(stack)
    writer = DicomSeriesWriter(folder, **MADE, role=role)
    writer.begin(reader.header)
    for i in range(reader.header.planes):
        plane = reader.read(i, i + 1)
        writer.write(i, plane if role == "result" else plane - plane.mean())
    return writer.commit()


def test_there_are_enough_real_files():
    assert len(REAL) >= 30
    assert {"CT_small.dcm", "MR_small.dcm", "693_UNCI.dcm", "MR2_UNCR.dcm", "eCT_Supplemental.dcm"} <= set(REAL)


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_result_has_no_error_that_its_source_has_not(name, tmp_path):
    stack = REAL[name]
    before = set().union(*(errors(path) for path in stack.files))
    after = set().union(*(errors(path) for path in derive(stack, tmp_path / "out")))
    assert after <= before


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("role", ["result", "difference"])
@pytest.mark.parametrize("multiframe", [False, True], ids=["single-frame", "enhanced"])
def test_results_of_valid_sources_have_no_error_at_all(tmp_path, rng, modality, role, multiframe):
    images = stack(rng, slices=2, modality=modality, orientation=OBLIQUE)
    paths = save([enhanced(images)] if multiframe else images, tmp_path)
    if not multiframe:
        assert [errors(path) for path in paths] == [set(), set()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = derive(group_dicom(paths)[0][0], tmp_path / "out", role)
    assert [errors(path) for path in written] == [set(), set()]
