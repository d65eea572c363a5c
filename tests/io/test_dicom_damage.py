"""Bytes changed at random: a damaged file may be refused or read, never crash, never lie about its patient."""

import resource
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.encaps import get_frame

from medseq.errors import FormatError, MedseqError
from medseq.io import dicom_codecs
from medseq.io.dicom import DicomSeriesWriter, display_window, group_dicom, open_dicom
from tests.io.synthetic import PLANTED, enhanced, save, stack

NAMES = (
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"),
    *("MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"),
)
MADE = {
    "bundle_name": "x",
    "bundle_hash": "a",
    "params_hash": "b",
    "version": "1",
    "created_utc": "2026-01-01T00:00:00Z",
}


def mutant(data: bytes, rng) -> bytes:
    data = bytearray(data)
    if rng.random() < 0.25:
        return bytes(data[: rng.integers(len(data))])
    reach = len(data) if rng.random() < 0.3 else min(len(data), 3000)
    for _ in range(rng.choice([1, 2, 8, 40])):
        data[rng.integers(reach)] = rng.integers(256)
    return bytes(data)


def fate(path: Path, folder: Path, messages: list[str]) -> str:
    stacks, skipped, broken = group_dicom([path])
    assert len(stacks) + len(skipped) + len(broken) >= 1
    assert all(isinstance(item.error, MedseqError) for item in broken)
    messages += [str(item.error) for item in broken]
    for found in stacks:
        reader = open_dicom(found)
        writer = DicomSeriesWriter(folder, **MADE, role="result")
        try:
            display_window(reader.header)
            planes = reader.read(0, reader.header.planes)
            reader.valid(0, reader.header.planes)
            writer.begin(reader.header)
            writer.write(0, planes)
            writer.commit()
        except MedseqError as error:
            messages.append(str(error))
            return "refused"
        finally:
            writer.abort()
    return "stack" if stacks else "skipped" if skipped else "broken"


@pytest.mark.parametrize("kind", ["real", "single-frame", "enhanced"])
def test_mutants_raise_nothing_but_medseqs_errors(tmp_path, rng, kind, capfd):
    if kind == "real":
        sources = [Path(pydicom.data.get_testdata_file(name)).read_bytes() for name in NAMES]
    else:
        images = stack(rng, slices=3, modality="MR")
        sources = [path.read_bytes() for path in save([enhanced(images)] if kind == "enhanced" else images, tmp_path)]
    path, fates, messages = tmp_path / "mutant.dcm", [], []
    for _ in range(60):
        path.write_bytes(mutant(sources[rng.integers(len(sources))], rng))
        fates.append(fate(path, tmp_path / "out", messages))
    assert {"stack", "broken"} <= set(fates)
    spoken = "".join([*messages, *capfd.readouterr()]).lower()
    assert not any(word in spoken for word in PLANTED)


def placed(name: str, folder: Path):
    """A compressed file of pydicom's with a geometry, and where its code stream starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(pydicom.data.get_testdata_file(name))
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.ImageType = [1, 1], ["ORIGINAL", "PRIMARY"]
        path = folder / name
        ds.save_as(path)
        stream = get_frame(ds.PixelData, 0, number_of_frames=1)
    data = path.read_bytes()
    return path, data, data.index(stream[:64])


@pytest.mark.parametrize("name", ["bad_sequence.dcm", "JPGExtended.dcm"])
def test_damaged_lossless_jpeg_is_an_error_and_not_the_end_of_the_process(tmp_path, rng, name):
    # On some of these GDCM calls abort(): it runs in a process of its own, which is started again.
    path, data, start = placed(name, tmp_path)
    reader = open_dicom(group_dicom([path])[0][0])
    whole = reader.read(0, 1)
    read = refused = 0
    for _ in range(40):
        mutant = bytearray(data)
        for _ in range(rng.choice([1, 8, 40])):
            mutant[rng.integers(start, start + 2000)] = rng.integers(256)
        path.write_bytes(mutant)
        for found in group_dicom([path])[0]:
            try:
                open_dicom(found).read(0, 1)
                read += 1
            except FormatError:
                refused += 1
    assert refused > 0
    path.write_bytes(data)
    assert np.array_equal(open_dicom(group_dicom([path])[0][0]).read(0, 1), whole)


def test_a_decoder_that_was_killed_is_started_again(tmp_path):
    path, _, _ = placed("bad_sequence.dcm", tmp_path)
    stack = group_dicom([path])[0][0]
    whole = open_dicom(stack).read(0, 1)
    dicom_codecs._worker._process.kill()
    dicom_codecs._worker._process.wait()
    with pytest.raises(FormatError, match="cannot be decoded"):
        open_dicom(stack).read(0, 1)
    assert np.array_equal(open_dicom(stack).read(0, 1), whole)


@pytest.mark.parametrize(
    ("name", "place", "size"),
    [
        ("JPEG2000.dcm", 8, struct.pack(">II", 60000, 60000)),
        ("JPEGLSNearLossless_16.dcm", None, struct.pack(">HH", 60000, 60000)),
        ("bad_sequence.dcm", None, struct.pack(">HH", 60000, 60000)),
    ],
)
def test_a_code_stream_that_claims_another_size_is_refused_before_memory_is_taken(tmp_path, name, place, size):
    path, data, start = placed(name, tmp_path)
    data = bytearray(data)
    if place is None:
        marks = (data.find(mark, start) for mark in (b"\xff\xc3\0\x0b", b"\xff\xf7\0\x0b"))
        place = next(mark for mark in marks if mark >= 0) - start + 5
    data[start + place : start + place + len(size)] = size
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="cannot be decoded .*ValueError"):
        open_dicom(group_dicom([path])[0][0]).read(0, 1)
    # 60000 x 60000 pixels of two bytes are 7 GB; KiB here.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
