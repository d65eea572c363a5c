"""Pooling without attention: the baselines that every multiple-instance model must beat."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.mil import Bags, MILOutput

__all__ = ["LinearProbe", "PoolingMIL"]

Pool = Literal["mean", "max", "mean+max"]


class PoolingMIL(nn.Module):
    """Projection of each instance, mean or maximum over the bag, linear classifier.

    Args:
        in_dim: Width of the patch features.
        n_classes: Logits; time bins for survival.
        pool: ``mean``, ``max`` (per channel), or both side by side.
        d_model: Width of the projected instances.
        dropout: Share of projected features that are dropped in training.
    """

    def __init__(
        self, in_dim: int = 1024, n_classes: int = 2, pool: Pool = "mean", d_model: int = 512, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.in_dim, self.pool = in_dim, _known(pool)
        self.embed = nn.Sequential(nn.Linear(in_dim, d_model), nn.ReLU(), nn.Dropout(dropout))
        self.classifier = nn.Linear(d_model * (2 if pool == "mean+max" else 1), n_classes)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`. Attention is each instance's share of the pooled vector."""
        bags = Bags.of(features, self.in_dim, coords, lengths)
        embedding, attention = _pool(self.embed(bags.features), bags.mask, self.pool)
        return MILOutput(self.classifier(embedding), attention, embedding=embedding)


class LinearProbe(nn.Module):
    """One linear layer on pooled features: what the features alone can tell.

    Args:
        in_dim: Width of the patch features.
        n_classes: Logits; time bins for survival.
        pool: See `PoolingMIL`.
    """

    def __init__(self, in_dim: int = 1024, n_classes: int = 2, pool: Pool = "mean") -> None:
        super().__init__()
        self.in_dim, self.pool = in_dim, _known(pool)
        self.classifier = nn.Linear(in_dim * (2 if pool == "mean+max" else 1), n_classes)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`. Attention is each instance's share of the pooled vector."""
        bags = Bags.of(features, self.in_dim, coords, lengths)
        embedding, attention = _pool(bags.features, bags.mask, self.pool)
        return MILOutput(self.classifier(embedding), attention, embedding=embedding)


def _known(pool: Pool) -> Pool:
    if pool not in ("mean", "max", "mean+max"):
        raise InputError("unknown pooling", found=pool, wanted="mean, max or mean+max")
    return pool


def _pool(x: Float[Tensor, "batch n dim"], mask: Tensor | None, pool: Pool) -> tuple[Tensor, Tensor]:
    """Pooled instances, and the share of each: of a maximum, the channels that it gives, the first of equal ones."""
    real = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
    shares = real / real.sum(1, keepdim=True)
    mean = (shares[:, None] @ x)[:, 0]
    if pool == "mean":
        return mean, shares
    highest, where = (x if mask is None else x.masked_fill(~mask[..., None], -torch.inf)).max(1)
    won = torch.zeros_like(real).scatter_add(1, where, torch.ones_like(highest)) / x.shape[2]
    if pool == "max":
        return highest, won
    return torch.cat([mean, highest], 1), (shares + won) / 2


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"in_dim": 12, "d_model": 16, "dropout": 0.0}
    pooled: dict[str, nn.Module] = {pool: PoolingMIL(pool=pool, **small) for pool in ("mean", "max", "mean+max")}
    return {**pooled, "probe": LinearProbe(12, 3), "probe-max": LinearProbe(12, 1, "mean+max")}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"features": torch.randn(2, 11, 12), "lengths": torch.tensor([11, 7])}
