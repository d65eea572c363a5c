"""Tables of methods x cases: means, paired intervals, and refusal of unpaired comparisons."""

import csv
import io
import json

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.inference.evaluate import Table, dump


def table(differences, base=None):
    """Method b scores `base`, method a scores base + difference; one list a patient."""
    made = Table("title", "note")
    rng = np.random.default_rng(0)
    for patient, values in differences.items():
        for number, value in enumerate(values):
            floor = rng.normal(30, 5) if base is None else base
            made.add("b", f"{patient}/{number}", patient, {"PSNR": floor, "SSIM": 0.5})
            made.add("a", f"{patient}/{number}", patient, {"PSNR": floor + value, "SSIM": 0.6})
    return made


def test_summary_counts_cases_and_patients():
    found = table({"p": [1.0, 3.0], "q": [5.0]}, base=10.0).summary("a", "PSNR")
    assert (found.mean, found.sd, found.n, found.patients) == (13.0, pytest.approx(2.0), 3, 2)


def test_equal_differences_have_an_interval_of_no_width():
    delta = table({"p": [2.0, 2.0], "q": [2.0], "r": [2.0]}).difference("PSNR", "a", "b")
    assert (delta.mean, delta.low, delta.high, delta.patients) == pytest.approx((2.0, 2.0, 2.0, 3))


def test_pairing_removes_the_spread_between_cases():
    """Cases differ by 5 dB, the difference by 0.1 dB: the paired interval knows only the latter."""
    rng = np.random.default_rng(1)
    delta = table({f"p{i}": [1 + 0.1 * rng.standard_normal()] for i in range(12)}).difference("PSNR", "a", "b")
    assert 0.8 < delta.low < delta.mean < delta.high < 1.2


def test_bootstrap_resamples_patients_not_slices():
    """Two patients with opposite answers, a hundred slices each: nothing is proven."""
    delta = table({"p": [1.0] * 100, "q": [-1.0] * 100}, base=30.0).difference("PSNR", "a", "b")
    assert (delta.low, delta.high) == (-1.0, 1.0)


def test_interval_of_normal_differences_has_the_textbook_width(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(400)
    delta = table({str(i): [v] for i, v in enumerate(values)}, base=0.0).difference("PSNR", "a", "b")
    half = 1.96 * values.std() / np.sqrt(400)
    assert delta.high - delta.mean == pytest.approx(half, rel=0.1)


def test_one_patient_has_no_interval():
    delta = table({"p": [1.0, 2.0]}).difference("PSNR", "a", "b")
    assert delta.mean == pytest.approx(1.5)
    assert np.isnan([delta.low, delta.high]).all()


def test_unpaired_methods_and_double_scores_are_refused():
    made = table({"p": [1.0]})
    made.add("c", "other", "p", {"PSNR": 1.0})
    with pytest.raises(InputError, match="different cases"):
        made.difference("PSNR", "a", "c")
    with pytest.raises(InputError, match="case is scored twice"):
        made.add("c", "other", "p", {"PSNR": 2.0})
    with pytest.raises(InputError, match="no such score"):
        made.summary("d", "PSNR")


def test_best_by_either_direction():
    made = table({"p": [1.0]}, base=10.0)
    assert made.best("PSNR", ["a", "b"]) == "a"
    assert made.best("PSNR", ["a", "b"], larger=False) == "b"


def test_renderings_hold_every_number():
    made = table({"p": [1.0], "q": [2.0]}, base=10.0)
    text = made.markdown(against="b")
    assert "| a | 11.5 ± 0.71 | 0.6 ± 0 | +1.50 [+1.00, +2.00] |" in text
    assert r"a & $11.5 \pm 0.71$ & $0.6 \pm 0$ \\" in made.latex()
    rows = list(csv.DictReader(io.StringIO(made.csv())))
    assert [float(row["PSNR"]) for row in rows if row["method"] == "a"] == [11.0, 12.0]
    made.add("c", "p/0", "p", {"PSNR": float("inf")})
    back = json.loads(dump([made], {"machine": "x"}))
    assert back["machine"] == "x"
    assert back["tables"][0]["scores"][-1]["PSNR"] is None


def test_tables_come_back_from_json_and_lose_methods():
    import json
    import math

    from medseq.inference.evaluate import dump, restored

    table = Table("t", "n = 2")
    for case in ("a", "b"):
        table.add("ours", case, "p", {"NRMSE": 0.1, "residual": float("nan")})
        table.add("theirs", case, "p", {"NRMSE": 0.2, "residual": 0.3})
    back = restored(json.loads(dump([table], {"script": "x"})))["t"]
    assert (back.note, back.methods) == ("n = 2", ["ours", "theirs"])
    assert back.values("theirs", "residual") == {"a": 0.3, "b": 0.3}
    assert all(math.isnan(value) for value in back.values("ours", "residual").values())
    less = back.without(["ours"])
    assert less.methods == ["theirs"]
    assert back.methods == ["ours", "theirs"]
