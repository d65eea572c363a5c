"""Bags of patients: every slide in it, none twice, drawn by the seed alone, padded without a trace."""

import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medseq.data.mil import BagCase, BagDataset, BagFile, BagSample, collate
from medseq.data.slide_layout import side_by_side
from medseq.data.survival_bins import SurvivalBins
from medseq.errors import FormatError, InputError, ShapeError
from medseq.io.features import Bag


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def grid_bag(rng, name="s", n=12, dim=5, size=256, **more):
    """Some cells of a grid somewhere on a slide."""
    cells = rng.permutation(36)[:n]
    coords = np.stack([cells % 6, cells // 6], 1) * size + rng.integers(0, 5000, 2)
    return Bag(rng.normal(size=(n, dim)).astype("f4"), name, "p", coords, size, **more)


def cohort(rng, patients=12, classes=3):
    return [
        BagCase(f"p{number}", (grid_bag(rng, f"s{number}", int(rng.integers(3, 20))),), label=number % classes)
        for number in range(patients)
    ]


def survivors(rng, patients=40):
    event = rng.permutation(np.repeat([True, False], [patients // 2, patients - patients // 2]))
    return [
        BagCase(f"p{n}", (grid_bag(rng, f"s{n}"),), event=bool(event[n]), months=float(rng.exponential(20)))
        for n in range(patients)
    ]


def same(a, b):
    return torch.equal(a.features, b.features) and torch.equal(a.coords, b.coords) and a[2:] == b[2:]


def test_a_patient_is_all_slides(rng):
    slides = (grid_bag(rng, "a", 7), grid_bag(rng, "b", 3), grid_bag(rng, "c", 5))
    data = BagDataset([BagCase("p", slides, label=1)], "val")
    found = data[0]
    assert torch.equal(found.features, torch.cat([torch.from_numpy(bag.features) for bag in slides]))
    assert torch.equal(found.coords, torch.from_numpy(side_by_side(slides)))
    assert (found.label, found.event, found.time, found.patient_id) == (1, None, None, "p")
    assert (data.width, data.encoder, len(data)) == (5, None, 1)
    with pytest.raises(IndexError):
        data[1]
    # What is done to a sample is not done to the bag.
    found.features.zero_()
    assert slides[0].features.any()


@pytest.mark.parametrize("sizes", [(256, 256, 256), (256, 512, 128)])
def test_slides_lie_side_by_side_on_one_grid(rng, sizes):
    bags = [grid_bag(rng, str(size), 12, size=size) for size in sizes]
    coords = side_by_side(bags)
    assert coords.dtype == np.int64
    # One cell of the first slide's patches holds one patch, and slides keep their form.
    cells = np.rint((coords - coords.min(axis=0)) / sizes[0]).astype(int)
    assert len(np.unique(cells, axis=0)) == 36
    right = -1
    for number, bag in enumerate(bags):
        own = cells[12 * number : 12 * number + 12]
        form = np.rint((bag.coords - bag.coords.min(axis=0)) / bag.patch_size_level0).astype(int)
        assert np.array_equal(own - own.min(axis=0), form)
        assert own[:, 0].min() >= right + (2 if number else 1)
        right = own[:, 0].max()
    assert np.array_equal(coords[:12], bags[0].coords)
    assert side_by_side(bags[:1]) is bags[0].coords


def test_without_a_patch_size_the_spacing_decides_and_without_coords_there_are_none(rng):
    bags = [grid_bag(rng, "a"), grid_bag(rng, "b")]
    bare = [Bag(bag.features, bag.slide_id, "p", bag.coords) for bag in bags]
    coords = side_by_side(bare)
    assert coords[12:, 0].min() > coords[:12, 0].max()
    assert len(np.unique(coords, axis=0)) == 24
    assert side_by_side([bags[0], Bag(bags[1].features, "b", "p")]) is None
    lone = Bag(bags[0].features[:1], "c", "p", np.array([[7, 9]]))
    assert len(np.unique(side_by_side([lone, lone]), axis=0)) == 2


def test_training_draws_every_case_once_an_epoch_in_its_own_order(rng, seed):
    cases = cohort(rng)
    data = BagDataset(cases, "train", max_instances=5, seed=seed)
    first = [data[i] for i in range(12)]
    assert {sample.patient_id for sample in first} == {case.patient_id for case in cases}
    assert all(len(sample.features) <= 5 for sample in first)
    data.epoch = 1
    second = [data[i] for i in range(12)]
    assert [s.patient_id for s in first] != [s.patient_id for s in second]
    # A resumed run sees the same, whatever was read before.
    again = BagDataset(cases, "train", max_instances=5, seed=seed)
    again.epoch = 1
    assert same(again[7], second[7])
    assert not all(same(a, b) for a, b in zip(second, [again[i] for i in (1, *range(1, 12))], strict=True))


def test_a_drawn_bag_keeps_its_order_and_its_coords(rng):
    bags = (grid_bag(rng, "a", 30), grid_bag(rng, "b", 30))
    case = BagCase("p", bags, label=0)
    whole = BagDataset([case], "val")[0]
    part = BagDataset([case], "train", max_instances=25)[0]
    rows = [int((whole.features == row).all(1).nonzero()[0]) for row in part.features]
    assert len(rows) == 25
    assert rows == sorted(set(rows))
    assert torch.equal(part.coords, whole.coords[rows])
    assert len(BagDataset([case], "val", max_instances=25)[0].features) == 60


def test_balanced_training_draws_classes_equally_often(rng):
    cases = [BagCase(f"p{n}", (grid_bag(rng),), label=int(n >= 36)) for n in range(40)]
    data = BagDataset(cases, "train", balanced=True, length=2000)
    drawn = np.array([data.labels[data._place(index)] for index in range(2000)])
    # 2000 draws of a fair coin: 6 standard deviations are 134.
    assert abs(int(drawn.sum()) - 1000) < 134
    assert len(data) == 2000


def test_balanced_survival_counts_bins_and_events_apart(rng):
    cases = survivors(rng)
    bins = SurvivalBins.fit([c.months for c in cases], [c.event for c in cases])
    data = BagDataset(cases, "train", bins=bins, balanced=True, length=1500)
    groups = 2 * data.labels + ~data.events
    counts = np.bincount(np.array([groups[data._place(index)] for index in range(1500)]))
    counts = counts[counts > 0]
    assert len(counts) == len(np.unique(groups))
    assert counts.min() > 0.5 * counts.max()


def test_survival_samples(rng):
    cases = survivors(rng)
    bins = SurvivalBins.fit([c.months for c in cases], [c.event for c in cases])
    data = BagDataset(cases, "val", bins=bins)
    batch = collate([data[3], data[4]])
    assert batch.event.tolist() == [cases[3].event, cases[4].event]
    assert batch.event.dtype == torch.bool
    assert batch.time.tolist() == pytest.approx([cases[3].months, cases[4].months], rel=1e-6)  # float32
    assert batch.label.tolist() == bins.index(np.array([cases[3].months, cases[4].months])).tolist()
    with pytest.raises(InputError, match="survival needs time bins"):
        BagDataset(cases)
    with pytest.raises(InputError, match="all alike"):
        BagDataset([*cases, BagCase("q", (grid_bag(rng),), label=1)], bins=bins)


def test_batches_are_padded_at_their_end(rng):
    data = BagDataset(cohort(rng), "val")
    samples = [data[i] for i in range(4)]
    batch = collate(samples)
    assert batch.features.dtype == torch.float32
    assert batch.lengths.tolist() == [len(sample.features) for sample in samples]
    for number, sample in enumerate(samples):
        n = len(sample.features)
        assert torch.equal(batch.features[number, :n], sample.features)
        assert torch.equal(batch.coords[number, :n], sample.coords)
        assert not batch.features[number, n:].any()
        assert not batch.coords[number, n:].any()
    assert batch.label.tolist() == [0, 1, 2, 0]
    assert (batch.event, batch.time) == (None, None)
    assert batch.patient_id == ["p0", "p1", "p2", "p3"]
    bare = samples[0]._replace(coords=None)
    assert collate([samples[1], bare]).coords is None
    with pytest.raises(ShapeError, match=r"different widths \(found \[5, 6\]"):
        collate([bare, BagSample(torch.zeros(2, 6), None, 0, None, None, "q")])


def test_loader_processes_see_the_same(rng, tmp_path):
    for number in range(4):
        bag = grid_bag(rng)
        np.savez(tmp_path / f"s{number}.npz", features=bag.features, coords=bag.coords)
    cases = [
        BagCase(f"p{number}", (BagFile(tmp_path / f"s{number}.npz", f"s{number}", f"p{number}"),), label=number % 2)
        for number in range(4)
    ]
    data = BagDataset(cases, "train", max_instances=6)
    here, there = multiprocessing.Pipe()
    here.send(data)
    again = there.recv()
    assert all(same(data[i], again[i]) for i in range(4))
    loaded = list(DataLoader(data, 2, collate_fn=collate))
    assert torch.equal(torch.cat([b.features for b in loaded]), torch.stack([data[i].features for i in range(4)]))
    assert [name for b in loaded for name in b.patient_id] == [data[i].patient_id for i in range(4)]


def test_bags_that_do_not_go_together_are_refused(rng):
    def case(name, bag):
        return BagCase(name, (bag,), label=0)

    first = grid_bag(rng, encoder="uni")
    data = BagDataset(
        [
            case("a", first),
            case("b", grid_bag(rng, dim=6, encoder="plip")),
            case("c", grid_bag(rng, encoder="plip")),
            case("d", Bag(first.features, "SMITH", "SMITH")),
        ],
        "val",
        need_coords=True,
    )
    assert data.encoder == "uni"
    with pytest.raises(ShapeError, match="found 6 of encoder 'plip', wanted 5 of encoder 'uni'"):
        data[1]
    with pytest.raises(InputError, match="different encoders.*found plip, wanted uni"):
        data[2]
    with pytest.raises(InputError, match="has no coordinates.*HDF5") as raised:
        data[3]
    assert "SMITH" not in str(raised.value)


def test_nan_names_the_rows_of_the_slide(rng):
    bag = grid_bag(rng, n=20)
    bag.features[13] = np.nan
    data = BagDataset([BagCase("p", (grid_bag(rng), bag), label=0)], "val")
    with pytest.raises(FormatError, match="slide id-.*1 of 20 instances read: rows 13"):
        data[0]


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [(0, {}, "role test: no cases in this part"), (3, {"max_instances": 0}, "max_instances.*found 0")],
)
def test_arguments_that_cannot_be(rng, cases, options, message):
    with pytest.raises(InputError, match=message):
        BagDataset(cohort(rng, cases), "test", **options)


def test_folds_keep_the_slides_of_a_patient_together(rng):
    # Every slide is a case of its own here.
    cases = [BagCase(f"p{n // 2}", (grid_bag(rng, f"s{n}"),), label=(n // 2) % 2) for n in range(40)]
    data = BagDataset(cases, "all", max_instances=4, balanced=True)
    for fold in data.folds(5, rng, repeats=2):
        train, val, test = data.divided(fold)
        assert sum(map(len, (train, val, test))) == 40
        owners = [set(part.patient_ids) for part in (train, val, test)]
        assert sum(map(len, owners)) == 20
        assert [part.role for part in (train, val, test)] == ["train", "val", "test"]
        assert all(set(part.labels) == {0, 1} for part in (train, val, test))
        assert (train.max_instances, train.balanced) == (4, True)


def test_survival_folds_take_their_bins_from_their_training_part(rng):
    cases = survivors(rng)
    everyone = SurvivalBins.fit([c.months for c in cases], [c.event for c in cases], 3)
    data = BagDataset(cases, "all", bins=everyone)
    for fold in data.folds(4, rng):
        train, val, test = data.divided(fold)
        own = SurvivalBins.fit(train.times, train.events, 3)
        assert train.bins == val.bins == test.bins == own
        assert np.array_equal(test.labels, own.index(test.times))
        assert all(part.events.any() for part in (train, val, test))
