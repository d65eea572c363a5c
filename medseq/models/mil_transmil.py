"""TransMIL: two layers of landmark attention with a convolutional position code between them.

Reference:
    Shao et al., TransMIL: Transformer based correlated multiple instance learning for whole slide image classification,
    arXiv:2106.00908.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.nn.mil import Bags, MILOutput, padded
from medseq.nn.nystrom import NystromAttention

__all__ = ["TransMIL"]


class PositionCode(nn.Module):
    """The pyramid position encoding: the bag as a square image, plus three depthwise convolutions of it.

    Args:
        dim: Width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim) for size in (7, 5, 3))

    def forward(self, x: Float[Tensor, "1 n dim"]) -> Float[Tensor, "1 n dim"]:
        """Tokens that fill a square; the first one, the class token, stays as it is."""
        first, rest = x[:, :1], x[:, 1:]
        side = math.isqrt(rest.shape[1])
        image = rest.mT.unflatten(2, (side, side))
        image = image + sum(conv(image) for conv in self.convs)
        return torch.cat([first, image.flatten(2).mT], 1)


class TransMIL(nn.Module):
    """TransMIL: projection, class token, attention, position code, attention, linear classifier on the class token.

    The order of the patches matters: they fill a square row by row, first patches again at its end. Attention is that
    of the class token in the last layer; the approximation can make it slightly negative, such weights count as 0.

    Args:
        in_dim: Width of the patch features.
        n_classes: Logits; time bins for survival.
        d_model: Width of the tokens.
        heads: Attention heads.
        landmarks: See `NystromAttention`; the paper's is half the width.
        dropout: In the attention layers.
    """

    def __init__(
        self,
        in_dim: int = 1024,
        n_classes: int = 2,
        d_model: int = 512,
        heads: int = 8,
        landmarks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.embed = nn.Sequential(nn.Linear(in_dim, d_model), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, 1, d_model) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(2))
        self.attentions = nn.ModuleList(
            NystromAttention(d_model, heads, landmarks or d_model // 2, dropout=dropout) for _ in range(2)
        )
        self.position = PositionCode(d_model)
        self.norm = nn.LayerNorm(d_model)
        self.classifier = nn.Linear(d_model, n_classes)

    def forward(self, features: Tensor, coords: Tensor | None = None, lengths: Tensor | None = None) -> MILOutput:
        """Scores of bags; see `medseq.nn.mil`."""
        bags = Bags.of(features, self.in_dim, coords, lengths)
        embeddings, attentions = zip(*(self._one(features) for features, _ in bags.each()), strict=True)
        embedding = torch.cat(embeddings)
        return MILOutput(self.classifier(embedding), padded(attentions), embedding=embedding)

    def _one(self, features: Float[Tensor, "1 n d"]) -> tuple[Float[Tensor, "1 dim"], Float[Tensor, "1 n"]]:
        n = features.shape[1]
        square = (math.isqrt(n - 1) + 1) ** 2
        h = self.embed(features)
        h = torch.cat([self.class_token, h, h[:, : square - n]], 1)
        h = h + self.attentions[0](self.norms[0](h))[0]
        h = self.position(h)
        change, attention = self.attentions[1](self.norms[1](h))
        h = self.norm(h + change)
        # A patch that fills the square up stands in it twice.
        weights = attention[1:].clamp(min=0)
        share = weights[:n] + torch.cat([weights[n:], weights.new_zeros(2 * n - square)])
        total = share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        return h[:, 0], (share / total)[None]


def tiny() -> dict[str, nn.Module]:
    """Small instances, for tests."""
    small: dict[str, Any] = {"in_dim": 12, "d_model": 16, "heads": 2, "dropout": 0.0}
    return {"exact": TransMIL(landmarks=64, **small), "landmarks": TransMIL(landmarks=4, n_classes=3, **small)}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"features": torch.randn(2, 11, 12), "lengths": torch.tensor([11, 7])}
