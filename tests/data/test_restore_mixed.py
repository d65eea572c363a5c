"""One data set for many tasks: weights, turns, the range of the network; and the curve that brings CT there."""

from collections import Counter

import pytest
import torch

from medseq.data.restore import CroppedDataset, PhantomPairs, Sample
from medseq.data.restore_mixed import MixedTasks, TaskSource
from medseq.data.transforms import Identity, RobustScale
from medseq.data.transforms_curve import HounsfieldCurve
from medseq.errors import InputError


class Even(CroppedDataset):
    """Images of one value, scaled by 50."""

    def draw(self, generator):
        image = torch.full((1, self.crop, self.crop), 100.0)
        return Sample(image + torch.randn(image.shape, generator=generator), image, 50.0, "even")


def tasks(weights=(1.0, 3.0)):
    return [
        TaskSource("ct", PhantomPairs(crop=99), HounsfieldCurve(), weights[0]),
        TaskSource("mr", Even(10, 99), RobustScale(), weights[1]),
    ]


def test_tasks_come_by_weight_in_the_range_of_the_network(seed):
    data = MixedTasks(tasks(), length=400, crop=8, seed=seed)
    samples = [data[i] for i in range(400)]
    counts = Counter(sample.case_id for sample in samples)
    # 300 of 400 expected, sd 8.7: five of those.
    assert abs(counts["mr"] - 300) < 44
    for sample in samples[:40]:
        assert sample.image.shape == (1, 8, 8)
        assert sample.scale == 1.0
        if sample.case_id == "mr":
            torch.testing.assert_close(sample.target, torch.full((1, 8, 8), 2.0))


def test_validation_takes_turns_and_repeats(seed):
    data = MixedTasks(tasks(), length=6, crop=8, seed=seed, in_turns=True)
    assert [data[i].case_id for i in range(6)] == ["ct", "mr"] * 3
    assert torch.equal(data[2].image, data[2].image)
    data.crop = 12
    assert data[0].image.shape == data[1].image.shape == (1, 12, 12)
    with pytest.raises(IndexError):
        data[6]


def test_tasks_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="names of their own"):
        MixedTasks([])
    with pytest.raises(InputError, match="positive weights"):
        MixedTasks(tasks((1.0, 0.0)))
    with pytest.raises(InputError, match="names of their own"):
        MixedTasks([TaskSource("a", Even(1, 8), Identity()), TaskSource("a", Even(1, 8), Identity())])


def test_the_curve_comes_back_for_every_value_and_widens_soft_tissue():
    hu = torch.tensor([-5000.0, -1024, -1000, -160, -159, 0, 40, 240, 241, 3072, 30000])[None, None, None]
    curve = HounsfieldCurve()
    seen = curve.apply(hu, {})
    assert (seen.diff() > 0).all()
    assert seen[0, 0, 0, [1, 3, 7, 9]].tolist() == pytest.approx([-0.4, 0.0, 1.0, 2.4], abs=1e-6)
    # What a model leaves alone is kept bit for bit, and what it changes is changed by the slope of the piece.
    assert torch.equal(curve.invert(seen, hu, {}), hu)
    moved = curve.invert(seen + 0.01, hu, {})
    # 0.01 in soft tissue is 4 HU; float32 of 30 000 HU is good to a few thousandths.
    assert float((moved - hu)[0, 0, 0, 5]) == pytest.approx(4.0, abs=1e-3)
    assert ((moved - hu) > 3.9).all()


def test_knots_that_do_not_increase_are_refused():
    with pytest.raises(InputError, match="increase alike"):
        HounsfieldCurve(knots=(0, 0), values=(0, 1))
    with pytest.raises(InputError, match="increase alike"):
        HounsfieldCurve(knots=(0, 1, 2), values=(0, 1))
