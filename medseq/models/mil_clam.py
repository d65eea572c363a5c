"""CLAM with a single attention branch: gated attention, and a classifier of instances that sharpens it.

The instance classifiers learn from the instances that get the most and the least attention
(`medseq.tasks.mil` holds that loss); they need no labels of patches and are not used for prediction.

Reference:
    Lu et al., Data-efficient and weakly supervised computational pathology on whole-slide images, Nature Biomedical
    Engineering 5, 2021.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medseq.nn.attention_pool import AttentionPool
from medseq.nn.mil import Bags, MILOutput

__all__ = ["CLAM"]


class CLAM(nn.Module):
    """CLAM-SB.

    Args:
        in_dim: Width of the patch features.
        n_classes: Logits; time bins for survival.
        d_model: Width of the projected instances.
        attention_dim: Hidden width of the gated attention.
        dropout: Share of projected features and of attention units that are dropped in training.
    """

    def __init__(
        self,
        in_dim: int = 1024,
        n_classes: int = 2,
        d_model: int = 512,
        attention_dim: int = 256,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.embed = nn.Sequential(nn.Linear(in_dim, d_model), nn.ReLU(), nn.Dropout(dropout))
        self.attention = AttentionPool(d_model, attention_dim, True, dropout)
        self.classifier = nn.Linear(d_model, n_classes)
        self.instance_classifiers = nn.Linear(d_model, 2 * n_classes)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`.

        `instance_logits` are ``(batch, n, classes, 2)``: whether an instance is evidence of a class.
        """
        bags = Bags.of(features, self.in_dim, coords, lengths)
        h = self.embed(bags.features)
        embedding, attention = self.attention(h, bags.mask)
        instances = self.instance_classifiers(h).unflatten(-1, (-1, 2))
        return MILOutput(self.classifier(embedding), attention, instances, embedding)


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"in_dim": 12, "d_model": 16, "attention_dim": 8, "dropout": 0.0}
    return {"binary": CLAM(**small), "three": CLAM(n_classes=3, **small)}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"features": torch.randn(2, 11, 12), "lengths": torch.tensor([11, 7])}
