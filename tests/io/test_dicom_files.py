"""Every DICOM file that pydicom ships, found by walking its folders: none is lost, every readable one is read right."""

import warnings
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.pixels import apply_rescale
from pydicom.uid import UID

from medseq.errors import MedseqError
from medseq.io.dicom import group_dicom, open_dicom

ROOTS = {"pydicom": Path(pydicom.data.__file__).parent, "pydicom-data": Path(data_store.__file__).parent / "data"}
FILES = [
    (name, path.relative_to(root).as_posix())
    for name, root in ROOTS.items()
    for path in sorted(root.rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc")
]
CODES = {
    *("not-dicom", "dicomdir", "sr", "pr", "ko", "seg", "rt", "scout", "report-screen", "no-geometry", "copy"),
    "non-image",
}
# Files whose fate is known by looking at them; all others only have to end somewhere.
KNOWN = {
    "CT_small.dcm": "stack",
    "MR_small.dcm": "stack",
    "MR_small_RLE.dcm": "stack",
    "MR_small_bigendian.dcm": "stack",
    "MR_small_implicit.dcm": "stack",
    "MR_small_jp2klossless.dcm": "stack",
    "MR_small_jpeg_ls_lossless.dcm": "stack",
    "MR_truncated.dcm": "broken",
    "693_UNCI.dcm": "stack",
    "693_J2KR.dcm": "stack",
    "bad_sequence.dcm": "stack",
    "explicit_VR-UN.dcm": "stack",
    "eCT_Supplemental.dcm": "stack",
    "emri_small.dcm": "broken",
    "liver.dcm": "seg",
    "rtplan.dcm": "rt",
    "rtstruct.dcm": "rt",
    "test-SR.dcm": "sr",
    "waveform_ecg.dcm": "non-image",
    "DICOMDIR": "dicomdir",
    "README.txt": "not-dicom",
    "image_dfl.dcm": "report-screen",
    "RG3_UNCR.dcm": "no-geometry",
}


def test_the_files_are_there():
    assert len(FILES) > 250
    assert set(KNOWN) <= {Path(relative).name for _, relative in FILES}


@pytest.mark.parametrize("root", ROOTS)
def test_each_file_alone_ends_as_stack_skipped_or_broken_with_a_reason(root, capfd):
    wrong = []
    for path in (ROOTS[name] / relative for name, relative in FILES if name == root):
        stacks, skipped, broken = group_dicom([path])
        ends = ["stack"] * len(stacks) + [s.reason_code for s in skipped] + ["broken"] * len(broken)
        # One multi-frame file may hold several stacks; nothing else may end twice.
        if not ends or (len(ends) > 1 and set(ends) != {"stack"}):
            wrong.append((path.name, ends))
        if KNOWN.get(path.name, ends[0]) != ends[0]:
            wrong.append((path.name, ends, "expected", KNOWN[path.name]))
        assert all(s.reason_code in CODES and s.reason for s in skipped)
        assert all(isinstance(b.error, MedseqError) and str(b.error) for b in broken)
        assert not any(path.name in str(b.error) for b in broken)
    assert wrong == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("root", ROOTS)
def test_each_folder_at_once_loses_no_file(root):
    paths = [ROOTS[name] / relative for name, relative in FILES if name == root]
    stacks, skipped, broken = group_dicom(paths)
    ends = [f for s in stacks for f in s.files] + [s.path for s in skipped] + [p for b in broken for p in b.paths]
    assert sorted(ends) == sorted(paths)


def readable():
    """Files that are a stack of their own."""
    found = []
    for name, relative in FILES:
        stacks, _, _ = group_dicom([ROOTS[name] / relative])
        found += [pytest.param(stack, id=relative) for stack in stacks]
    return found


@pytest.mark.parametrize("stack", readable())
def test_pixels_equal_pydicoms_own(stack):
    reader = open_dicom(stack)
    ours = reader.read(0, reader.header.planes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(stack.files[0], force=True)
        stored = np.atleast_3d(ds.pixel_array)
        if "PerFrameFunctionalGroupsSequence" in ds:
            # Frames are stored in any order; ours are sorted.
            indices = [frame.index for frame in reader.header.source.header.frames]
            stored = ds.pixel_array[indices]
            shared = ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
            theirs = stored * float(shared.RescaleSlope) + float(shared.RescaleIntercept)
        else:
            theirs = apply_rescale(ds.pixel_array, ds)[None]
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs.astype(np.float32))


def test_every_kind_of_transfer_syntax_with_geometry_was_read():
    names = {UID(p.values[0].header.source.header.frames[0].pixels.transfer_syntax).name for p in readable()}
    wanted = {
        "Implicit VR Little Endian",
        "Explicit VR Little Endian",
        "Explicit VR Big Endian",
        "RLE Lossless",
        "JPEG-LS Lossless Image Compression",
        "JPEG 2000 Image Compression (Lossless Only)",
        "JPEG 2000 Image Compression",
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    }
    assert wanted <= names


WITHOUT_GEOMETRY = {
    *("JPEG-LL.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm", "image_dfl.dcm", "JPEGLSNearLossless_08.dcm"),
    *("RG3_J2KR.dcm", "JPEG2000_UNC.dcm"),
}


def with_geometry(name, tmp_path):
    """A stack made of a grey file that is skipped for want of geometry, and its data set."""
    path = next(ROOTS[root] / relative for root, relative in FILES if Path(relative).name == name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.ImageType = [1, 1], ["ORIGINAL", "PRIMARY"]
        ds.save_as(tmp_path / "a.dcm")
    stacks, skipped, broken = group_dicom([tmp_path / "a.dcm"])
    assert (skipped, broken) == ([], [])
    return stacks[0], ds


@pytest.mark.parametrize("name", sorted(WITHOUT_GEOMETRY))
def test_the_codecs_of_skipped_files_work_all_the_same(name, tmp_path):
    stack, ds = with_geometry(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = apply_rescale(ds.pixel_array, ds)
    assert np.array_equal(open_dicom(stack).read(0, 1)[0], expected.astype(np.float32))


def test_twelve_bit_jpeg_decodes_to_the_image_that_the_uncompressed_file_holds(tmp_path):
    """pydicom cannot decode it without a GPL library; the same image exists uncompressed."""
    stack, _ = with_geometry("JPGExtended.dcm", tmp_path)
    plane = open_dicom(stack).read(0, 1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = pydicom.dcmread(pydicom.data.get_testdata_file("JPEG-LL.dcm")).pixel_array
    assert plane.shape == original.shape
    # The two values that pydicom's own tests state for this file.
    assert (plane[420, 140], plane[230, 120]) == (244, 95)
    # Lossy compression of small counts: the same picture, not the same numbers.
    assert np.corrcoef(plane.ravel(), original.ravel())[0, 1] > 0.97
