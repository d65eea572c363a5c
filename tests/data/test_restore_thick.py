"""Through-plane data: only the slices' direction loses detail, the mean stays, splits do not touch."""

import numpy as np
import pytest
import torch

from medseq.data import restore_thick
from medseq.data.restore_thick import ThickSliceMR, interpolated_slices
from medseq.errors import InputError
from medseq.io.volume import Volume


@pytest.fixture
def heads(monkeypatch, seed):
    """Random volumes instead of the two heads."""
    rng = np.random.default_rng(seed)

    def made(*_):
        return Volume.from_array(rng.random((50, 80, 90), dtype=np.float32) + 0.5, modality="MR")

    monkeypatch.setattr(restore_thick, "colin27", made)
    monkeypatch.setattr(restore_thick, "mni152", made)


def test_detail_is_lost_across_slices_and_kept_along_them(seed):
    rng = np.random.default_rng(seed)
    across = np.repeat(rng.normal(size=(48, 1)), 40, axis=1).astype(np.float32)
    along = np.repeat(rng.normal(size=(1, 40)), 48, axis=0).astype(np.float32)
    # Averages of four white values keep a quarter of the variance, interpolation less.
    assert interpolated_slices(across, 4, 4.0, "box").std() < 0.6 * across.std()
    np.testing.assert_allclose(interpolated_slices(along, 4, 4.0, "box"), along, atol=1e-5)


def test_a_ramp_comes_back_between_the_first_and_the_last_thick_slice():
    ramp = np.arange(40, dtype=np.float32)[:, None] * np.ones((1, 5), np.float32)
    result = interpolated_slices(ramp, 4, 4.0, "box")
    # Sums of float32 up to 40; the outermost thick slices reach beyond the ends, where slices repeat.
    np.testing.assert_allclose(result[8:32], ramp[8:32], atol=1e-4)


def test_samples_are_repeatable_and_splits_do_not_touch(heads, seed):
    data = ThickSliceMR(length=6, crop=32, seed=seed)
    one, two = data[3], data[3]
    assert one.image.shape == one.target.shape == (1, 32, 32)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.target, two.target)
    assert (one.image.diff(dim=1).abs().mean()) < 0.6 * one.target.diff(dim=1).abs().mean()
    slabs = {name: set(range(*span)) for name, span in restore_thick._SLABS.items()}
    assert min(abs(a - b) for a in slabs["train"] for b in slabs["val"]) > 6
    assert ThickSliceMR(length=2, crop=32, split="val")[0].image.shape == (1, 32, 32)


def test_parameters_out_of_range_are_refused(heads):
    for keywords in ({"factor": 1}, {"thickness": (1.0, 0.5)}, {"split": "test"}):
        with pytest.raises(InputError, match="cannot be made so"):
            ThickSliceMR(**keywords)
