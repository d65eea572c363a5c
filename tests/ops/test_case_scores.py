"""Scores over cases: each against its definition by brute force, or against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from medseq.errors import InputError, ShapeError
from medseq.ops.case_scores import (
    auroc,
    balanced_accuracy,
    brier,
    concordance_index,
    expected_calibration_error,
    f1,
    mean_by_case,
    reliability,
)


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def drawn(rng, n, classes):
    """Labels that hold every class, and probabilities with ties."""
    label = rng.permutation(np.arange(n) % classes)
    p = rng.dirichlet(np.ones(classes), n).round(1) + 0.01
    return label, p / p.sum(1, keepdims=True)


def test_auroc_of_two_classes(rng):
    label, p = drawn(rng, 60, 2)
    assert auroc(label, p) == pytest.approx(metrics.roc_auc_score(label, p[:, 1]))


def test_auroc_of_more_classes(rng):
    label, p = drawn(rng, 60, 4)
    assert auroc(label, p) == pytest.approx(metrics.roc_auc_score(label, p, multi_class="ovr"))


def test_auroc_of_one_class_is_undefined():
    assert np.isnan(auroc(np.ones(4, int), np.full((4, 2), 0.5)))


def test_a_class_without_cases_is_left_out_of_the_mean(rng):
    label, p = drawn(rng, 40, 2)
    wide = np.c_[p, np.zeros(40)]
    assert auroc(label, wide) == pytest.approx(auroc(label, p))


def test_calls(rng):
    label, p = drawn(rng, 60, 3)
    call = p.argmax(1)
    assert balanced_accuracy(label, call) == pytest.approx(metrics.balanced_accuracy_score(label, call))
    assert f1(label, call, 3) == pytest.approx(metrics.f1_score(label, call, average="macro"))
    assert f1(label == 1, call == 1, 2) == pytest.approx(metrics.f1_score(label == 1, call == 1))
    assert f1(np.zeros(3, int), np.zeros(3, int), 2) == 0


def test_brier(rng):
    label, p = drawn(rng, 60, 2)
    assert brier(label, p) == pytest.approx(metrics.brier_score_loss(label, p[:, 1]))
    label, p = drawn(rng, 60, 3)
    assert brier(label, p) == pytest.approx(
        np.mean([np.sum((q - np.eye(3)[y]) ** 2) for y, q in zip(label, p, strict=True)])
    )


def test_calibration_error_by_hand():
    label = np.array([1, 0, 1, 1, 0])
    p = np.array([0.9, 0.9, 0.95, 0.15, 0.2])
    # Bins closed above: (0.8, 0.9] holds two, (0.9, 1] one, (0.1, 0.2] two.
    expected = (2 * abs(0.9 - 0.5) + abs(0.95 - 1) + 2 * abs(0.175 - 0.5)) / 5
    both = np.c_[1 - p, p]
    assert expected_calibration_error(label, both) == pytest.approx(expected)
    assert [n for *_, n in reliability(label, both)] == [2, 2, 1]


def test_probabilities_that_come_true_are_calibrated(rng):
    p = rng.random(200_000)
    label = (rng.random(200_000) < p).astype(int)
    # Ten bins of 20 000: the share in each deviates by 0.0035 at most (one sd), 0.003 on average.
    assert expected_calibration_error(label, np.c_[1 - p, p]) < 0.01
    assert expected_calibration_error(label, np.c_[1 - p**2, p**2]) > 0.1


def brute_concordance(event, time, risk, tol=1e-8):
    score, pairs = 0.0, 0
    for i in range(len(time)):
        for j in range(len(time)):
            known = event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j]))
            if known:
                pairs += 1
                gap = risk[i] - risk[j]
                score += 0.5 if abs(gap) <= tol else float(gap > 0)
    return score / pairs


def test_concordance_is_the_definition(rng):
    for _ in range(20):
        # Few different times and risks: many ties of both kinds.
        n = int(rng.integers(5, 40))
        event, time, risk = (
            rng.random(n) < 0.6,
            rng.integers(1, 8, n).astype(float),
            rng.integers(0, 5, n).astype(float),
        )
        event[0], time[0], time[1] = True, 0.5, 3.0
        assert concordance_index(event, time, risk) == pytest.approx(brute_concordance(event, time, risk))


def test_concordance_of_a_perfect_and_an_inverted_risk(rng):
    time = rng.random(30)
    event = np.ones(30, bool)
    assert concordance_index(event, time, -time) == 1
    assert concordance_index(event, time, time) == 0
    assert concordance_index(event, time, np.zeros(30)) == 0.5
    assert concordance_index(event, time, 1e-9 * time) == 0.5


def test_concordance_without_events_is_undefined(rng):
    assert np.isnan(concordance_index(np.zeros(5, bool), rng.random(5), rng.random(5)))


def test_means_of_the_bags_of_a_case():
    names, (a, b) = mean_by_case(["x", "y", "x"], np.array([1.0, 5.0, 3.0]), np.array([[1, 0], [0, 1], [0, 1.0]]))
    assert names == ["x", "y"]
    np.testing.assert_allclose(a, [2, 5])
    np.testing.assert_allclose(b, [[0.5, 0.5], [0, 1]])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="one value a case"):
        auroc(np.zeros(3, int), np.full((2, 2), 0.5))
    with pytest.raises(ShapeError, match="case, class"):
        brier(np.zeros(3, int), np.zeros(3))
    with pytest.raises(InputError, match="0 to 5"):
        brier(np.array([0, 5]), np.full((2, 2), 0.5))
    with pytest.raises(InputError, match="finite"):
        auroc(np.array([0, 1]), np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="finite"):
        concordance_index(np.ones(2, bool), np.array([1, np.nan]), np.zeros(2))
