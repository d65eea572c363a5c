"""Kappa against published tables and formulas written out by hand; intervals against resampling."""

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.inference.review_agreement import agreement, cohen_kappa, fleiss_kappa

# Fleiss 1971, the worked example of 14 raters, 10 subjects, 5 categories, as it is reprinted everywhere.
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


def pairs(table):
    """Two lists of ratings with this table of counts."""
    first, second = [], []
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            first += [i] * count
            second += [j] * count
    return first, second


def test_cohen_of_a_known_table():
    # 20 both yes, 15 both no, 5 and 10 apart: po = 0.7, pe = 0.5 x 0.6 + 0.5 x 0.4 = 0.5.
    found = cohen_kappa(*pairs([[20, 5], [10, 15]]))
    assert found.observed == pytest.approx(0.7)
    assert found.expected == pytest.approx(0.5)
    assert found.value == pytest.approx(0.4)
    assert (found.cases, found.readers, found.method) == (50, 2, "asymptotic")


def test_cohen_of_three_categories_by_hand():
    # 140 of 200 on the diagonal: po = 0.7; pe = 0.6 x 0.65 + 0.3 x 0.25 + 0.1 x 0.1 = 0.475.
    found = cohen_kappa(*pairs([[106, 10, 4], [22, 28, 10], [2, 12, 6]]))
    assert found.value == pytest.approx(0.225 / 0.525)
    assert found.low == pytest.approx(found.value - 1.959964 * found.se)


def test_plain_standard_error_by_the_formula_written_out(rng):
    table = rng.integers(1, 30, (3, 3))
    p = table / table.sum()
    n, po, rows, cols = table.sum(), np.trace(p), p.sum(1), p.sum(0)
    pe = rows @ cols
    kappa = (po - pe) / (1 - pe)
    a = sum(p[i, i] * (1 - (rows[i] + cols[i]) * (1 - kappa)) ** 2 for i in range(3))
    b = (1 - kappa) ** 2 * sum(p[i, j] * (cols[i] + rows[j]) ** 2 for i in range(3) for j in range(3) if i != j)
    c = (kappa - pe * (1 - kappa)) ** 2
    found = cohen_kappa(*pairs(table))
    assert found.value == pytest.approx(kappa)
    # The unweighted form of the same paper (Eq. 8), another way of writing the variance.
    assert found.se == pytest.approx(np.sqrt((a + b - c) / n) / (1 - pe), rel=1e-9)


def test_quadratic_weights_are_the_intraclass_correlation_of_ranks(rng):
    # Fleiss and Cohen 1973: quadratic kappa = 2 cov / (var + var + difference of means squared), with 1/n.
    first = rng.integers(1, 6, 200)
    second = np.clip(first + rng.integers(-1, 2, 200), 1, 5)
    want = (
        2 * np.cov(first, second, bias=True)[0, 1] / (first.var() + second.var() + (first.mean() - second.mean()) ** 2)
    )
    found = cohen_kappa(first.tolist(), second.tolist(), weights="quadratic")
    assert found.value == pytest.approx(want)
    assert found.name == "cohen-quadratic"


def test_fleiss_of_the_known_table():
    found = fleiss_kappa(FLEISS)
    assert found.observed == pytest.approx(0.378, abs=5e-4)
    assert found.expected == pytest.approx(0.213, abs=5e-4)
    assert found.value == pytest.approx(0.210, abs=5e-4)
    # By the formula of 1979 written out.
    p = FLEISS.sum(0) / FLEISS.sum()
    q = 1 - p
    s = (p * q).sum()
    want = np.sqrt(2 / (10 * 14 * 13)) * np.sqrt(s**2 - (p * q * (q - p)).sum()) / s
    assert found.se == pytest.approx(want)


def test_perfect_chance_and_nothing():
    same = ["accept", "reject", "accept", "reject"]
    assert cohen_kappa(same, same).value == pytest.approx(1.0)
    assert cohen_kappa(["a", "a", "b", "b"], ["a", "b", "a", "b"]).value == pytest.approx(0.0)
    # Everybody always said the same: chance explains it all, and kappa is undefined, not 1.
    assert cohen_kappa(["accept"] * 5, ["accept"] * 5).value is None
    assert fleiss_kappa(np.array([[3, 0], [3, 0]])).value is None
    with pytest.raises(InputError, match="same cases"):
        cohen_kappa([], [])
    with pytest.raises(InputError, match="same cases"):
        cohen_kappa(["a"], ["a", "b"])
    with pytest.raises(InputError, match="same readers"):
        fleiss_kappa(np.array([[2, 1], [1, 1]]))
    with pytest.raises(InputError, match="weights are for numbers"):
        cohen_kappa(["a"], ["b"], weights="quadratic")


def test_the_bootstrap_agrees_with_the_formula_where_cases_are_many(rng):
    first = rng.integers(0, 2, 400)
    second = np.where(rng.random(400) < 0.8, first, 1 - first)
    plain = cohen_kappa(first.tolist(), second.tolist())
    drawn = cohen_kappa(first.tolist(), second.tolist(), bootstrap=True)
    # The ends of 2000 draws scatter by about a twentieth of the interval.
    width = plain.high - plain.low
    assert drawn.low == pytest.approx(plain.low, abs=0.15 * width)
    assert drawn.high == pytest.approx(plain.high, abs=0.15 * width)
    assert drawn == cohen_kappa(first.tolist(), second.tolist(), bootstrap=True)
    three = np.stack([[n, 3 - n] for n in (first + second + rng.integers(0, 2, 400))])
    found = fleiss_kappa(three, bootstrap=True)
    assert found.low < found.value < found.high


def test_agreement_takes_the_cases_that_all_have_decided():
    two = {f"c{n}": {"ann": "accept" if n % 2 else "reject", "bob": "accept" if n % 3 else "reject"} for n in range(12)}
    two["open"] = {"ann": "accept"}
    [found] = agreement(two)
    assert (found.name, found.cases, found.readers, found.method) == ("cohen", 12, 2, "bootstrap")
    three = {case: {**said, "cem": "accept"} for case, said in two.items() if case != "open"}
    [found] = agreement(three)
    assert (found.name, found.cases, found.readers) == ("fleiss", 12, 3)
    assert agreement({"c": {"ann": "accept"}}) == []
    assert agreement({"c1": {"ann": "accept"}, "c2": {"bob": "accept"}}) == []
    assert agreement({}) == []
