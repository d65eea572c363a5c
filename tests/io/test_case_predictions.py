"""Predictions as a file: what is read is what was written, and nothing else is read."""

import numpy as np
import pytest

from medseq.errors import FormatError
from medseq.io.case_predictions import CasePredictions, joined, read_predictions, write_predictions


@pytest.fixture
def classes(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), 7)
    return CasePredictions(
        np.zeros(7, int), np.arange(7) % 2, [f"p,{i}" for i in range(7)], rng.integers(3, size=7), p, p.argmax(1)
    )


@pytest.fixture
def survival(seed):
    rng = np.random.default_rng(seed)
    risk, event, months = -4 * rng.random(5), rng.random(5) < 0.5, 100 * rng.random(5)
    label = rng.integers(4, size=5)
    return CasePredictions(np.ones(5, int), np.zeros(5, int), list("abcde"), label, None, None, risk, event, months)


@pytest.mark.parametrize("kind", ["classes", "survival"])
def test_reading_gives_back_every_digit(kind, tmp_path, request):
    made = request.getfixturevalue(kind)
    found = read_predictions(write_predictions(tmp_path / "new" / "p.csv", made))
    assert found.patient == made.patient
    for a, b in zip(found[3:], made[3:], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.csv"]


def test_rows_can_be_taken_and_joined(classes):
    whole = joined([classes.take(np.array([0, 1])), classes.take(np.array([2, 3, 4, 5, 6]))])
    assert whole.patient == classes.patient
    np.testing.assert_array_equal(whole.probability, classes.probability)
    assert whole.risk is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read"),
        ("a,b\n1,2\n", "not a file of predictions"),
        ("repeat,fold,patient,label,call,p0,p1\n", "0 rows"),
        ("repeat,fold,patient,label,call,p0,p1\n0,0,a,1,1,0.5\n", "not a file of predictions"),
        ("repeat,fold,patient,label,call,p0,p1\n0,0,a,1,1,x,0.5\n", "no number"),
        ("repeat,fold,patient,label,call,p0,p1\n0,0,a,1,1,nan,0.5\n", "not finite"),
    ],
)
def test_other_files_are_refused(text, complaint, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=complaint):
        read_predictions(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_predictions(tmp_path / "none.csv")
