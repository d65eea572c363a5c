"""Training data: reproducible samples, physical values, splits that do not touch."""

import numpy as np
import pytest
import torch

from medseq.data import content
from medseq.data.noise_bank import KERNELS, NoiseBank
from medseq.data.restore import LowDoseCT, NoisyMR, PhantomPairs, collate
from medseq.errors import InputError


@pytest.fixture
def bank(monkeypatch, seed):
    """White maps instead of minutes of back-projection; the real bank is made by the same functions as low_dose_ct."""
    maps = np.random.default_rng(seed).standard_normal((2 * len(KERNELS), 96, 96)).astype(np.float16)
    monkeypatch.setattr("medseq.data.restore.ct_noise_bank", lambda *_: NoiseBank(maps))


@pytest.fixture(params=["ct", "mr", "phantom"])
def dataset(request, bank, seed):
    made = {"ct": LowDoseCT, "mr": NoisyMR, "phantom": PhantomPairs}[request.param]
    return made(length=12, crop=40, seed=seed)


def test_samples_depend_on_seed_epoch_and_index_alone(dataset):
    first = [dataset[i] for i in range(6)]
    torch.manual_seed(0)
    again = [dataset[i] for i in reversed(range(6))][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target, b.target)
    dataset.epoch = 1
    assert not any(torch.equal(dataset[i].target, first[i].target) for i in range(6))


def test_drawing_leaves_the_global_generator_alone(dataset):
    before = torch.get_rng_state()
    _ = dataset[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_have_the_stated_shapes_and_finite_values(dataset):
    batch = collate([dataset[i] for i in range(12)])
    assert batch.image.shape == batch.target.shape == (12, 1, 40, 40)
    assert batch.scale.shape == (12,)
    assert torch.isfinite(batch.image).all()
    assert torch.isfinite(batch.target).all()
    assert not torch.equal(batch.image, batch.target)


def test_length_is_kept_and_beyond_it_is_an_index_error(dataset):
    assert len(dataset) == 12
    with pytest.raises(IndexError):
        _ = dataset[12]


def test_head_blocks_do_not_touch():
    blocks = {name: {i for lo, hi in spans for i in range(lo, hi)} for name, spans in content.HEAD_BLOCKS.items()}
    names = sorted(blocks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            gap = min(abs(a - b) for a in blocks[first] for b in blocks[second])
            assert gap > 3, (first, second)
    assert len(content.head_ct_slices("test").slices) == 18
    with pytest.raises(InputError, match="unknown split"):
        content.head_ct_slices("tset")


def test_noise_bank_has_unit_variance_and_the_spectrum_of_its_kernel(tmp_path, monkeypatch):
    from medseq.data import noise_bank

    axis = np.linspace(-1, 1, 64)
    disc = np.where(np.hypot(*np.meshgrid(axis, axis)) < 0.8, 0.0, -1000.0).astype(np.float32)
    monkeypatch.setattr(noise_bank, "head_ct_slices", lambda _: content.Content((torch.from_numpy(disc),)))
    monkeypatch.setattr(noise_bank, "_ellipse", lambda *_: disc)
    made = noise_bank.ct_noise_bank(tmp_path, "train")
    assert made.maps.shape == (5 * len(KERNELS), 64, 64)
    inside = disc > -500
    for noise in made.maps.astype(np.float32):
        assert noise[inside].std() == pytest.approx(1.0, rel=0.01)

    def neighbour(noise):
        return np.corrcoef(noise[24:40, 24:40].ravel(), noise[24:40, 25:41].ravel())[0, 1]

    ramp, hann = (np.mean([neighbour(made.maps[i * 4 + k].astype(float)) for i in range(5)]) for k in (0, 3))
    assert hann > ramp + 0.2  # the smooth kernel correlates neighbours
    stamp = next(tmp_path.iterdir()).stat().st_mtime_ns
    noise_bank.ct_noise_bank(tmp_path, "train")
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [stamp]  # read, not made again


def test_dark_air_is_zero_in_image_and_target_and_tissue_keeps_its_noise(seed):
    for index in range(4):
        plain, dark = (NoisyMR(4, 48, seed, clean_share=0.0, dark_air=share)[index] for share in (0.0, 1.0))
        air = dark.image == 0
        assert torch.equal(air, dark.target == 0)
        assert (plain.image[air] > 0).float().mean() > 0.9 or not air.any()
        # What is bright is tissue whatever the draw; the two samples have noise of their own.
        assert (dark.image[dark.target > 0.5] > 0).all()
