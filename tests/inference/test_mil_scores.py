"""Scores of a cross-validation: pooled or per fold, with intervals over patients."""

import json

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.inference.mil_scores import paired_difference, results_table, score, summarise
from medseq.io.case_predictions import CasePredictions
from medseq.ops.case_scores import auroc, concordance_index


def crossed(rng, n=40, repeats=2, folds=4, skill=2.0):
    """Predictions of every patient in every repetition."""
    label = np.arange(n) % 2
    parts = [rng.permutation(n) % folds for _ in range(repeats)]
    odds = skill * (label - 0.5) + rng.normal(size=(repeats, n))
    p = (1 / (1 + np.exp(-odds))).ravel()
    names = [f"p{i}" for i in range(n)] * repeats
    probability = np.c_[1 - p, p]
    return CasePredictions(
        np.repeat(np.arange(repeats), n),
        np.concatenate(parts),
        names,
        np.tile(label, repeats),
        probability,
        (p > 0.5).astype(int),
    )


def survived(rng, n=40, folds=4):
    months = 60 * rng.random(n)
    # Every fold's model has a scale of its own, which means nothing.
    fold = np.arange(n) % folds
    risk = -months * 0.01 + 100 * fold + 0.05 * rng.normal(size=n)
    event = rng.random(n) < 0.7
    zero = np.zeros(n, int)
    return CasePredictions(zero, fold, [f"p{i}" for i in range(n)], zero, None, None, risk, event, months)


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def test_classes_are_pooled_over_the_folds_of_a_repetition(rng):
    p = crossed(rng)
    expected = [auroc(p.label[p.repeat == r], p.probability[p.repeat == r]) for r in (0, 1)]
    assert score(p, "auroc") == pytest.approx(np.mean(expected))


def test_risks_of_different_models_are_never_compared(rng):
    p = survived(rng)
    each = [concordance_index(*(x[p.fold == f] for x in (p.event, p.months, p.risk))) for f in range(4)]
    assert score(p, "c_index") == pytest.approx(np.mean(each))
    assert concordance_index(p.event, p.months, p.risk) < score(p, "c_index")


def test_the_summary_has_intervals_and_fits_into_a_table(rng):
    found = summarise(crossed(rng), draws=200)
    assert (found["patients"], found["repeats"], found["folds"]) == (40, 2, 4)
    for name, row in found["metrics"].items():
        # A draw repeats cases, so its calibration error is larger than that of the sample: the interval may lie above.
        assert row["low"] <= row["high"]
        assert name == "ece" or row["low"] <= row["value"] <= row["high"]
        assert row["folds"] == 8
    assert sum(n for *_, n in found["calibration"]) == 80
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = results_table(found, "Title")
    assert "n = 40 patients, 4 folds x 2 repetitions" in text
    assert f"| auroc | {found['metrics']['auroc']['value']:.3f} [" in text


def test_the_interval_is_over_patients_not_over_rows(rng):
    # Ten identical repetitions bring no new patient, so they must not narrow the interval.
    once = crossed(rng, repeats=1)
    rows = np.tile(np.arange(40), 10)
    many = once.take(rows)._replace(repeat=np.repeat(np.arange(10), 40))
    a, b = (summarise(p, draws=60)["metrics"]["auroc"] for p in (once, many))
    assert (a["low"], a["high"]) == pytest.approx((b["low"], b["high"]))


def test_a_fold_with_one_class_has_no_auroc_of_its_own(rng):
    p = crossed(rng, repeats=1, folds=2)._replace(fold=np.arange(40) % 2)
    row = summarise(p, draws=50)["metrics"]["auroc"]
    assert row["folds"] == 0
    assert row["fold_mean"] is None
    assert row["value"] is not None


def test_a_difference_needs_no_luck_of_the_draw(rng):
    a = crossed(rng, skill=3.0)
    worse = a.probability.copy()
    worse[:, 1] = np.where(a.label == 1, worse[:, 1] * 0.9, worse[:, 1] * 0.9 + 0.1)
    worse[:, 0] = 1 - worse[:, 1]
    b = a._replace(probability=worse)
    found = paired_difference(a, b, "brier", draws=200)
    assert found.value == pytest.approx(score(a, "brier") - score(b, "brier"))
    assert found.low <= found.value <= found.high < 0
    same = paired_difference(a, a, "auroc", draws=50)
    assert same[:3] == (0, 0, 0)


def test_the_order_of_the_patients_does_not_matter(rng):
    a = crossed(rng)
    b = a.take(rng.permutation(80))
    assert paired_difference(a, b, "auroc", draws=50)[:3] == pytest.approx((0, 0, 0))


def test_other_patients_and_other_metrics_are_refused(rng):
    a = crossed(rng)
    with pytest.raises(InputError, match="different patients"):
        paired_difference(a, a._replace(patient=[f"q{name}" for name in a.patient]), "auroc")
    with pytest.raises(InputError, match="found c_index"):
        score(a, "c_index")
    with pytest.raises(InputError, match="found auroc"):
        score(survived(rng), "auroc")
