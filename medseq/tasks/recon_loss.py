"""Losses of reconstruction: which terms, on which predictions, with which weights.

The published networks differ in all three: direct's compare the last root-sum-of-squares image, atommic's weigh every
time step and cascade of magnitudes divided by their own maxima. Terms are named, weighted and summed.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from medseq.errors import InputError

__all__ = ["ReconLoss", "ssim_loss"]

Weighting = Literal["last", "mean", "logarithmic"]


class ReconLoss:
    """A weighted sum of terms, over the predictions that `weighting` names.

    Args:
        l1: Weight of the mean absolute difference of magnitudes.
        ssim: Weight of ``1 - SSIM`` of magnitudes (uniform 7 x 7 window).
        nmse: Weight of ``||x - t||^2 / ||t||^2`` of magnitudes.
        relative: Weight of ``||x - t|| / ||t||`` of complex images plus the same of their magnitudes.
        weighting: ``last``: the last prediction alone. ``mean``: the last, plus a quarter of the mean over the
            earlier ones. ``logarithmic``: weights from 0.1 to 1, evenly in the logarithm, over time steps and over
            cascades (atommic's accumulated loss).
        own_maximum: Divide every magnitude by its own maximum first, as atommic does (there over the batch, which
            was one image): a factor costs nothing.

    Reference:
        Karkalousos et al., Assessment of data consistency through cascades of independently recurrent inference
        machines, PMB 67, 2022, for the logarithmic weights.
    """

    def __init__(
        self,
        l1: float = 0.0,
        ssim: float = 0.0,
        nmse: float = 0.0,
        relative: float = 0.0,
        weighting: Weighting = "last",
        own_maximum: bool = False,
    ) -> None:
        if min(l1, ssim, nmse, relative) < 0 or not l1 + ssim + nmse + relative > 0:
            raise InputError("a loss needs a positive weight", found=(l1, ssim, nmse, relative))
        if weighting not in ("last", "mean", "logarithmic"):
            raise InputError("unknown weighting", found=weighting, wanted="last, mean or logarithmic")
        self.terms = {"l1": l1, "ssim": ssim, "nmse": nmse, "relative": relative}
        self.weighting, self.own_maximum = weighting, own_maximum

    def __call__(
        self, predictions: Sequence[Sequence[Float[Tensor, "batch row col"]]], target: Float[Tensor, "batch row col"]
    ) -> Float[Tensor, ""]:
        """The loss.

        Args:
            predictions: ``[cascade][time step]``, images real or complex.
            target: What they should be.
        """
        if self.weighting == "last":
            return self._one(predictions[-1][-1], target)
        if self.weighting == "mean":
            *earlier, last = [image for cascade in predictions for image in cascade]
            total = self._one(last, target)
            if earlier:
                total = total + 0.25 * torch.stack([self._one(x, target) for x in earlier]).mean()
            return total
        cascades = torch.logspace(-1, 0, len(predictions)).tolist()
        total = target.real.new_zeros(())
        for cascade_weight, steps in zip(cascades, predictions, strict=True):
            weights = torch.logspace(-1, 0, len(steps)).tolist()
            mean = sum(weight * self._one(x, target) for weight, x in zip(weights, steps, strict=True)) / len(steps)
            total = total + cascade_weight * mean
        return total / len(predictions)

    def _one(self, x: Tensor, target: Tensor) -> Tensor:
        """All terms of one prediction."""
        size, wanted = x.abs(), target.abs()
        if self.own_maximum:
            size = size / size.amax(dim=(-2, -1), keepdim=True)
            wanted = wanted / wanted.amax(dim=(-2, -1), keepdim=True)
        total = size.new_zeros(())
        if self.terms["l1"]:
            total = total + self.terms["l1"] * (size - wanted).abs().mean()
        if self.terms["ssim"]:
            total = total + self.terms["ssim"] * ssim_loss(size, wanted, between=self.own_maximum)
        if self.terms["nmse"]:
            total = total + self.terms["nmse"] * _relative(size, wanted).square().mean()
        if self.terms["relative"]:
            whole = _relative(x, target) if x.is_complex() else _relative(size, wanted)
            total = total + self.terms["relative"] * (whole + _relative(size, wanted)).mean()
        return total


def _relative(x: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    # The square root has no slope at 0: a prediction that is exact must not give NaN.
    error = (x - target).abs().square().sum(dim=(-2, -1))
    return torch.sqrt((error / target.abs().square().sum(dim=(-2, -1)).clamp_min(1e-12)).clamp_min(1e-12))


def ssim_loss(
    x: Float[Tensor, "batch row col"], target: Float[Tensor, "batch row col"], *, between: bool = False, window: int = 7
) -> Float[Tensor, ""]:
    """``1 - SSIM`` with a uniform window, no padding and sample covariance.

    Args:
        x: Magnitudes.
        target: Same size.
        between: The data range goes from the smallest to the largest value of both; False takes the largest value
            of the target, as direct does.
        window: Side.

    Raises:
        InputError: The image is smaller than the window.

    Reference:
        Wang et al., IEEE TIP 13(4), 2004; the constants are theirs, the window is the one of the reconstruction
        toolkits.
    """
    if min(x.shape[-2:]) < window:
        raise InputError("image is too small for SSIM", found=tuple(x.shape[-2:]), wanted=f"at least {window}")
    span = _range(x, target, between)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    sample = window**2 / (window**2 - 1)

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image[:, None], window, stride=1)[:, 0]

    ux, uy = mean(x), mean(target)
    vx, vy = sample * (mean(x * x) - ux * ux), sample * (mean(target * target) - uy * uy)
    vxy = sample * (mean(x * target) - ux * uy)
    index = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return 1 - index.mean()


def _range(x: Tensor, target: Tensor, between: bool) -> Tensor:
    if not between:
        return target.max()
    return torch.maximum(x.max(), target.max()) - torch.minimum(x.min(), target.min())
