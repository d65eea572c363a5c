"""Orders in which a sequence model reads the patches of a slide, and the way back to the order of the input.

A scan is not symmetric: what it remembers of a patch depends on what came after. Every order here is invertible, so the
output of a mixer, and the attention on it, always return to the order of the input:

    order = hilbert_order(coords)           # or row_, column_, random_, score_order
    y = order.restore(mixer(order.apply(x)))

`stride` and `unstride` are MambaMIL's sequence reordering, which also pads; `Reordered` gives any mixer an order.

Reference:
    Yang et al., MambaMIL: Enhancing long sequence modeling with sequence reordering, arXiv:2403.06800, section 3.3.
    Skilling, Programming the Hilbert curve, AIP Conference Proceedings 707, 2004.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import InputError, ShapeError
from medseq.nn.grid import patch_distance

__all__ = [
    "Order",
    "Reordered",
    "column_order",
    "hilbert_order",
    "random_order",
    "row_order",
    "score_order",
    "stride",
    "unstride",
]

OrderName = Literal["row", "column", "hilbert", "score", "random"]


class Order(NamedTuple):
    """A permutation of n tokens.

    tokens: The token at each new place.
    places: The new place of each token.
    """

    tokens: Int[Tensor, " n"]
    places: Int[Tensor, " n"]

    @classmethod
    def of(cls, tokens: Int[Tensor, " n"]) -> "Order":
        """The order that puts token ``tokens[i]`` at place i."""
        places = torch.empty_like(tokens)
        places[tokens] = torch.arange(len(tokens), device=tokens.device)
        return cls(tokens, places)

    def apply(self, x: Tensor, dim: int = -2) -> Tensor:
        """Tokens in this order; `dim` is the axis of tokens."""
        return x.index_select(dim, self.tokens)

    def restore(self, y: Tensor, dim: int = -2) -> Tensor:
        """Tokens of `apply` in the order of the input."""
        return y.index_select(dim, self.places)


def stride(x: Float[Tensor, "*batch length"], rate: int) -> Float[Tensor, "*batch padded"]:
    """Sequence reordering with `rate` r: tokens 0, r, 2r, …, then 1, r + 1, …; along the last axis.

    Zeros are appended until r divides the length, so they end up inside the result, as the last token of later runs. A
    sequence shorter than r keeps its order.

    Raises:
        InputError: `rate` below 1.
    """
    if rate < 1:
        raise InputError("rate", found=rate, wanted=">= 1")
    padded = F.pad(x, (0, -x.shape[-1] % rate))
    return padded.unflatten(-1, (-1, rate)).mT.flatten(-2)


def unstride(y: Float[Tensor, "*batch padded"], rate: int, length: int) -> Float[Tensor, "*batch length"]:
    """Inverse of `stride`: tokens in their old order, without the padding.

    Args:
        y: What `stride` returned, or something of its size.
        rate: As there.
        length: Of the sequence before.

    Raises:
        ShapeError: `y` does not have the size that `stride` gives.
    """
    if rate < 1 or y.shape[-1] != -(-length // rate) * rate:
        raise ShapeError(
            "not a reordered sequence",
            found=f"{y.shape[-1]} tokens, rate {rate}",
            wanted=f"{length} tokens, padded to a multiple of the rate",
        )
    return y.unflatten(-1, (rate, -1)).mT.flatten(-2)[..., :length]


def random_order(length: int, generator: torch.Generator | None = None) -> Order:
    """A random order; a generator makes it repeatable."""
    return Order.of(torch.randperm(length, generator=generator))


def score_order(scores: Float[Tensor, " n"]) -> Order:
    """The highest score first; equal scores keep their order."""
    return Order.of(scores.argsort(descending=True, stable=True))


def row_order(coords: Float[Tensor, "n 2"]) -> Order:
    """Row by row: by y, then by x; `coords` are (x, y)."""
    return _lexicographic(coords[:, 1], coords[:, 0])


def column_order(coords: Float[Tensor, "n 2"]) -> Order:
    """Column by column: by x, then by y."""
    return _lexicographic(coords[:, 0], coords[:, 1])


def hilbert_order(coords: Float[Tensor, "n 2"], patch_size: float | None = None) -> Order:
    """Along a Hilbert curve over the slide: neighbours in the sequence are neighbours on the slide.

    Args:
        coords: Level-0 pixels (x, y).
        patch_size: Distance of neighbouring patches; None for the commonest one.
    """
    if len(coords) < 2:
        return Order.of(torch.arange(len(coords), device=coords.device))
    size = patch_size if patch_size is not None else _distance(coords)
    cells = torch.floor((coords.double() - coords.double().amin(0)) / size + 0.5).long()
    return Order.of(_hilbert_index(cells[:, 0], cells[:, 1]).argsort(stable=True))


class Reordered(nn.Module):
    """A `SequenceMixer` that reads its tokens in another order and returns them in that of the input.

    Args:
        mixer: The mixer.
        order: ``row``, ``column`` and ``hilbert`` need coordinates; ``score`` sorts by a learned projection of each
            token; ``random`` draws anew in training and is fixed in eval mode.
        dim: Width of the tokens, for ``score`` only.
    """

    def __init__(self, mixer: nn.Module, order: OrderName, dim: int | None = None) -> None:
        super().__init__()
        if order == "score" and dim is None:
            raise InputError("order by score needs the width of the tokens", wanted="dim")
        self.mixer, self.order = mixer, order
        self.score = nn.Linear(dim, 1) if order == "score" and dim is not None else None

    def forward(
        self, x: Float[Tensor, "batch length dim"], coords: Tensor | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Mix all tokens, each item in its own order.

        Raises:
            InputError: The order needs coordinates and there are none.
        """
        return torch.cat([self._one(x[i : i + 1], None if coords is None else coords[i]) for i in range(len(x))])

    def _one(self, x: Tensor, coords: Tensor | None) -> Tensor:
        if self.score is not None:
            scores = self.score(x[0])[:, 0]
            order = score_order(scores.detach())
            # The weight of a token lets the gradient reach the scores, which a sort alone does not.
            y = self.mixer(order.apply(x * torch.sigmoid(scores)[None, :, None]))
        elif self.order == "random":
            generator = None if self.training else torch.Generator().manual_seed(0)
            order = random_order(x.shape[1], generator)
            y = self.mixer(order.apply(x))
        else:
            if coords is None:
                raise InputError(f"the order '{self.order}' needs the coordinates of the patches")
            order = _BY_PLACE[self.order](coords)
            y = self.mixer(order.apply(x), order.apply(coords)[None])
        return order.restore(y)


_BY_PLACE: dict[str, Callable[[Tensor], Order]] = {
    "row": row_order,
    "column": column_order,
    "hilbert": hilbert_order,
}


def _lexicographic(major: Tensor, minor: Tensor) -> Order:
    by_minor = minor.argsort(stable=True)
    return Order.of(by_minor[major[by_minor].argsort(stable=True)])


def _distance(coords: Tensor) -> float:
    try:
        return patch_distance(coords)
    except InputError:
        # No two patches share a row or column: any scale gives an order, one pixel is the finest.
        return 1.0


def _hilbert_index(x: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Distance along the curve of the smallest power of two that holds all cells."""
    x, y = x.clone(), y.clone()
    side = 1 << max(int(torch.stack([x, y]).max()), 1).bit_length()
    distance = torch.zeros_like(x)
    step = side // 2
    while step:
        right, upper = (x & step) > 0, (y & step) > 0
        distance += step * step * ((3 * right.long()) ^ upper.long())
        # In the lower quadrants the curve is turned: mirrored on one side, and rows and columns change places.
        mirrored = right & ~upper
        x, y = torch.where(mirrored, side - 1 - x, x), torch.where(mirrored, side - 1 - y, y)
        x, y = torch.where(upper, x, y), torch.where(upper, y, x)
        step //= 2
    return distance
