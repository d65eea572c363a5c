"""What a model keeps of its training bags: the scale of the features and the spread of the embeddings."""

import numpy as np
import pytest
import torch

from medseq.errors import InputError, ShapeError
from medseq.models.mil_fitted import FittedMIL
from medseq.models.mil_pooling import LinearProbe


@pytest.fixture
def bags(seed):
    g = torch.Generator().manual_seed(seed)
    scale, shift = torch.rand(6, generator=g) * 50 + 1, torch.randn(6, generator=g) * 100
    return [torch.randn(n, 6, generator=g) * scale + shift for n in (5, 1, 30)]


def fitted(bags, **options):
    model = FittedMIL(LinearProbe(in_dim=6), feature_dim=6, embedding_dim=6, **options)
    model.fit_features(bags)
    return model


@pytest.mark.parametrize("compress", [False, True])
def test_training_features_get_mean_zero_and_spread_one(bags, compress):
    every = fitted(bags, compress=compress).standardised(torch.cat(bags)).double()
    # Buffers are float32: seven digits of a mean of some hundreds, in units of a spread of 1 to 50.
    torch.testing.assert_close(every.mean(0), torch.zeros(6).double(), rtol=0, atol=2e-4)
    torch.testing.assert_close(every.std(0, correction=0), torch.ones(6).double(), rtol=2e-4, atol=0)


def test_a_feature_that_never_varied_says_nothing(bags):
    for bag in bags:
        bag[:, 2] = 1234.5
    model = fitted(bags)
    strange = torch.full((3, 6), 7.0)
    assert (model.standardised(strange)[:, 2] == 0).all()


def test_features_pass_unchanged_where_it_was_asked(bags):
    model = fitted(bags, standardise=False)
    assert torch.equal(model.standardised(bags[0]), bags[0])


def test_padding_stays_without_effect(bags):
    model = fitted(bags).eval()
    batch = torch.nn.utils.rnn.pad_sequence(bags, batch_first=True)
    whole = model(batch, lengths=torch.tensor([5, 1, 30])).logits
    # Other sizes, other blockings of the sums: rounding only.
    torch.testing.assert_close(whole[:1], model(bags[0]).logits, rtol=1e-4, atol=1e-5)


def test_foreign_bags_are_far(seed):
    rng = np.random.default_rng(seed)
    model = FittedMIL(LinearProbe(in_dim=6), feature_dim=6, embedding_dim=6, rank=3)
    known, held = rng.normal(0, 1, (40, 6)), rng.normal(0, 1, (20, 6))
    model.fit_embeddings(known, held)
    limit = float(model.distance_limit)
    assert model.distance(torch.from_numpy(held)).max() <= limit * (1 + 1e-5)
    assert (model.distance(torch.from_numpy(held) + 30) > limit).all()
    again = FittedMIL(LinearProbe(in_dim=6), feature_dim=6, embedding_dim=6, rank=3)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.distance(torch.from_numpy(held)), model.distance(torch.from_numpy(held)))


def test_without_fitting_there_is_no_distance():
    with pytest.raises(InputError, match="does not know its training bags"):
        FittedMIL(LinearProbe(in_dim=6), feature_dim=6, embedding_dim=6).distance(torch.zeros(1, 6))


def test_what_does_not_fit_is_refused(bags):
    model = FittedMIL(LinearProbe(in_dim=6), feature_dim=6, embedding_dim=4)
    with pytest.raises(ShapeError, match="found 5, wanted 6"):
        model.fit_features([bags[0][:, :5]])
    with pytest.raises(InputError, match="not all finite"):
        model.fit_features([bags[0] / 0])
    with pytest.raises(InputError, match="none"):
        model.fit_features([])
    with pytest.raises(ShapeError, match="found 4, wanted 6"):
        model.fit_embeddings(np.zeros((3, 6)), np.zeros((3, 6)))
    with pytest.raises(ShapeError, match="n, 6"):
        model(bags[0][:, :5])
