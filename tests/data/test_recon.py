"""Reconstruction data sets: scale from measured data alone, repeatable samples, one size a batch."""

import pytest
import torch

from medseq.data.anatomy import brain_image, signal
from medseq.data.recon import PhantomScans, SimulatedBrain, collate
from medseq.data.recon_scale import kspace_scale, sense_scale
from medseq.errors import InputError
from medseq.ops.coils import sens_expand


def test_samples_are_functions_of_seed_epoch_and_index():
    first, second = (SimulatedBrain(4, seed=3, shapes=[(40, 48)], coils=[3]) for _ in range(2))
    second[3]
    a, b = first[1], second[1]
    assert torch.equal(a.masked_kspace, b.masked_kspace)
    assert torch.equal(a.target, b.target)
    second.epoch = 1
    assert not torch.equal(a.target, second[1].target)


def test_simulated_brains_are_scaled_masked_and_finite(seed):
    data = SimulatedBrain(6, seed=seed, shapes=[(48, 40), (33, 45)], coils=[1, 4, 9], noise=(0.01, 0.02))
    for sample in (data[i] for i in range(len(data))):
        assert sample.mask.dtype == torch.bool
        assert bool((sample.masked_kspace[~sample.mask.expand_as(sample.masked_kspace)] == 0).all())
        assert torch.isfinite(torch.view_as_real(sample.masked_kspace)).all()
        # The scale comes from an aliased image: near the true percentile, not equal to it.
        assert 0.5 < float(torch.quantile(sample.target.abs().flatten(), 0.95)) < 2.0
        assert sample.target.shape == sample.recon_shape


def test_scale_ignores_what_was_not_measured_and_follows_gain(seed):
    torch.manual_seed(seed)
    maps = torch.randn(1, 3, 16, 18, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    kspace = sens_expand(torch.randn(1, 16, 18, dtype=torch.complex64), maps)
    mask = torch.rand(1, 1, 1, 18) < 0.6
    mask[..., 9] = True
    masked = kspace * mask
    scale, image = sense_scale(masked, mask, maps)
    assert float(torch.quantile(image.abs().flatten(), 0.95)) == pytest.approx(1, rel=1e-4)
    assert float(sense_scale(1e4 * masked, mask, maps)[0]) == pytest.approx(1e4 * float(scale), rel=1e-4)
    with pytest.raises(InputError, match="no signal"):
        sense_scale(torch.zeros_like(masked), mask, maps)


def test_kspace_scale_is_a_quantile_of_living_coils(seed):
    torch.manual_seed(seed)
    kspace = torch.randn(1, 3, 10, 20, dtype=torch.complex64)
    kspace[:, 1] = 0
    modulus = kspace[:, [0, 2]].abs().flatten().sort().values
    # direct takes the k-th largest with k = int(0.01 n) + 1; n = 400.
    assert float(kspace_scale(kspace)) == float(modulus[-5])
    with pytest.raises(InputError, match="all zero"):
        kspace_scale(torch.zeros_like(kspace))


def test_batches_have_one_size():
    lines, other = PhantomScans(2)[0], PhantomScans(2, shape=(24, 32))[0]
    with pytest.raises(InputError, match="different sizes"):
        collate([lines, other])
    points = lines._replace(mask=lines.mask.expand(1, 32, 32))
    assert collate([lines, points]).mask.shape == (2, 1, 32, 32)
    assert collate([lines._replace(sens_maps=None)]).sens_maps is None


def test_signal_equations():
    # Long repetition and short echo leave the proton density; a long inversion time changes nothing then.
    assert signal(800, 80, 0.7, "se", 1e6, 0.0, 0) == pytest.approx(0.7)
    assert signal(800, 80, 0.7, "ir", 1e6, 0.0, 1e6) == pytest.approx(0.7)
    assert signal(800, 80, 1.0, "se", 1e6, 80.0, 0) == pytest.approx(0.36788, rel=1e-4)
    # The inversion time that nulls a tissue is T1 ln 2.
    assert signal(800, 80, 1.0, "ir", 1e6, 0.0, 800 * 0.693147) == pytest.approx(0, abs=1e-5)
    # The Ernst angle is the best one.
    tr, t1 = 20.0, 800.0
    ernst = torch.rad2deg(torch.arccos(torch.exp(torch.tensor(-tr / t1)))).item()
    best = signal(t1, 80, 1.0, "gre", tr, 0.0, ernst)
    assert best > max(signal(t1, 80, 1.0, "gre", tr, 0.0, ernst + step) for step in (-2, 2))


def test_brain_images_fill_the_fine_grid(seed):
    for number in range(6):
        image = brain_image((40, 30), torch.Generator().manual_seed(seed + number))
        assert image.shape == (80, 60)
        assert float(image.min()) >= 0
        assert 0.3 < float(image.max()) < 12
