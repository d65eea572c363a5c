"""The uncertainty map: zero where a model does not care how the image lies, and written beside the result."""

import numpy as np
import pytest
import torch

from medseq.inference.restore import RestorePredictor
from medseq.inference.views import VIEWS, single_view, view_spread
from medseq.io.volume import Volume
from medseq.models.restore_ensemble import RotationAverage
from medseq.models.restore_unet import RestoreUNet
from tests.inference.memory_sink import MemorySink


def test_the_eight_views_are_all_different():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    seen = []
    view_spread(lambda view: seen.append(view.flatten().tolist()) or view, image)
    assert len({tuple(values) for values in seen}) == len(VIEWS) == 8


def test_the_spread_is_that_of_the_answers_turned_back(seed):
    image = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(seed))
    # Equivariant: no spread at all.
    assert view_spread(lambda view: 3 * view + 1, image).abs().max() < 1e-6

    def brighter_left_column(view):
        view = view.clone()
        view[..., 0] += 8.0
        return view

    # Each border column or row is the left one in two of eight views: p = 1/4, sd = 8 sqrt(p (1 - p)); corners 1/2.
    spread = view_spread(brighter_left_column, image)
    torch.testing.assert_close(spread[0, 0, 0, 1:-1], torch.full((4,), 8 * (3 / 16) ** 0.5))
    torch.testing.assert_close(spread[0, 0, 0, 0], torch.tensor(4.0))
    assert spread[0, 0, 1:-1, 1:-1].abs().max() < 1e-6


def test_an_average_over_turns_is_looked_through():
    net = RestoreUNet(1, 1, (4,), (1,))
    assert single_view(RotationAverage(net)) is net
    assert single_view(net) is net


@pytest.fixture
def volume(rng):
    array = rng.normal(40, 20, (3, 20, 24)).astype(np.float32)
    mask = np.ones(array.shape, dtype=bool)
    mask[:, :5] = False
    header = Volume.from_array(array, modality="CT", units="HU").header
    return Volume(header, array, mask)


def test_it_is_written_as_its_own_role_and_does_not_change_the_result(ct_bundle, volume):
    plain, sink = MemorySink(), MemorySink()
    RestorePredictor(ct_bundle).predict(volume, plain)
    prediction = RestorePredictor(ct_bundle, uncertainty=True).predict(volume, sink)
    assert [output.role for output in prediction.outputs] == ["result", "uncertainty"]
    np.testing.assert_array_equal(sink.array(), plain.array())
    spread = sink.array("uncertainty")
    assert (spread[:, :5] == 0).all()
    assert spread[:, 5:].min() >= 0
    assert prediction.metrics["uncertainty"] == pytest.approx(spread[:, 5:].mean(), rel=1e-4)
    assert prediction.metrics["uncertainty"] > 0


def test_it_follows_strength_and_the_bundle_may_ask_for_it(make, tmp_path, volume):
    inference = {"tile": 64, "overlap": 0.25, "batch": 4, "uncertainty": True}
    bundle, sinks = make.bundle(tmp_path / "says-so", inference=inference), [MemorySink(), MemorySink()]
    for strength, sink in zip((1.0, 0.25), sinks, strict=True):
        RestorePredictor(bundle, strength=strength).predict(volume, sink)
    whole, quarter = (sink.array("uncertainty") for sink in sinks)
    # float32 rounding of values around 40 in the blend.
    np.testing.assert_allclose(quarter, whole / 4, atol=1e-4)
    refused = MemorySink()
    prediction = RestorePredictor(bundle, uncertainty=False).predict(volume, refused)
    assert [output.role for output in prediction.outputs] == ["result"]
