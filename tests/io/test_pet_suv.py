"""SUV from the DICOM header: formula, decay, midnight, slopes of slices, and every missing tag by name."""

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence

from medseq.errors import InputError
from medseq.io.dicom import DicomSeriesWriter, group_dicom, open_dicom
from medseq.io.pet_suv import ActivityWriter, SuvReader, suv_per_activity
from medseq.io.volume import Volume, VolumeReader, VolumeWriter
from tests.io.synthetic import save, stack

DOSE, WEIGHT, HALF_LIFE = 3.7e8, 74.0, 6586.2
MADE = {
    "bundle_name": "pet",
    "bundle_hash": "ab" * 32,
    "params_hash": "cd" * 32,
    "version": "0.1.0",
    "role": "result",
    "created_utc": "2026-11-22T10:11:12Z",
}


def pet(seed, **changes):
    """A PET series scanned an hour after the injection; `changes` set tags, None deletes one."""
    images = stack(np.random.default_rng(seed), slices=4, modality="PT", dtype="u2")
    for k, ds in enumerate(images):
        info = pydicom.Dataset()
        info.RadiopharmaceuticalStartTime, info.RadionuclideTotalDose = "091112.0", str(DOSE)
        info.RadionuclideHalfLife = str(HALF_LIFE)
        ds.RadiopharmaceuticalInformationSequence = Sequence([info])
        ds.PatientWeight, ds.DecayCorrection, ds.CorrectedImage = str(WEIGHT), "START", ["DECY", "ATTN", "SCAT"]
        ds.RescaleSlope, ds.AcquisitionTime = str(0.5 + 0.25 * k), f"1011{12 + k}"
        for tag, value in changes.items():
            home = info if tag.startswith("Radio") and tag != "RadiopharmaceuticalInformationSequence" else ds
            delattr(home, tag) if value is None else setattr(home, tag, value)
    return images


def opened(images, folder):
    stacks, skipped, broken = group_dicom(save(images, folder))
    assert (len(stacks), skipped, broken) == (1, [], [])
    return open_dicom(stacks[0])


def expected(elapsed_s):
    return 1000 * WEIGHT / (DOSE * 2 ** (-elapsed_s / HALF_LIFE))


def test_suv_is_activity_by_weight_over_the_decayed_dose(seed, tmp_path):
    reader = opened(pet(seed), tmp_path)
    factor = suv_per_activity(reader.header)
    assert factor == pytest.approx(expected(3600))
    suv = SuvReader(reader, factor)
    assert isinstance(suv, VolumeReader)
    assert suv.header.units == "SUVbw"
    stored = [pydicom.dcmread(frame.path).pixel_array for frame in reader.header.source.header.frames]
    # Every slice has its own slope.
    wanted = np.stack([plane * (0.5 + 0.25 * k) for k, plane in enumerate(stored)]) * factor
    np.testing.assert_allclose(suv.read(0, 4), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "elapsed"),
    [
        ({"DecayCorrection": "ADMIN"}, 0),
        ({"RadiopharmaceuticalStartDateTime": "20200102081112.00"}, 7200),
        ({"RadiopharmaceuticalStartDateTime": "20200102081112.00+0100"}, 7200),
        # Made afresh the next day: the first acquisition is the start.
        ({"SeriesDate": "20200103"}, 3600),
        # Injected at 23:11:12, scanned at 00:11:12.
        ({"RadiopharmaceuticalStartTime": "231112", "SeriesTime": "001112"}, 3600),
    ],
    ids=["admin", "datetime", "offset", "afresh", "midnight"],
)
def test_time_is_counted_from_the_injection_to_what_the_images_are_corrected_to(seed, tmp_path, changes, elapsed):
    factor = suv_per_activity(opened(pet(seed, **changes), tmp_path).header)
    assert factor == pytest.approx(expected(elapsed))


@pytest.mark.parametrize(
    "tag",
    ["PatientWeight", "DecayCorrection", "CorrectedImage", "RadiopharmaceuticalInformationSequence"]
    + ["RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime", "SeriesTime"],
)
def test_a_missing_tag_is_refused_by_name(seed, tmp_path, tag):
    reader = opened(pet(seed, **{tag: None}), tmp_path)
    with pytest.raises(InputError, match=rf"a tag is missing \(found {tag}\)"):
        suv_per_activity(reader.header)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DecayCorrection": "NONE"}, r"by its DecayCorrection \(found NONE, wanted START or ADMIN\)"),
        ({"CorrectedImage": ["DECY"]}, r"by its CorrectedImage .*wanted ATTN and DECY"),
        ({"RadionuclideTotalDose": "370"}, r"RadionuclideTotalDose .*looks like MBq"),
        ({"PatientWeight": "0"}, r"PatientWeight \(found 0\.0, wanted above 0\)"),
        ({"RadiopharmaceuticalStartDateTime": "20191224081112"}, r"wanted 0 to 20 half-lives"),
        ({"RadiopharmaceuticalStartDateTime": "20200102121112"}, r"wanted 0 to 20 half-lives"),
    ],
)
def test_what_cannot_be_used_is_refused(seed, tmp_path, changes, message):
    reader = opened(pet(seed, **changes), tmp_path)
    with pytest.raises(InputError, match=message):
        suv_per_activity(reader.header)


def test_other_volumes_are_refused(seed):
    volume = Volume.from_array(np.ones((2, 3, 4), np.float32), modality="PT", units="Bq/ml")
    with pytest.raises(InputError, match=r"only PET from DICOM .*from memory"):
        suv_per_activity(volume.header)


def test_what_was_read_as_suv_is_written_as_activity(seed, tmp_path):
    reader = opened(pet(seed), tmp_path / "in")
    suv = SuvReader(reader, suv_per_activity(reader.header))
    writer = ActivityWriter(DicomSeriesWriter(tmp_path / "out", **MADE), suv_per_activity(reader.header))
    assert isinstance(writer, VolumeWriter)
    writer.begin(suv.header)
    writer.write(0, suv.read(0, 4))
    again = opened([pydicom.dcmread(path) for path in writer.commit()], tmp_path / "again")
    assert again.header.units == "Bq/ml"
    assert writer.clipped == 0
    # On the source's own integers and slopes: not a value differs.
    np.testing.assert_array_equal(again.read(0, 4), reader.read(0, 4))
