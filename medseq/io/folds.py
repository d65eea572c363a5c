"""Cross-validation by patient: folds that have the same share of every class, and a part inside to stop at. No torch.

The score of a fold comes from cases that chose nothing: not the weights, not the epoch, not the threshold. So every
fold has three parts; the inner validation part is drawn from what is left beside the test fold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medseq.errors import InputError

__all__ = ["Fold", "stratified_folds", "survival_strata"]


class Fold(NamedTuple):
    """Indices of cases.

    Attributes:
        repeat: Number of the repetition.
        fold: Number of the fold in it.
        train: To learn from.
        val: To stop at, and to fit thresholds to.
        test: To report.
    """

    repeat: int
    fold: int
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def stratified_folds(
    strata: Sequence[int] | np.ndarray,
    folds: int,
    generator: np.random.Generator,
    *,
    repeats: int = 1,
    val_share: float = 0.2,
    allow_rare: bool = False,
) -> list[Fold]:
    """Repeated, stratified folds, each case in the test part once a repetition.

    Args:
        strata: Class of every case (patient, never slide); cases of a stratum are dealt out evenly.
        folds: Test parts.
        generator: Decides the shuffling.
        repeats: How often it is all done anew.
        val_share: Share of the other cases that is held back for stopping.
        allow_rare: Deal out strata that are too small for every part of every fold too, instead of refusing them.

    Returns:
        ``repeats * folds`` folds.

    Raises:
        InputError: Fewer than two folds, or a class too rare for every fold to have it in all three parts.
    """
    strata = np.asarray(strata)
    if folds < 2 or repeats < 1 or not 0 < val_share < 1:
        raise InputError(
            "no such cross-validation",
            found=f"folds {folds}, repeats {repeats}, val_share {val_share}",
            wanted="at least 2 folds, 1 repetition, a share between 0 and 1",
        )
    values, counts = np.unique(strata, return_counts=True)
    rare = counts < _needed(folds)
    if len(strata) < _needed(folds) or (rare.any() and not allow_rare):
        shown = ", ".join(f"{count} of class {value}" for value, count in zip(values[rare], counts[rare], strict=True))
        raise InputError(
            "a class would be absent from a fold",
            where="cross-validation",
            found=shown or f"{len(strata)} cases",
            wanted=f"at least {_needed(folds)} cases of each class for {folds} folds",
            remedy="use fewer folds, or merge classes",
        )
    found = []
    for repeat in range(repeats):
        dealt = _dealt(strata, folds, generator)
        for fold in range(folds):
            test, rest = np.flatnonzero(dealt == fold), np.flatnonzero(dealt != fold)
            held = _held_back(strata[rest], val_share, generator)
            found.append(Fold(repeat, fold, rest[~held], rest[held], test))
    return found


def survival_strata(event: np.ndarray, months: np.ndarray, folds: int, bins: int = 4) -> np.ndarray:
    """Strata of survival cases: whether the event was seen, and the part of the follow-up among those of its kind.

    Use them with ``allow_rare=True``: every fold has an event then, though not a censored case if there are few.

    Args:
        event: ``(cases,)`` bool.
        months: ``(cases,)`` follow-up.
        folds: Test parts; the follow-up is cut into as many parts as leave enough cases in each.
        bins: Largest number of parts of the follow-up.

    Raises:
        InputError: Too few events: a test fold would have none, and no concordance.
    """
    event, months = np.asarray(event, bool), np.asarray(months, float)
    if event.sum() < _needed(folds):
        raise InputError(
            "a fold would be all censored",
            where="cross-validation",
            found=f"{int(event.sum())} events",
            wanted=f"at least {_needed(folds)} for {folds} folds",
            remedy="use fewer folds",
        )
    strata, first = np.zeros(len(event), np.int64), 0
    for members in (np.flatnonzero(event), np.flatnonzero(~event)):
        parts = max(1, min(bins, len(members) // _needed(folds)))
        ascending = members[np.argsort(months[members], kind="stable")]
        for part, some in enumerate(np.array_split(ascending, parts)):
            strata[some] = first + part
        first += parts
    return strata


def _needed(folds: int) -> int:
    """Cases of a class that put one into every test fold, and leave two beside the largest: to learn and to stop."""
    return max(folds, 4 if folds == 2 else 3)


def _dealt(strata: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """A fold for every case: shuffled within its stratum, then dealt in turn, on from where the last stratum ended."""
    order = np.concatenate([generator.permutation(np.flatnonzero(strata == value)) for value in np.unique(strata)])
    dealt = np.empty(len(strata), np.int64)
    # Otherwise the first folds are the large ones in every repetition.
    dealt[order] = generator.permutation(folds)[np.arange(len(order)) % folds]
    return dealt


def _held_back(strata: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Which cases are held back: of each stratum its share, at least one and never all."""
    held = np.zeros(len(strata), bool)
    for value in np.unique(strata):
        members = np.flatnonzero(strata == value)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[generator.permutation(members)[:count]] = True
    return held
