"""Temperature and threshold: what was distorted is found again."""

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.ops.calibration import at_temperature, fit_temperature, fit_threshold


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_temperature_divides_the_logits(rng, classes):
    logits = rng.normal(0, 3, (7, classes))
    np.testing.assert_allclose(at_temperature(softmax(logits), 2.5), softmax(logits / 2.5), rtol=1e-9)


@pytest.mark.parametrize("wrong", [0.4, 1.0, 3.0])
def test_the_temperature_of_an_overconfident_model_is_found(rng, wrong):
    logits = rng.normal(0, 1.5, (20_000, 3))
    label = (softmax(logits).cumsum(1) < rng.random((20_000, 1))).sum(1)
    # 20 000 cases fix it to about 1.5 %.
    assert fit_temperature(label, softmax(logits * wrong)) == pytest.approx(wrong, rel=0.08)


def test_a_handful_of_cases_without_a_mistake_gives_no_extreme_temperature():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.3, 0.7]])
    assert 0.3 < fit_temperature(np.array([0, 1, 0, 1]), p) < 3


def test_the_threshold_has_the_best_balanced_accuracy(rng):
    p = rng.random(60).round(2)
    label = (p + rng.normal(0, 0.3, 60) > 0.6).astype(int)

    def index(t):
        return (p[label == 1] >= t).mean() + (p[label == 0] < t).mean()

    found = fit_threshold(label, p)
    assert index(found) == pytest.approx(max(index(t) for t in np.linspace(-0.005, 1.005, 102)))


def test_of_equal_thresholds_the_one_nearest_a_half_is_taken():
    assert fit_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.9, 0.95])) == 0.5
    assert fit_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.95])) == pytest.approx(0.25)


def test_one_class_has_no_threshold():
    with pytest.raises(InputError, match="3 of class 1, 0 of class 0"):
        fit_threshold(np.ones(3, int), np.array([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match="no case"):
        fit_temperature(np.array([], int), np.zeros((0, 2)))
