"""Cross-validation: every case tested once, classes shared out evenly, three parts that never meet."""

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.io.folds import stratified_folds, survival_strata


@pytest.mark.parametrize(("folds", "repeats"), [(2, 1), (5, 3), (10, 2)])
def test_folds_cover_every_case_once_and_share_the_classes(rng, folds, repeats):
    strata = rng.permutation(np.repeat([0, 1, 2], [26, 32, 11]))
    found = stratified_folds(strata, folds, rng, repeats=repeats)
    assert [(fold.repeat, fold.fold) for fold in found] == [(r, f) for r in range(repeats) for f in range(folds)]
    for repeat in range(repeats):
        tested = np.concatenate([fold.test for fold in found if fold.repeat == repeat])
        assert np.array_equal(np.sort(tested), np.arange(len(strata)))
    for fold in found:
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.val, fold.test])), np.arange(len(strata)))
        for value, count in zip(*np.unique(strata, return_counts=True), strict=True):
            in_test = int((strata[fold.test] == value).sum())
            assert in_test in (count // folds, -(-count // folds))
            in_val = int((strata[fold.val] == value).sum())
            assert in_val == max(1, round(0.2 * (count - in_test)))
        assert len(fold.test) in (len(strata) // folds, len(strata) // folds + 1)


def test_the_generator_decides(seed):
    strata = np.arange(40) % 2
    same = [stratified_folds(strata, 5, np.random.default_rng(seed), repeats=2) for _ in range(2)]
    for first, second in zip(*same, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(same[0][0].test, same[0][5].test)


@pytest.mark.parametrize(
    ("counts", "folds", "message"),
    [
        ((30, 4), 5, "absent from a fold.*found 4 of class 1, wanted at least 5"),
        ((30, 3), 2, "found 3 of class 1, wanted at least 4"),
        ((), 5, "found 0 cases"),
        ((30, 30), 1, "no such cross-validation"),
    ],
)
def test_a_class_that_would_be_absent_is_refused(rng, counts, folds, message):
    with pytest.raises(InputError, match=message):
        stratified_folds(np.repeat(np.arange(len(counts)), counts), folds, rng)


def test_the_smallest_classes_that_are_admitted_are_in_every_part(rng):
    for folds in range(2, 8):
        strata = np.repeat([0, 1], [max(folds, 4 if folds == 2 else 3), 29])
        for fold in stratified_folds(strata, folds, rng):
            assert all(set(strata[part]) == {0, 1} for part in (fold.train, fold.val, fold.test))


def test_rare_classes_are_dealt_out_where_that_is_allowed(rng):
    strata = np.repeat([0, 1], [30, 2])
    found = stratified_folds(strata, 5, rng, allow_rare=True)
    assert sum(int((strata[fold.test] == 1).sum()) for fold in found) == 2


@pytest.mark.parametrize("censored", [0, 2, 40])
def test_every_survival_fold_has_an_event(rng, censored):
    event = rng.permutation(np.repeat([True, False], [11, censored]))
    months = rng.exponential(20, len(event))
    strata = survival_strata(event, months, 5)
    assert all(len(set(event[strata == value])) == 1 for value in strata)
    for fold in stratified_folds(strata, 5, rng, allow_rare=True):
        assert all(event[part].any() for part in (fold.train, fold.val, fold.test))


def test_strata_follow_the_time(rng):
    event, months = np.ones(100, bool), rng.exponential(20, 100)
    strata = survival_strata(event, months, 5)
    assert sorted(np.bincount(strata)) == [25, 25, 25, 25]
    assert all(months[strata == a].max() <= months[strata == a + 1].min() for a in range(3))


def test_an_all_censored_fold_is_refused(rng):
    with pytest.raises(InputError, match="all censored.*found 4 events, wanted at least 5"):
        survival_strata(np.arange(50) < 4, np.ones(50), 5)
