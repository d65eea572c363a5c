"""Preprocessing of PET: a scan with counts enough is left as it is."""

import numpy as np
import torch
from torch import Tensor

from medseq.data.transforms import Params, Transform
from medseq.errors import InputError

__all__ = ["UptakeGate"]


class UptakeGate(Transform):
    """Applies a denoiser's change as far as it is large beside the uptake; first in a chain, undone last.

    The root mean square of the model's change within the body, over the mean uptake there, is what the model takes for
    noise (`level`). The best linear mix of the noisy and the denoised image, for a reference with noise of its own,
    applies ``1 - (noise / level)^2`` of the change: nothing up to `noise`. Noise of PET is correlated over some pixels
    and lies in air too, so that the estimate from wavelets that `LeaveAlone` makes does not hold.

    Args:
        noise: Change over mean uptake at which a scan is taken to have all its counts.
        body: Pixels above this part of the plane's 99th percentile are body.
    """

    def __init__(self, noise: float = 0.05, body: float = 0.1) -> None:
        if noise < 0 or not 0 < body < 1:
            raise InputError("gate limits are out of range", found=(noise, body), wanted="noise >= 0, 0 < body < 1")
        self.noise, self.body = float(noise), float(body)

    def fit(
        self, planes: np.ndarray, valid: np.ndarray | None = None, spacing_mm: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Nothing to fit: every plane is judged by itself."""
        return {}

    def apply(self, image: Tensor, params: Params) -> Tensor:
        """See `Transform.apply`; nothing changes."""
        return image

    def invert(self, output: Tensor, image: Tensor, params: Params) -> Tensor:
        """See `Transform.invert`: the part of the change that the gate lets through, plane by plane."""
        change = output - image
        # A percentile by sorting: torch.quantile refuses more than 2^24 pixels.
        flat = image.flatten(1).sort(dim=1).values
        top = flat[:, int(0.99 * (flat.shape[1] - 1))].view(-1, 1, 1, 1)
        inside = ((image > self.body * top) & (image > 0)).to(change.dtype)
        count = inside.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        uptake = (inside * image).sum(dim=(1, 2, 3), keepdim=True) / count
        power = (inside * change.square()).sum(dim=(1, 2, 3), keepdim=True) / count
        level = power.sqrt() / uptake.clamp(min=1e-12)
        share = 1 - (self.noise / level.clamp(min=1e-12)).square()
        # Without uptake there is nothing to compare the change with.
        return image + torch.where(uptake > 0, share.clamp(min=0), torch.zeros_like(share)) * change
