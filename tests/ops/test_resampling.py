"""Bootstrap intervals: coverage, pairing and repeatability."""

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.ops.resampling import bootstrap


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def test_the_interval_of_a_mean_is_that_of_theory(rng):
    x = rng.normal(3, 2, 400)
    found = bootstrap(lambda i: x[i].mean(), np.zeros(400), draws=2000)
    half = 1.96 * x.std() / 20
    assert found.value == pytest.approx(x.mean())
    # A quantile of 2000 draws has a standard error of about 4 % of the half width.
    assert found.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.15 * half)


def test_every_draw_has_as_many_of_each_stratum(rng):
    strata = np.array([0] * 3 + [1] * 7)
    bootstrap(lambda i: np.testing.assert_equal(np.bincount(strata[i]), [3, 7]) or 0.0, strata, draws=50)


def test_a_difference_is_paired(rng):
    x = rng.normal(0, 5, 100)
    y = x + 0.1
    found = bootstrap(lambda i: (y[i] - x[i]).mean(), np.zeros(100), draws=200)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_the_seed_repeats_it(rng):
    x = rng.random(20)
    first, again, other = (bootstrap(lambda i: x[i].mean(), np.zeros(20), draws=100, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_draws_without_a_value_are_counted_out():
    found = bootstrap(lambda i: float("nan"), np.zeros(5), draws=10)
    assert found.draws == 0
    assert np.isnan(found.low)


def test_no_case_is_refused():
    with pytest.raises(InputError, match="0 cases"):
        bootstrap(lambda i: 0.0, np.array([]))
