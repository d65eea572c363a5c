"""Scores of a cross-validation with intervals over patients, as a dictionary and as a table. No torch.

Classes: the predictions of all folds of a repetition are pooled, so every patient counts once; the score is the mean
over repetitions. Survival: risks of different models have no common scale, so the concordance index is taken within
each fold, and the score is the mean over folds. Beside it stand mean and standard deviation over folds, as papers give
them.

The original MambaMIL reports, for survival, the best concordance index of the fold that also stops the training, with
no test part beside it; a number of this file is lower than that for the same model.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medseq.errors import InputError
from medseq.io.case_predictions import CasePredictions
from medseq.ops.case_scores import (
    auroc,
    balanced_accuracy,
    brier,
    concordance_index,
    expected_calibration_error,
    f1,
    reliability,
)
from medseq.ops.resampling import Interval, bootstrap

__all__ = ["METRICS", "paired_difference", "results_table", "score", "summarise"]

# Metric -> (probability of classes, call, label) -> value.
_OF_CLASSES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "auroc": lambda p, call, y: auroc(y, p),
    "balanced_accuracy": lambda p, call, y: balanced_accuracy(y, call),
    "f1": lambda p, call, y: f1(y, call, p.shape[1]),
    "brier": lambda p, call, y: brier(y, p),
    "ece": lambda p, call, y: expected_calibration_error(y, p),
}
METRICS = (*_OF_CLASSES, "c_index")


def score(predictions: CasePredictions, metric: str) -> float:
    """One metric, pooled over folds or averaged over them as the module says; nan where nothing defines it.

    Raises:
        InputError: No such metric for these predictions.
    """
    groups = _models(predictions) if metric == "c_index" else _repeats(predictions)
    values = np.array([_of_rows(predictions.take(rows), metric) for rows in groups])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def summarise(predictions: CasePredictions, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every metric with its interval over patients, and its mean and standard deviation over folds.

    Args:
        predictions: Of all folds and repetitions.
        draws: Bootstrap draws of patients, stratified by class or event.
        seed: Of the draws.
    """
    p = predictions
    names = ["c_index"] if p.probability is None else list(_OF_CLASSES)
    patients, strata = _strata(p)
    folds = _models(p)
    found: dict[str, Any] = {}
    for name in names:
        whole = bootstrap(lambda i, name=name: score(_drawn(p, patients, i), name), strata, draws=draws, seed=seed)  # type: ignore[misc]
        each = np.array([_of_rows(p.take(rows), name) for rows in folds])
        each = each[np.isfinite(each)]
        found[name] = {
            **_plain(whole),
            "fold_mean": float(each.mean()) if len(each) else None,
            "fold_sd": float(each.std(ddof=1)) if len(each) > 1 else None,
            "folds": len(each),
        }
    out = {
        "patients": len(patients),
        "repeats": len(_repeats(p)),
        "folds": len(folds) // len(_repeats(p)),
        "metrics": found,
    }
    if p.probability is not None:
        out["calibration"] = [list(point) for point in reliability(p.label, p.probability)]
    return out


def paired_difference(
    a: CasePredictions, b: CasePredictions, metric: str, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """``score(a) - score(b)`` with the interval of draws in which both have the same patients.

    Raises:
        InputError: The two were not scored on the same patients.
    """
    patients, strata = _strata(a)
    others, _ = _strata(b)
    if set(patients) != set(others):
        raise InputError(
            "the predictions are of different patients", found=f"{len(set(patients) ^ set(others))} in one of them only"
        )
    second = {name: others[name] for name in patients}
    return bootstrap(
        lambda i: score(_drawn(a, patients, i), metric) - score(_drawn(b, second, i), metric),
        strata,
        draws=draws,
        seed=seed,
    )


def results_table(summary: Mapping[str, Any], title: str) -> str:
    """Markdown of `summarise`."""
    n, folds, repeats = summary["patients"], summary["folds"], summary["repeats"]
    lines = [
        f"# {title}",
        "",
        f"n = {n} patients, {folds} folds x {repeats} repetitions, nested: training was stopped, and temperature and"
        " threshold were fitted, on patients that are neither of the test fold nor trained on. Research use only.",
        "",
        "| metric | value [95 % CI over patients] | mean over folds ± sd |",
        "|---|---|---|",
    ]
    for name, row in summary["metrics"].items():
        sd = "-" if row["fold_sd"] is None else f"{row['fold_sd']:.3f}"
        lines.append(
            f"| {name} | {_text(row['value'])} [{_text(row['low'])}, {_text(row['high'])}] |"
            f" {_text(row['fold_mean'])} ± {sd} (n = {row['folds']}) |"
        )
    if "calibration" in summary:
        lines += ["", "| probability said | came true | cases |", "|---|---|---|"]
        lines += [f"| {said:.2f} | {true:.2f} | {cases} |" for said, true, cases in summary["calibration"]]
    return "\n".join(lines) + "\n"


def _of_rows(p: CasePredictions, metric: str) -> float:
    if metric == "c_index" and p.event is not None and p.months is not None and p.risk is not None:
        return concordance_index(p.event, p.months, p.risk)
    if metric in _OF_CLASSES and p.probability is not None and p.call is not None:
        return _OF_CLASSES[metric](p.probability, p.call, p.label)
    raise InputError("no such metric for these predictions", found=metric, wanted=", ".join(METRICS))


def _repeats(p: CasePredictions) -> list[np.ndarray]:
    return [np.flatnonzero(p.repeat == repeat) for repeat in np.unique(p.repeat)]


def _models(p: CasePredictions) -> list[np.ndarray]:
    """Rows of every fold of every repetition."""
    return [rows[p.fold[rows] == fold] for rows in _repeats(p) for fold in np.unique(p.fold[rows])]


def _strata(p: CasePredictions) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of each patient, and the class (or event) of each."""
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(p.patient):
        rows.setdefault(name, []).append(number)
    kinds = p.label if p.event is None else p.event.astype(int)
    return {name: np.array(own) for name, own in rows.items()}, np.array([kinds[own[0]] for own in rows.values()])


def _drawn(p: CasePredictions, patients: Mapping[str, np.ndarray], picks: np.ndarray) -> CasePredictions:
    """All rows of the drawn patients, some of them more than once."""
    rows = list(patients.values())
    return p.take(np.concatenate([rows[i] for i in picks]))


def _plain(interval: Interval) -> dict[str, float | None]:
    found = {key: float(value) for key, value in interval._asdict().items() if key != "draws"}
    return {key: value if np.isfinite(value) else None for key, value in found.items()}


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
