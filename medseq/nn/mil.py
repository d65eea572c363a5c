"""The contract of multiple-instance models: a bag of patch features in, scores and the attention of every patch out.

    forward(features (n, d) | (B, n, d), coords=None, lengths=None) -> MILOutput

A bag without a batch axis is a batch of 1. Bags of one batch are padded at their end; `lengths` says how many instances
of each are real, None means all. Padding never changes a result, and its attention is 0.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from medseq.errors import ShapeError
from medseq.ops.survival import survival_curve

__all__ = ["Bags", "MILOutput", "Target", "both_logits", "class_probabilities", "masked_softmax", "padded"]

# What the logits of a model are: classes, ordered classes, or time bins.
Target = Literal["class", "ordinal", "survival"]


class MILOutput(NamedTuple):
    """What every multiple-instance model returns.

    logits: Class scores before softmax; one logit for two classes means sigmoid; of a survival head, hazards before
        sigmoid (`medseq.ops.survival`).
    attention: Weight of each instance in the order of the input; sums to 1 over a bag, 0 on padding.
    instance_logits: Scores of single instances where a model has them: ``(batch, n, …)``.
    embedding: What the classifier saw of the whole bag.
    """

    logits: Float[Tensor, "batch classes"]
    attention: Float[Tensor, "batch n"]
    instance_logits: Tensor | None = None
    embedding: Float[Tensor, "batch width"] | None = None


class Bags(NamedTuple):
    """A batch of padded bags, checked.

    features: ``(batch, n, d)``.
    mask: ``(batch, n)``, False on padding; None where nothing is padded.
    coords: ``(batch, n, 2)`` or None.
    """

    features: Float[Tensor, "batch n d"]
    mask: Bool[Tensor, "batch n"] | None
    coords: Tensor | None

    @classmethod
    def of(
        cls,
        features: Tensor,
        width: int,
        coords: Tensor | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> "Bags":
        """Check the arguments of a model's `forward` and give them a batch axis.

        Args:
            features: ``(n, d)`` or ``(batch, n, d)``.
            width: The `d` of the model.
            coords: ``(n, 2)`` or ``(batch, n, 2)``.
            lengths: Real instances of each bag.

        Raises:
            ShapeError: Another width, an empty bag, or sizes that do not fit together.
        """
        if features.dim() == 2:
            features = features[None]
        if features.dim() != 3 or features.shape[2] != width:
            raise ShapeError(
                "features do not fit the model",
                found=tuple(features.shape),
                wanted=f"(n, {width}) or (batch, n, {width})",
                remedy="use the patch encoder that the model was trained with",
            )
        batch, n, _ = features.shape
        if coords is not None:
            coords = coords[None] if coords.dim() == 2 else coords
            if coords.shape != (batch, n, 2):
                raise ShapeError("coords do not fit the bags", found=tuple(coords.shape), wanted=(batch, n, 2))
        if lengths is None:
            if n == 0:
                raise ShapeError("an empty bag", found="0 instances", wanted="at least 1")
            return cls(features, None, coords)
        if lengths.shape != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > n:
            raise ShapeError(
                "lengths do not fit the bags", found=lengths.tolist(), wanted=f"{batch} numbers from 1 to {n}"
            )
        if int(lengths.min()) == n:
            return cls(features, None, coords)
        mask = torch.arange(n, device=features.device) < lengths.to(features.device)[:, None]
        return cls(features.masked_fill(~mask[..., None], 0), mask, coords)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real instances of each bag."""
        if self.mask is None:
            return self.features.new_full((len(self.features),), self.features.shape[1], dtype=torch.long)
        return self.mask.sum(1)

    def each(self) -> Iterator[tuple[Float[Tensor, "1 n d"], Tensor | None]]:
        """Bag by bag without its padding, for layers in which padding would take part: features and coords."""
        for i, n in enumerate(self.lengths.tolist()):
            yield self.features[i : i + 1, :n], None if self.coords is None else self.coords[i : i + 1, :n]


def padded(bags: Sequence[Float[Tensor, "1 n *rest"]]) -> Float[Tensor, "batch longest *rest"]:
    """One tensor of what was computed bag by bag, zeros at the end of the shorter ones."""
    if len(bags) == 1:
        return bags[0]
    return nn.utils.rnn.pad_sequence([bag[0] for bag in bags], batch_first=True)


def masked_softmax(scores: Float[Tensor, "batch *heads n"], mask: Bool[Tensor, "batch n"] | None) -> Tensor:
    """Softmax over the instances; padding gets exactly 0."""
    if mask is None:
        return scores.softmax(-1)
    shape = (len(mask), *(1,) * (scores.dim() - 2), mask.shape[1])
    return scores.masked_fill(~mask.view(shape), -torch.inf).softmax(-1)


def class_probabilities(logits: Float[Tensor, "batch logits"], target: Target) -> Float[Tensor, "batch class"]:
    """Probabilities of the classes; of survival, that the event falls in each bin, or, last, after all of them."""
    if target == "class":
        return both_logits(logits).softmax(-1)
    through = F.pad(survival_curve(logits), (1, 0), value=1.0)
    return torch.cat([through[:, :-1] - through[:, 1:], through[:, -1:]], 1)


def both_logits(logits: Float[Tensor, "batch logits"]) -> Tensor:
    """Two logits where there is one: the softmax of ``(0, x)`` is the sigmoid of x."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits
