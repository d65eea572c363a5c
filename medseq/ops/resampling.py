"""Bootstrap intervals of scores over cases. Seeded, so that a table can be repeated."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from medseq.errors import InputError

__all__ = ["Interval", "bootstrap"]


class Interval(NamedTuple):
    """A score, its percentile interval, and how many draws defined it."""

    value: float
    low: float
    high: float
    draws: int


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    strata: np.ndarray,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic over cases, drawn with replacement within each stratum.

    A difference of two methods is one statistic as well: computed of the same draws, it is paired.

    Args:
        statistic: Takes the numbers of the drawn cases (some twice, some not at all) and returns its value.
        strata: Class, or event, of each case: every draw has as many of each as there are.
        draws: How many.
        level: Of the interval.
        seed: Of the draws.

    Raises:
        InputError: No case, or a level outside 0..1.

    Reference:
        Efron and Tibshirani, An introduction to the bootstrap, 1993, section 13.3.
    """
    strata = np.asarray(strata)
    if not len(strata) or not 0 < level < 1:
        raise InputError("nothing to resample", found=f"{len(strata)} cases, level {level}", wanted="0 < level < 1")
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    values = np.empty(draws)
    for draw in range(draws):
        values[draw] = statistic(np.concatenate([m[rng.integers(len(m), size=len(m))] for m in members]))
    values = values[np.isfinite(values)]
    value = float(statistic(np.arange(len(strata))))
    if not len(values):
        return Interval(value, float("nan"), float("nan"), 0)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(values))
