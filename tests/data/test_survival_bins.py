"""Time bins: quantiles of the seen events of the training part, as the original code cuts them."""

import numpy as np
import pandas
import pytest

from medseq.data.survival_bins import SurvivalBins
from medseq.errors import InputError


@pytest.fixture
def cohort(seed):
    rng = np.random.default_rng(seed)
    return rng.exponential(30, 80), rng.random(80) < 0.5


@pytest.mark.parametrize("bins", [2, 4, 6])
def test_the_bins_are_those_of_the_original_code(cohort, bins):
    # MambaMIL: qcut of the uncensored, outer edges widened by 1e-6, cut of everyone, right-open.
    months, event = cohort
    _, edges = pandas.qcut(months[event], bins, retbins=True, labels=False)
    edges[0], edges[-1] = months.min() - 1e-6, months.max() + 1e-6
    wanted = pandas.cut(months, edges, right=False, labels=False, include_lowest=True)
    found = SurvivalBins.fit(months, event, bins)
    assert found.count == bins
    assert np.array_equal(found.index(months), wanted)


def test_a_time_on_an_edge_and_times_never_seen_have_a_bin(cohort):
    found = SurvivalBins.fit(*cohort)
    assert found.index(np.array(found.inner)).tolist() == [1, 2, 3]
    assert found.index(np.array([0.0, 1e9])).tolist() == [0, 3]
    assert int(found.index(0.0)) == 0


@pytest.mark.parametrize(
    ("months", "event", "bins", "message"),
    [
        ([1, 2, 3], [False] * 3, 2, "every case of the training part is censored.*0 events in 3 cases"),
        ([5] * 8, [True] * 8, 4, "too few different times.*found 1 times"),
        ([5, 5, 5, 5, 5, 9], [True] * 6, 4, "too few different times"),
        ([1, 2, 3], [True] * 3, 1, "found 1, wanted 2 or more"),
    ],
)
def test_cohorts_without_bins_are_refused(months, event, bins, message):
    with pytest.raises(InputError, match=message):
        SurvivalBins.fit(months, event, bins)
