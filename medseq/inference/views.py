"""How much a restoration depends on the way the image happens to lie: its spread over flips and quarter turns.

A network that knew the image would give one answer for all eight views. Where the answers differ it guesses, so their
standard deviation marks what not to trust. It is a lower bound: what all views get wrong alike does not show.

Reference:
    Wang et al., Aleatoric uncertainty estimation with test-time augmentation for medical image segmentation with
    convolutional neural networks, Neurocomputing 338, 2019.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.models.restore_ensemble import RotationAverage

__all__ = ["VIEWS", "single_view", "view_spread"]

# Quarter turns, and whether the columns are mirrored first.
VIEWS = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))


def view_spread(
    restore: Callable[[Tensor], Tensor], image: Float[Tensor, "batch 1 row col"]
) -> Float[Tensor, "batch 1 row col"]:
    """Standard deviation over the eight views, in the units of the result.

    Args:
        restore: Native image in, native result out, of the same shape; called once a view.
        image: Native planes.
    """
    mean = torch.zeros_like(image, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for number, (turns, mirrored) in enumerate(VIEWS, start=1):
        view = image.flip(3) if mirrored else image
        back = torch.rot90(restore(torch.rot90(view, turns, (2, 3)).contiguous()), -turns, (2, 3))
        back = (back.flip(3) if mirrored else back).double()
        # Welford's update: no difference of large sums.
        away = back - mean
        mean = mean + away / number
        squares = squares + away * (back - mean)
    return (squares / len(VIEWS)).sqrt().to(image.dtype)


def single_view(model: nn.Module) -> nn.Module:
    """The network behind an average over turns, whose views would all be alike; any other model as it is."""
    return model.net if isinstance(model, RotationAverage) else model
