"""Attention pooling: a bag becomes the mean of its instances, weighted by a learned score of each.

Reference:
    Ilse et al., Attention-based deep multiple instance learning, arXiv:1802.04712, Eq. 8 and 9 (gated).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medseq.nn.mil import masked_softmax

__all__ = ["AttentionPool"]


class AttentionPool(nn.Module):
    """``z = sum_i a_i h_i`` with ``a = softmax(w tanh(V h))``, or ``w (tanh(V h) * sigmoid(U h))`` where gated.

    Args:
        dim: Width of the instances.
        hidden: Width of V and U.
        gated: Whether there is a U.
        dropout: Share of hidden units that are dropped in training.
    """

    def __init__(self, dim: int, hidden: int = 128, gated: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, 1)

    def scores(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n"]:
        """Scores before softmax; each depends on its own instance only."""
        hidden = torch.tanh(self.hidden(x))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(x))
        return self.score(self.dropout(hidden))[..., 0]

    def forward(
        self, x: Float[Tensor, "batch n dim"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch n"]]:
        """Pooled instances, and their attention.

        Args:
            x: Instances.
            mask: False on padding.
        """
        attention = masked_softmax(self.scores(x), mask)
        return (attention[:, None] @ x)[:, 0], attention
