"""A site's own pairs: found by name, split by patient, cropped alike; what does not fit is named."""

import numpy as np
import pytest
import torch

from medseq.data.restore_pairs import PairedVolumes, find_pairs
from medseq.errors import FormatError, InputError, ManifestError, ShapeError
from medseq.io.nifti_write import NiftiWriter
from medseq.io.volume import Volume, VolumeHeader, slice_affines
from tests.io import synthetic


def save(path, array, spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing, spacing, 1.0, 1.0])
    header = VolumeHeader(array.shape, array.dtype, affine, slice_affines(affine, len(array)), "MR", "1")
    writer = NiftiWriter(path, dtype=np.float32)
    writer.begin(Volume(header, array).header)
    writer.write(0, array)
    writer.commit()


@pytest.fixture
def folder(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for name in ("p1_a", "p1_b", "p2_a", "p3_a", "p4_a"):
        high = rng.random((5, 40, 48), dtype=np.float32) + 1
        save(tmp_path / "HQ" / f"{name}.nii.gz", high)
        save(tmp_path / "LQ" / f"{name}.nii.gz", high + 10)
    return tmp_path


def test_every_pair_is_cropped_alike_and_the_split_is_by_patient(folder, seed):
    parts = {role: PairedVolumes(folder, role, length=12, crop=24, seed=seed) for role in ("train", "val")}
    people = {role: {pair.subject for pair in part.pairs} for role, part in parts.items()}
    assert not people["train"] & people["val"]
    assert people["train"] | people["val"] == {"p1", "p2", "p3", "p4"}
    assert sum(len(part.pairs) for part in parts.values()) == 5
    for part in parts.values():
        for index in range(12):
            sample = part[index]
            assert sample.image.shape == (1, 24, 24)
            # The low quality is the high one plus 10, in parts of its 99th percentile: 11.99 of even values in 11..12.
            torch.testing.assert_close(sample.image - 10 / 11.99, sample.target, rtol=0, atol=1e-3)
            assert sample.scale == 1.0


def test_validation_is_the_same_in_every_epoch_and_training_is_not(folder):
    train, val = (PairedVolumes(folder, role, length=6, crop=24) for role in ("train", "val"))
    before = [part[0].image for part in (train, val)]
    train.epoch = val.epoch = 1
    assert not torch.equal(train[0].image, before[0])
    assert torch.equal(val[0].image, before[1])
    with pytest.raises(IndexError):
        val[6]


def test_low_resolution_is_brought_to_the_fine_grid(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for name in ("p1", "p2"):
        low = rng.random((2, 20, 24), dtype=np.float32)
        save(tmp_path / "LQ" / f"{name}.nii", low, 2.0)
        save(tmp_path / "HQ" / f"{name}.nii", low.repeat(2, 1).repeat(2, 2))
    sample = PairedVolumes(tmp_path, length=2, crop=40)[0]
    assert sample.image.shape == sample.target.shape == (1, 40, 40)
    save(tmp_path / "LQ" / "p1.nii", low[:, :13], 2.0)
    save(tmp_path / "LQ" / "p2.nii", low[:, :13], 2.0)
    with pytest.raises(ShapeError, match=r"found \(2, 13, 24\) and \(2, 40, 48\)"):
        PairedVolumes(tmp_path, length=2, crop=8)[0]


def test_dicom_folders_pair_by_name(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for name in ("p1", "p2"):
        for side in ("LQ", "HQ"):
            synthetic.save(synthetic.stack(rng, slices=3, shape=(32, 32), modality="MR"), tmp_path / side / name)
    pairs = PairedVolumes(tmp_path, length=2, crop=16)
    assert pairs[0].target.shape == (1, 16, 16)


def test_what_is_missing_or_dangerous_is_named(folder):
    with pytest.raises(ManifestError, match="found 1 in 5 pairs"):
        PairedVolumes(folder, subject="p")
    with pytest.raises(ManifestError, match="a name tells no patient"):
        find_pairs(folder, r"q\d")
    with pytest.raises(InputError, match="split cannot be made"):
        PairedVolumes(folder, val_share=1.0)
    with pytest.raises(InputError, match="crop is larger"):
        PairedVolumes(folder, crop=64)[0]
    (folder / "LQ" / "p1_a.nii.gz").unlink()
    with pytest.raises(ManifestError, match="without a partner"):
        find_pairs(folder)
    with pytest.raises(ManifestError, match="no such folder"):
        find_pairs(folder / "LQ")


def test_pickles_are_not_opened(folder):
    # A pickle that would leave a mark if it ran.
    (folder / "LQ" / "p9_a.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(FormatError, match=r"can run code.*found \.bin"):
        find_pairs(folder)


def test_values_that_are_not_finite_are_refused(folder):
    bad = np.full((5, 40, 48), np.nan, dtype=np.float32)
    for name in ("p1_a", "p1_b", "p2_a", "p3_a", "p4_a"):
        save(folder / "LQ" / f"{name}.nii.gz", bad)
    with pytest.raises(FormatError, match="NaN or infinite"):
        PairedVolumes(folder, crop=24)[0]
