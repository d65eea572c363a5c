"""Writing in pixels is found on any ground, in any codec; anatomy, noise and tissue are not taken for it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image, ImageDraw, ImageFont

from medseq.io.deidentify import Options, Pseudonyms, Refused
from medseq.io.deidentify_dicom import deidentify_dicom
from medseq.io.dicom_text import looked_at, text_place
from medseq.io.nifti import open_nifti
from tests.io.synthetic import AXIAL, image, save

ROWS, COLS = 480, 640


def ground(rng, kind):
    if kind == "speckle":
        return np.clip(rng.rayleigh(18, (ROWS, COLS)), 0, 255).astype(np.uint8)
    if kind == "gradient":
        return np.tile(np.linspace(0, 120, COLS), (ROWS, 1)).astype(np.uint8)
    return np.full((ROWS, COLS), {"black": 0, "white": 255, "grey": 90}[kind], np.uint8)


def written(plane, text, at, size, fill):
    picture = Image.fromarray(plane)
    ImageDraw.Draw(picture).text(at, text, fill=fill, font=ImageFont.load_default(size))
    return np.asarray(picture)


@pytest.mark.parametrize("kind", ["black", "white", "grey", "speckle", "gradient"])
@pytest.mark.parametrize("size", [9, 14, 32])
def test_a_name_is_found_in_every_corner(rng, kind, size):
    plane = ground(rng, kind)
    assert text_place(plane) is None
    text = f"DOE^JANE {rng.integers(1000, 9999)}"
    for place, row in (("top", 6), ("bottom", ROWS - size - 12)):
        for col in (6, COLS - size * 9):
            shown = written(plane, text, (col, row), size, 0 if kind == "white" else 255)
            assert text_place(shown) == place
            # Stored with more bits, and an offset, it is the same writing.
            assert text_place(shown.astype(np.int16) * 16 - 1024) == place


def test_writing_of_real_scanners_is_found():
    for name in ("US1_J2KI.dcm", "OBXXXX1A_rle.dcm"):
        path = Path(pydicom.data.get_testdata_file(name))
        assert "top" in [text_place(frame) for frame in looked_at(path, pydicom.dcmread(path))], name


def test_images_without_writing_are_left_alone(rng):
    for name in ("CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm", "JPEG2000.dcm", "JPGExtended.dcm"):
        path = Path(pydicom.data.get_testdata_file(name))
        assert [text_place(frame) for frame in looked_at(path, pydicom.dcmread(path))] == [None], name
    data = Path(nib.__file__).parent / "tests" / "data"
    for name in ("anatomical.nii", "example4d.nii.gz"):
        reader = open_nifti(data / name)
        planes = reader.read(0, reader.header.shape[0])
        assert {text_place(plane) for plane in planes} == {None}, name
    assert [text_place(rng.integers(0, 255, (200, 250))) for _ in range(2)] == [None] * 2
    assert [text_place(np.zeros((4, 4))), text_place(np.eye(30)), text_place(np.ones((300, 300)))] == [None] * 3


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "BurnedInAnnotation": "NO"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "Modality": "US", "BurnedInAnnotation": "NO"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT", "BurnedInAnnotation": "NO"}, True),
        ({}, False),
    ],
)
def test_a_header_that_says_no_is_not_believed(tmp_path, rng, change, refused):
    plane = written(ground(rng, "speckle"), "PLANTED JANE 4711", (8, 8), 14, 255).astype(np.int16)
    for shown in (True, False):
        ds = image("CT", plane if shown else ground(rng, "speckle").astype(np.int16), (0, 0, 0), AXIAL)
        for keyword, value in change.items():
            setattr(ds, keyword, value)
        path = save([ds], tmp_path / f"{shown}")[0]
        names = Pseudonyms("a-secret-salt-of-this-test")
        if shown and refused:
            with pytest.raises(Refused, match="what looks like writing at the top of the image.*--burned-in keep"):
                deidentify_dicom(path, tmp_path / "out", names, Options())
            assert not (tmp_path / "out").exists()
            deidentify_dicom(path, tmp_path / "kept", names, Options(burned_in=True))
        else:
            deidentify_dicom(path, tmp_path / f"out-{shown}", names, Options())


def test_colours_and_compressed_frames_are_looked_at(tmp_path, rng):
    ds = image("CT", rng.integers(0, 9, (8, 8), dtype="i2"), (0, 0, 0), AXIAL)
    rgb = np.stack([ground(rng, "black")] * 3, -1)
    rgb[..., 2] = written(ground(rng, "black"), "PLANTED JANE", (8, ROWS - 40), 16, 255)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, (ds.Rows, ds.Columns) = 7, 0, rgb.shape[:2]
    ds.add_new(0x7FE00010, "OB", rgb.tobytes())
    path = save([ds], tmp_path)[0]
    assert [text_place(frame) for frame in looked_at(path, pydicom.dcmread(path))] == ["bottom"]
