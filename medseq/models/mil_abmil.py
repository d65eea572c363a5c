"""Attention-based multiple-instance learning (ABMIL): each instance is projected alone, attention pools them.

Reference:
    Ilse et al., Attention-based deep multiple instance learning, arXiv:1802.04712.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medseq.nn.attention_pool import AttentionPool
from medseq.nn.mil import Bags, MILOutput

__all__ = ["ABMIL"]


class ABMIL(nn.Module):
    """Projection, (gated) attention pooling, linear classifier. The order of the instances means nothing to it.

    Args:
        in_dim: Width of the patch features.
        n_classes: Logits; time bins for survival.
        d_model: Width of the projected instances.
        attention_dim: Hidden width of the attention.
        gated: Whether the attention is gated.
        dropout: Share of projected features and of attention units that are dropped in training.
    """

    def __init__(
        self,
        in_dim: int = 1024,
        n_classes: int = 2,
        d_model: int = 512,
        attention_dim: int = 128,
        gated: bool = True,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.embed = nn.Sequential(nn.Linear(in_dim, d_model), nn.ReLU(), nn.Dropout(dropout))
        self.attention = AttentionPool(d_model, attention_dim, gated, dropout)
        self.classifier = nn.Linear(d_model, n_classes)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`."""
        bags = Bags.of(features, self.in_dim, coords, lengths)
        embedding, attention = self.attention(self.embed(bags.features), bags.mask)
        return MILOutput(self.classifier(embedding), attention, embedding=embedding)


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"in_dim": 12, "d_model": 16, "attention_dim": 8, "dropout": 0.0}
    return {"gated": ABMIL(**small), "plain": ABMIL(gated=False, n_classes=4, **small)}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"features": torch.randn(2, 11, 12), "lengths": torch.tensor([11, 7])}
