"""Scores of reconstructions: the toolkits' own numbers, and closed forms."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from medseq.errors import InputError, ShapeError
from medseq.ops.recon_quality import data_residual, scaled_nrmse, scores, uniform_ssim

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "metrics.safetensors")
TABLE = {
    "fastmri": {
        "ssim": "out.fastmri.ssim(maxval=gt.max)",
        "psnr": "out.fastmri.psnr(maxval=gt.max)",
        "nmse": "out.fastmri.nmse",
    },
    "calgary": {"ssim": "out.direct.calgary_campinas_ssim", "psnr": "out.direct.calgary_campinas_psnr"},
    "atommic": {name: f"out.atommic.logged_per_slice_mean.{name}" for name in ("ssim", "psnr", "nmse")},
}


@pytest.mark.parametrize("convention", TABLE)
def test_scores_are_the_toolkits_own(convention):
    found = scores(GOLDEN["in.pred"], GOLDEN["in.gt"], convention)
    assert set(found) == {f"{convention}_{name}" for name in TABLE[convention]}
    for name, key in TABLE[convention].items():
        # The originals compute in float32.
        assert found[f"{convention}_{name}"] == pytest.approx(GOLDEN[key].item(), rel=1e-6)


def test_directs_fastmri_scores_are_fastmris():
    found = scores(GOLDEN["in.pred"], GOLDEN["in.gt"], "fastmri")
    for name in ("ssim", "psnr", "nmse"):
        assert found[f"fastmri_{name}"] == pytest.approx(GOLDEN[f"out.direct.fastmri_{name}"].item(), rel=1e-6)


def test_only_atommics_convention_is_blind_to_scale(seed):
    reference = np.random.default_rng(seed).uniform(0.1, 1, (2, 16, 18))
    assert scores(3 * reference, reference, "atommic")["atommic_ssim"] == pytest.approx(1)
    assert scores(3 * reference, reference, "fastmri")["fastmri_nmse"] == pytest.approx(4)
    assert scores(3 * reference, reference, "calgary")["calgary_ssim"] < 0.9


def test_scaled_nrmse_ignores_one_complex_factor(seed):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(9, 8)) + 1j * rng.normal(size=(9, 8))
    assert scaled_nrmse(0.3 * np.exp(2j) * reference, reference) == pytest.approx(0, abs=1e-12)
    # Half the energy missing: the best factor is 1 and the error the missing half.
    half = np.where(np.arange(8) < 4, reference, 0)
    wanted = np.linalg.norm(reference[:, 4:]) / np.linalg.norm(reference)
    assert scaled_nrmse(half, reference) == pytest.approx(wanted)
    support = np.broadcast_to(np.arange(8) < 4, reference.shape)
    assert scaled_nrmse(half, reference, support) == pytest.approx(0, abs=1e-12)
    assert scaled_nrmse(np.zeros_like(reference), reference) == 1


def test_data_residual_counts_measured_points_only(seed):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(2, 6, 8)) + 0j
    mask = np.arange(8) % 2 == 0
    assert data_residual(np.where(mask, measured, 99), measured, mask) == 0
    assert data_residual(1.1 * measured, measured, mask) == pytest.approx(0.1)


def test_bad_volumes_are_named():
    one = np.ones((1, 8, 8))
    with pytest.raises(ShapeError, match=r"found \(8, 8\), wanted \(slice, row, col\)"):
        scores(one[0], one[0], "fastmri")
    with pytest.raises(InputError, match="the reference has a slice that is empty"):
        scores(one, 0 * one, "calgary")
    with pytest.raises(InputError, match="found facebook, wanted fastmri, calgary, atommic"):
        scores(one, one, "facebook")
    with pytest.raises(ShapeError, match="at least 7 x 7"):
        uniform_ssim(one[0, :6], one[0, :6], 1)
    with pytest.raises(InputError, match="the reference is zero in its support"):
        scaled_nrmse(one, 0 * one)
    with pytest.raises(InputError, match="the measured k-space is zero"):
        data_residual(one, 0 * one, one > 0)
