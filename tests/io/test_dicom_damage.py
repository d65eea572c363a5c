"""Bytes changed at random: a damaged file may be refused or read, never crash, never lie about its patient."""

from pathlib import Path

import pydicom.data
import pytest

from medseq.errors import MedseqError
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
