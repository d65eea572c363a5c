"""Averaging over quarter turns: four views of the same image through one restoration network.

The network is trained on one view at a time; in eval mode its answers for the image turned by 0, 90, 180 and 270
degrees are turned back and averaged. What it invents differs between the views and averages out (self-ensemble of
Timofte et al., Seven ways to improve example-based single image super resolution, CVPR 2016, without the flips).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseq.models.restore_unet import RestoreUNet

__all__ = ["RotationAverage"]


class RotationAverage(nn.Module):
    """A restoration network, averaged over quarter turns in eval mode; the network itself in training mode.

    Args:
        net: Network under the restoration contract, ``forward(image, condition=None)``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, image: Float[Tensor, "batch channel row col"], condition: Tensor | None = None
    ) -> Float[Tensor, "batch out row col"]:
        """See the network's own forward."""
        if self.training:
            return self.net(image, condition)
        total = self.net(image, condition)
        for turns in (1, 2, 3):
            turned = None if condition is None else torch.rot90(condition, turns, (2, 3))
            total = total + torch.rot90(self.net(torch.rot90(image, turns, (2, 3)), turned), -turns, (2, 3))
        return total / 4


def tiny() -> dict[str, nn.Module]:
    """A small instance, for tests."""
    return {"unet": RotationAverage(RestoreUNet(1, 1, (8, 8), (1, 1)))}


def example_inputs(name: str) -> dict[str, Tensor]:
    """Keyword arguments of `forward` for the instance `name` of `tiny`."""
    return {"image": torch.randn(2, 1, 19, 24)}
