"""Predictions of bags and patients."""

import numpy as np
import pytest
import torch

from medseq.data.mil import MILBatch
from medseq.errors import InputError
from medseq.tasks.mil_predictions import Predictions, balanced_weights, operating_point, scores


def made(patients, label, p):
    p = np.asarray(p, float)
    return Predictions(patients, np.asarray(label), np.c_[1 - p, p])


def test_slides_of_a_patient_count_once():
    by_slide = made(["a", "b", "a", "a"], [1, 0, 1, 1], [0.9, 0.2, 0.1, 0.8])
    found = by_slide.by_patient()
    assert found.patient == ["a", "b"]
    np.testing.assert_allclose(found.probability[:, 1], [0.6, 0.2])
    np.testing.assert_array_equal(found.label, [1, 0])


def test_slides_that_disagree_are_refused_without_naming_the_patient():
    with pytest.raises(InputError, match="different labels") as caught:
        made(["Meyer", "Meyer"], [1, 0], [0.9, 0.2]).by_patient()
    assert "Meyer" not in str(caught.value)


def test_survival_from_logits():
    g = torch.Generator().manual_seed(1)
    event, time = torch.tensor([True, False, True]), torch.tensor([3.0, 9.0, 6.0])
    label = torch.tensor([0, 2, 1])
    batch = MILBatch(torch.zeros(3, 1, 1), torch.ones(3), None, label, event, time, ["a", "b", "c"])
    logits = torch.randn(3, 4, generator=g)
    logits[0] += 5
    logits[1] -= 5
    found = Predictions.of(logits, batch, "survival")
    assert scores(found) == {"c_index": 1.0}
    assert found.probability.shape == (3, 5)
    assert operating_point(found) == {}
    with pytest.raises(InputError, match="events and times"):
        Predictions.of(logits, batch._replace(time=None), "survival")


def test_the_operating_point_is_that_of_the_calibrated_probability(seed):
    rng = np.random.default_rng(seed)
    true = rng.random(4000)
    label = (rng.random(4000) < true).astype(int)
    odds = 3 * np.log(true / (1 - true))
    seen = made([str(i) for i in range(4000)], label, 1 / (1 + np.exp(-odds)))
    point = operating_point(seen)
    # 4000 cases fix a temperature to about 3 %, and the best threshold, a half, to about 0.1.
    assert point["temperature"] == pytest.approx(3, rel=0.15)
    assert point["threshold"] == pytest.approx(0.5, abs=0.2)
    calls = seen.calibrated(point["temperature"]).calls(point["threshold"])
    assert np.mean(calls == label) > 0.7


def test_one_class_has_no_threshold_and_no_auroc():
    seen = made(["a", "b"], [1, 1], [0.9, 0.8])
    assert operating_point(seen).keys() == {"temperature"}
    assert np.isnan(scores(seen)["auroc"])


def test_joining_nothing_is_refused():
    with pytest.raises(InputError, match="no predictions"):
        Predictions.joined([])


def test_balanced_weights_have_mean_one(seed):
    label = np.random.default_rng(seed).permutation([0] * 5 + [1] * 20 + [2] * 3)
    weights = balanced_weights(label).numpy()
    assert weights[label].mean() == pytest.approx(1)
    assert weights[0] * 5 == pytest.approx(weights[1] * 20)
    with pytest.raises(InputError, match=r"\[2, 0, 1\]"):
        balanced_weights(np.array([0, 0, 2]))
