"""Attribution against models whose answer is known."""

import pytest
import torch

from medseq.errors import InputError
from medseq.inference.mil_attribution import gradient, occlusion
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_pooling import LinearProbe


def logit(out):
    return out.logits[0, 1]


@pytest.fixture
def bag(seed):
    torch.manual_seed(seed)
    return torch.randn(30, 12)


def test_of_a_linear_model_both_are_exact(bag):
    model = LinearProbe(12).eval()
    own = bag @ model.classifier.weight[1] / 30
    torch.testing.assert_close(gradient(model, bag, None, logit), own.detach())
    # Without patch i the mean is over the other 29.
    total = own.sum()
    without = (total - own) * 30 / 29
    torch.testing.assert_close(occlusion(model, bag, None, logit, groups=30), (total - without).detach())


def test_groups_are_neighbours_on_the_slide(bag):
    coords = 256 * torch.stack([torch.arange(30) % 6, torch.arange(30) // 6], 1)[torch.randperm(30)]
    drop = occlusion(ABMIL(12, d_model=16, attention_dim=8).eval(), bag, coords, logit, groups=5)
    for value in drop.unique():
        members = coords[drop == value] // 256
        assert len(members) == 6
        assert (members.amax(0) - members.amin(0)).sum() <= 6


def test_one_patch_cannot_be_taken_out(bag):
    with pytest.raises(InputError, match="one patch"):
        occlusion(LinearProbe(12), bag[:1], None, logit)
