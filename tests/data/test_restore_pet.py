"""PET training data: pairs of one slice, kept on disk, repeatable, and nothing of validation in training."""

import numpy as np
import pytest
import torch

from medseq.data import pet_bank
from medseq.data.restore_pet import LowCountPET, PETFromMR, crop_alike, robust_scale
from medseq.errors import InputError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(params=[LowCountPET, PETFromMR])
def dataset(request, cache, monkeypatch, seed):
    small = pet_bank.pet_bank
    monkeypatch.setattr(
        "medseq.data.restore_pet.pet_bank", lambda folder, split, count, **kw: small(folder, split, 3, side=64, **kw)
    )
    return request.param(length=8, crop=40, seed=seed, cache=cache, slices=3)


def test_samples_are_repeatable_and_paired(dataset):
    first, again = [dataset[i] for i in range(4)], [dataset[i] for i in range(4)]
    for a, b in zip(first, again, strict=True):
        assert a.image.shape == a.target.shape == (1, 40, 40)
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target, b.target)
        assert a.scale > 0


def test_the_bank_is_made_once_and_splits_differ(cache, monkeypatch):
    train = pet_bank.pet_bank(cache, "train", 3, side=64)
    monkeypatch.setattr(pet_bank, "_entry", None)
    again = pet_bank.pet_bank(cache, "train", 3, side=64)
    np.testing.assert_array_equal(train.slices, again.slices)
    with pytest.raises(InputError, match="unknown split"):
        pet_bank.pet_bank(cache, "test", 3)
    monkeypatch.undo()
    other = pet_bank.pet_bank(cache, "val", 3, side=64)
    assert not np.array_equal(other.slices, train.slices)


def test_both_scans_of_a_slice_show_one_object_with_noise_of_their_own(cache):
    bank = pet_bank.pet_bank(cache, "train", 3, side=64)
    for index in range(len(bank)):
        one, two = bank.full(index), bank.full(index, again=True)
        assert not torch.equal(one, two)
        # Millions of counts in 64 x 64 pixels: noise of a few per cent beside a contrast of the whole range.
        assert np.corrcoef(one.flatten(), two.flatten())[0, 1] > 0.9
        assert (bank.low(index, 0) - one).std() > 0


def test_crops_are_alike_and_too_large_ones_are_refused(seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(50, 60, generator=generator)
    one, two = crop_alike([image, 2 * image], 32, image > 0, generator)
    assert torch.equal(2 * one, two)
    with pytest.raises(InputError, match="found 51, wanted at most 50"):
        crop_alike([image, image], 51, image > 0, generator)


def test_the_scale_is_the_percentile_of_what_is_not_zero():
    image = torch.zeros(10, 10)
    assert robust_scale(image) == 1.0
    image[:5] = -2.0
    assert robust_scale(image) == 2.0
