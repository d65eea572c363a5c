"""How far readers agree beyond chance: Cohen's kappa for two, Fleiss' for several, each with an interval. numpy only.

Intervals are asymptotic where the formula is known to hold (many cases), and by resampling cases where it is not: the
bootstrap needs no assumption about the table and is the one to report for few cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from medseq.errors import InputError

__all__ = ["Kappa", "agreement", "cohen_kappa", "fleiss_kappa"]

_DRAWS = 2000


@dataclass(frozen=True)
class Kappa:
    """Agreement of readers.

    Attributes:
        name: ``cohen``, ``cohen-quadratic`` or ``fleiss``.
        value: 1 is perfect, 0 what chance gives; None where every reader said the same of every case, which leaves no
            room for chance.
        low: Lower end of the interval, None where it cannot be told.
        high: Upper end.
        se: Asymptotic standard error, None likewise.
        method: Of the interval: ``asymptotic`` or ``bootstrap``.
        cases: Cases that were used.
        readers: Readers.
        observed: Share of agreement.
        expected: Share that chance alone gives.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    se: float | None
    method: str
    cases: int
    readers: int
    observed: float
    expected: float


def cohen_kappa(
    first: Sequence[str | int],
    second: Sequence[str | int],
    *,
    weights: str | None = None,
    level: float = 0.95,
    bootstrap: bool = False,
    seed: int = 0,
) -> Kappa:
    """Agreement of two readers on the same cases.

    Args:
        first: Decision of the first reader on every case.
        second: Of the second.
        weights: ``quadratic`` for ordered numbers (scores): a difference of two counts four times one of one.
        level: Of the interval.
        bootstrap: Resample cases instead of the asymptotic formula.
        seed: Of the resampling.

    Raises:
        InputError: No cases, or lists of different lengths.

    Reference:
        Cohen, Educ. Psychol. Meas. 20, 1960; Fleiss, Cohen and Everitt, Psychol. Bull. 72, 1969, Eqs. 8 and 13
        (standard error of plain and weighted kappa).
    """
    if not first or len(first) != len(second):
        raise InputError("two readers need the same cases", found=f"{len(first)} and {len(second)}")
    names = sorted(set(first) | set(second), key=lambda value: (str(type(value)), value))
    place = {name: number for number, name in enumerate(names)}
    a, b = (np.array([place[value] for value in reader]) for reader in (first, second))
    w = _weights(names, weights)
    value, observed, expected, se = _cohen(_table(a, b, len(names)), w)
    low, high = _interval(value, se, level)
    if bootstrap:
        draws = np.random.default_rng(seed).integers(0, len(a), (_DRAWS, len(a)))
        found = [_cohen(_table(a[rows], b[rows], len(names)), w)[0] for rows in draws]
        low, high = _percentile_interval(found, level)
    name = "cohen" if weights is None else f"cohen-{weights}"
    method = "bootstrap" if bootstrap else "asymptotic"
    return Kappa(name, value, low, high, se, method, len(a), 2, observed, expected)


def fleiss_kappa(counts: np.ndarray, *, level: float = 0.95, bootstrap: bool = False, seed: int = 0) -> Kappa:
    """Agreement of several readers.

    Args:
        counts: ``(case, category)``: how many readers chose each; every case has the same number of readers.
        level: Of the interval.
        bootstrap: Resample cases instead of the asymptotic formula.
        seed: Of the resampling.

    Raises:
        InputError: Fewer than two readers, or cases with different numbers of them.

    Reference:
        Fleiss, Psychol. Bull. 76, 1971; standard error: Fleiss, Nee and Landis, Psychol. Bull. 86, 1979, Eq. 12.
        It holds under no agreement beyond chance, so the interval is a test of that; report the bootstrap otherwise.
    """
    counts = np.asarray(counts, dtype=np.float64)
    totals = counts.sum(1) if counts.ndim == 2 else np.zeros(0)
    if counts.ndim != 2 or not len(counts) or totals.min() < 2 or totals.min() != totals.max():
        raise InputError("every case needs the same readers, two at least", found=f"{counts.shape}")
    readers = int(totals[0])
    value, observed, expected, se = _fleiss(counts, readers)
    low, high = _interval(value, se, level)
    if bootstrap:
        draws = np.random.default_rng(seed).integers(0, len(counts), (_DRAWS, len(counts)))
        low, high = _percentile_interval([_fleiss(counts[rows], readers)[0] for rows in draws], level)
    method = "bootstrap" if bootstrap else "asymptotic"
    return Kappa("fleiss", value, low, high, se, method, len(counts), readers, observed, expected)


def agreement(
    ratings: Mapping[str, Mapping[str, str]], *, level: float = 0.95, bootstrap: bool = True, seed: int = 0
) -> list[Kappa]:
    """Agreement over all cases that every reader has decided: Cohen for two readers, Fleiss for more.

    Args:
        ratings: Case -> reader -> decision.
        level: Of the intervals.
        bootstrap: See `cohen_kappa`.
        seed: Same.

    Returns:
        One kappa, or none where no case has two readers' decisions.
    """
    readers = sorted({reader for found in ratings.values() for reader in found})
    complete = [found for _, found in sorted(ratings.items()) if set(found) == set(readers)]
    if len(readers) < 2 or not complete:
        return []
    if len(readers) == 2:
        first, second = ([found[reader] for found in complete] for reader in readers)
        return [cohen_kappa(first, second, level=level, bootstrap=bootstrap, seed=seed)]
    names = sorted({decision for found in complete for decision in found.values()})
    counts = np.array([[list(found.values()).count(name) for name in names] for found in complete])
    return [fleiss_kappa(counts, level=level, bootstrap=bootstrap, seed=seed)]


def _weights(names: Sequence[str | int], weights: str | None) -> np.ndarray:
    if weights is None:
        return np.eye(len(names))
    if weights != "quadratic" or not all(isinstance(name, int | float) for name in names):
        raise InputError("weights are for numbers", found=weights, wanted="quadratic, with scores")
    values = np.array(names, dtype=np.float64)
    span = max(values.max() - values.min(), 1e-300)
    return 1 - ((values[:, None] - values[None]) / span) ** 2


def _table(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(a * size + b, minlength=size * size).reshape(size, size).astype(np.float64)


def _cohen(table: np.ndarray, w: np.ndarray) -> tuple[float | None, float, float, float | None]:
    """Kappa, observed and expected agreement, standard error."""
    n = table.sum()
    p = table / n
    rows, cols = p.sum(1), p.sum(0)
    observed, expected = float((w * p).sum()), float((w * np.outer(rows, cols)).sum())
    if 1 - expected < 1e-12:
        return None, observed, expected, None
    value = (observed - expected) / (1 - expected)
    # Mean weights of each category with what the other reader says.
    mean_row, mean_col = w @ cols, rows @ w
    inner = w * (1 - expected) - (mean_row[:, None] + mean_col[None]) * (1 - observed)
    variance = (p * inner**2).sum() - (observed * expected - 2 * expected + observed) ** 2
    return value, observed, expected, float(np.sqrt(max(variance, 0.0) / n)) / (1 - expected) ** 2


def _fleiss(counts: np.ndarray, readers: int) -> tuple[float | None, float, float, float | None]:
    cases = len(counts)
    share = counts.sum(0) / (cases * readers)
    observed = float(((counts**2).sum(1) - readers).mean() / (readers * (readers - 1)))
    expected = float((share**2).sum())
    if 1 - expected < 1e-12:
        return None, observed, expected, None
    value = (observed - expected) / (1 - expected)
    spread = share * (1 - share)
    total = spread.sum()
    root = np.sqrt(max(total**2 - (spread * (1 - 2 * share)).sum(), 0.0))
    return value, observed, expected, float(np.sqrt(2 / (cases * readers * (readers - 1))) * root / total)


def _interval(value: float | None, se: float | None, level: float) -> tuple[float | None, float | None]:
    if value is None or se is None:
        return None, None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return max(-1.0, value - z * se), min(1.0, value + z * se)


def _percentile_interval(values: Sequence[float | None], level: float) -> tuple[float | None, float | None]:
    """Of the draws in which kappa is defined, if they are most of them."""
    found = [value for value in values if value is not None]
    if len(found) < len(values) / 2:
        return None, None
    low, high = np.percentile(found, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)
