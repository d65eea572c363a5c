"""The shipped model of bags: it knows what it was trained on."""

import pytest
import torch

from medseq.errors import ShapeError
from medseq.inference.bundle import load_bundle


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("mil-ucsb")


def test_bags_of_anything_else_are_foreign(bundle, seed):
    model = bundle.build_model()
    g = torch.Generator().manual_seed(seed)
    for features in (torch.randn(30, 708, generator=g), torch.zeros(25, 708), 500 * torch.rand(40, 708, generator=g)):
        with torch.no_grad():
            assert model.distance(model(features).embedding) > model.distance_limit


def test_the_mean_of_its_training_bags_is_not(bundle):
    model = bundle.build_model()
    assert model.distance(model.embedding_mean[None]) < 1e-3


def test_the_operating_point_is_stored(bundle):
    output = bundle.config.output
    assert (output.target, output.classes) == ("class", ["benign", "malignant"])
    assert output.temperature > 0
    assert 0 < output.threshold < 1


def test_other_features_are_refused(bundle):
    with pytest.raises(ShapeError, match="n, 708"):
        bundle.build_model()(torch.zeros(5, 1024))


def test_the_card_says_what_it_is_not(bundle):
    card = " ".join((bundle.folder / "README.md").read_text().split())
    for words in ("Research use only", "n = 58", "not a histology model for slides", "retrain before redistributing"):
        assert words in card
