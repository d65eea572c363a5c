"""Distances from a cloud: against the full covariance, and by its own meaning."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from medseq.errors import InputError, ShapeError
from medseq.ops.mahalanobis import fit_spread


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("n", "width"), [(20, 64), (200, 6), (5, 3)])
def test_distance_is_that_of_the_shrunk_covariance(rng, n, width):
    known = rng.normal(0, 1, (n, width)) @ rng.normal(0, 1, (width, width)) + 5
    others = rng.normal(0, 3, (4, width)) + 5
    reference = LedoitWolf().fit(known)
    # scikit-learn's distance is squared; the axes keep everything here, so rounding is all that differs.
    np.testing.assert_allclose(fit_spread(known).distance(others), np.sqrt(reference.mahalanobis(others)), rtol=1e-6)


def test_with_few_axes_the_total_variance_stays(rng):
    known = rng.normal(0, 1, (300, 40)) * np.linspace(0.1, 3, 40)
    spread = fit_spread(known, rank=5)
    total = spread.variance.sum() + spread.residual * 35
    assert total == pytest.approx(known.var(0).sum(), rel=1e-6)
    assert spread.axes.shape == (5, 40)


def test_a_shifted_cloud_is_farther(rng):
    known, same = rng.normal(0, 1, (2, 60, 10))
    spread = fit_spread(known)
    assert spread.distance(same + 4).min() > np.median(spread.distance(same))


def test_what_has_no_spread_is_refused():
    with pytest.raises(InputError, match="found 1"):
        fit_spread(np.zeros((1, 3)))
    with pytest.raises(InputError, match="do not differ"):
        fit_spread(np.ones((4, 3)))


def test_another_width_is_refused(rng):
    with pytest.raises(ShapeError, match="case, 3"):
        fit_spread(rng.normal(0, 1, (5, 3))).distance(np.zeros((2, 4)))
