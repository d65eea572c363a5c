"""Which patches a score comes from: attention, gradients, or what happens without them.

Attention says where a model looked, not whether that spoke for or against a class. Gradient and occlusion do: positive
where a patch raises the score. They cost a backward pass, or as many forward passes as there are groups.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.errors import InputError
from medseq.nn.mil import MILOutput
from medseq.nn.reorder import hilbert_order

__all__ = ["Attribution", "gradient", "occlusion"]

Attribution = Literal["attention", "gradient", "occlusion"]
Score = Callable[[MILOutput], Tensor]


def gradient(
    model: nn.Module, features: Float[Tensor, "n d"], coords: Tensor | None, score: Score
) -> Float[Tensor, " n"]:
    """Gradient times input of every patch: what each adds to the score, to first order.

    Args:
        model: In eval mode.
        features: The bag.
        coords: Places of its patches, if any.
        score: Picks one number from the output.
    """
    x = features.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = score(model(x, coords))
        (slope,) = torch.autograd.grad(value, x)
    return (slope * x).sum(1).detach()


@torch.inference_mode()
def occlusion(
    model: nn.Module, features: Float[Tensor, "n d"], coords: Tensor | None, score: Score, groups: int = 64
) -> Float[Tensor, " n"]:
    """How much the score falls when a patch is taken out, together with its neighbours.

    Args:
        model: In eval mode.
        features: The bag; at least two patches.
        coords: Places of its patches: groups are neighbours on the slide, else neighbours in the bag.
        score: Picks one number from the output.
        groups: Forward passes; with as many as there are patches each is taken out alone.

    Raises:
        InputError: A bag of one patch: without it there is none.
    """
    n = len(features)
    if n < 2:
        raise InputError("a bag of one patch has none to take out", wanted="attention or gradient")
    order = torch.arange(n) if coords is None else hilbert_order(coords).tokens.cpu()
    whole = float(score(model(features, coords)))
    drop = torch.zeros(n)
    for group in order.tensor_split(min(groups, n)):
        keep = torch.ones(n, dtype=torch.bool)
        keep[group] = False
        rest = None if coords is None else coords[keep]
        drop[group] = whole - float(score(model(features[keep], rest)))
    return drop
