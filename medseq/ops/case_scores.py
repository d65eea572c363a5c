"""Scores of a classifier or a survival model over cases, each by its definition; plain numbers, no torch.

A case is what is scored as one: a patient, after their slides were brought together (`mean_by_case`). Classes are
numbers 0 .. K-1, probabilities ``(case, class)`` with rows that sum to 1. A score that its cases do not define (the
AUROC of one class alone) is nan: whoever asks for it decides whether that is an error.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from medseq.errors import InputError, ShapeError

__all__ = [
    "auroc",
    "balanced_accuracy",
    "brier",
    "concordance_index",
    "expected_calibration_error",
    "f1",
    "mean_by_case",
    "reliability",
]

Labels = Int[np.ndarray, " case"]
Probabilities = Float[np.ndarray, "case class"]


def auroc(label: Labels, probability: Probabilities) -> float:
    """Area under the receiver operating characteristic; ties count half.

    Two classes: of class 1. More: mean over the classes that some cases have and others have not, one against the rest.
    """
    label, probability = _checked(label, probability)
    classes = range(1, 2) if probability.shape[1] == 2 else range(probability.shape[1])
    areas = [_area(label == k, probability[:, k]) for k in classes if 0 < np.count_nonzero(label == k) < len(label)]
    return float(np.mean(areas)) if areas else float("nan")


def balanced_accuracy(label: Labels, call: Labels) -> float:
    """Mean over the classes that there are of the share of their cases that were called right."""
    _same_length(label, call)
    return float(np.mean([np.mean(call[label == k] == k) for k in np.unique(label)])) if len(label) else float("nan")


def f1(label: Labels, call: Labels, classes: int) -> float:
    """``2 TP / (2 TP + FP + FN)``: of class 1 where there are two, else the mean over classes; 0 for 0 / 0."""
    _same_length(label, call)
    values = []
    for k in range(1, 2) if classes == 2 else range(classes):
        both = np.count_nonzero((label == k) & (call == k))
        either = np.count_nonzero(label == k) + np.count_nonzero(call == k)
        values.append(2 * both / either if either else 0.0)
    return float(np.mean(values))


def brier(label: Labels, probability: Probabilities) -> float:
    """Mean squared error of the probabilities: of class 1 where there are two (0..1), else summed over all (0..2)."""
    label, probability = _checked(label, probability)
    error = np.square(probability - (label[:, None] == np.arange(probability.shape[1]))).sum(1)
    return float(error.mean() / (2 if probability.shape[1] == 2 else 1)) if len(label) else float("nan")


def reliability(label: Labels, probability: Probabilities, bins: int = 10) -> list[tuple[float, float, int]]:
    """Points of a calibration plot: mean probability, share that it came true, and cases, of each bin that has any.

    Two classes: the probability of class 1 and whether the case is of it. More: the largest probability, and whether
    the call was right. Bins are of equal width, closed above.
    """
    label, probability = _checked(label, probability)
    if probability.shape[1] == 2:
        said, true = probability[:, 1], label == 1
    else:
        said, true = probability.max(1), probability.argmax(1) == label
    place = np.clip(np.ceil(said * bins).astype(int) - 1, 0, bins - 1)
    found = [(place == b) for b in range(bins)]
    return [(float(said[m].mean()), float(true[m].mean()), int(m.sum())) for m in found if m.any()]


def expected_calibration_error(label: Labels, probability: Probabilities, bins: int = 10) -> float:
    """Mean distance of the points of `reliability` from the diagonal, weighted by their cases.

    Reference:
        Guo et al., On calibration of modern neural networks, arXiv:1706.04599, Eq. 3.
    """
    points = reliability(label, probability, bins)
    total = float(sum(n * abs(said - true) for said, true, n in points))
    return total / len(label) if points else float("nan")


def concordance_index(
    event: Bool[np.ndarray, " case"],
    time: Float[np.ndarray, " case"],
    risk: Float[np.ndarray, " case"],
    tied_tol: float = 1e-8,
) -> float:
    """Harrell's C: of the pairs whose order of events is known, the share in which the higher risk had it first.

    A pair is known if one had the event and the other was followed for longer, or equally long and censored. Risks that
    differ by no more than `tied_tol` count half. nan if no pair is known. Same numbers as scikit-survival's
    ``concordance_index_censored``.

    Args:
        event: True where the event was seen.
        time: Of the event, or of the last visit.
        risk: Larger for an earlier event.
        tied_tol: See above.

    Reference:
        Harrell et al., Evaluating the yield of medical tests, JAMA 247(18), 1982.
    """
    event, time, risk = np.asarray(event, bool), np.asarray(time, float), np.asarray(risk, float)
    _same_length(event, time)
    _same_length(event, risk)
    if not (np.isfinite(time).all() and np.isfinite(risk).all()):
        raise InputError("times and risks must be finite numbers")
    score, pairs = 0.0, 0
    for first in np.flatnonzero(event):
        later = (time > time[first]) | ((time == time[first]) & ~event)
        gap = risk[first] - risk[later]
        tied = np.abs(gap) <= tied_tol
        score += np.count_nonzero((gap > 0) & ~tied) + 0.5 * np.count_nonzero(tied)
        pairs += len(gap)
    return float(score / pairs) if pairs else float("nan")


def mean_by_case(case: Sequence[str], *values: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Means of values ``(bag, …)`` over the bags of each case, in the order in which the cases first come.

    Raises:
        ShapeError: Not one value a bag.
    """
    names = list(dict.fromkeys(case))
    number = {name: i for i, name in enumerate(names)}
    owner = np.array([number[name] for name in case], dtype=int)
    counts = np.bincount(owner, minlength=len(names))
    out = []
    for value in values:
        _same_length(owner, value)
        total = np.zeros((len(names), *value.shape[1:]))
        np.add.at(total, owner, value)
        out.append(total / counts.reshape(-1, *(1,) * (value.ndim - 1)))
    return names, out


def _area(positive: Bool[np.ndarray, " case"], score: Float[np.ndarray, " case"]) -> float:
    """AUROC by ranks: the share of pairs (positive, negative) in the right order."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    # Tied scores share the mean of their ranks.
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def _checked(label: Labels, probability: Probabilities) -> tuple[Labels, Probabilities]:
    label, probability = np.asarray(label), np.asarray(probability, float)
    _same_length(label, probability)
    if probability.ndim != 2 or probability.shape[1] < 2:
        raise ShapeError("probabilities have the wrong form", found=probability.shape, wanted="(case, class)")
    if not np.isfinite(probability).all():
        raise InputError("probabilities must be finite numbers")
    if len(label) and not 0 <= label.min() <= label.max() < probability.shape[1]:
        raise InputError(
            "labels do not fit the probabilities",
            found=f"{label.min()} to {label.max()}",
            wanted=f"0 to {probability.shape[1] - 1}",
        )
    return label, probability


def _same_length(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise ShapeError("there must be one value a case", found=len(b), wanted=len(a))
