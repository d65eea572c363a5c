"""Losses of restoration: which terms, with which weights. They see images in units of the task's `loss_unit`."""

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError

__all__ = ["RestoreLoss"]

Image = Float[Tensor, "batch channel row col"]


class RestoreLoss:
    """A weighted sum of terms; the default is the mean absolute difference alone.

    Args:
        l1: Weight of ``mean |x - t|``.
        charbonnier: Weight of ``mean sqrt((x - t)^2 + epsilon^2) - epsilon``: like L1, but smooth at 0.
        ssim: Weight of ``1 - SSIM`` (11 x 11 Gaussian window of sd 1.5), with the data range `ssim_range`.
        frequency: Weight of ``mean |F(x - t)|`` of the unitary two-dimensional Fourier transform: blur costs more than
            by L1, since it is far in few frequencies rather than little in all pixels.
        epsilon: Of `charbonnier`, in loss units.
        ssim_range: Data range of SSIM in loss units.

    Raises:
        InputError: No weight is positive, or one is negative.

    Reference:
        Charbonnier et al., Two deterministic half-quadratic regularization algorithms, ICIP 1994; Zhao et al., Loss
        functions for image restoration with neural networks, IEEE TCI 3(1), 2017 (the mix with SSIM); Cho et al.,
        Rethinking coarse-to-fine approach in single image deblurring, ICCV 2021, equation 6 (frequencies, one scale).
    """

    def __init__(
        self,
        l1: float = 1.0,
        charbonnier: float = 0.0,
        ssim: float = 0.0,
        frequency: float = 0.0,
        epsilon: float = 1e-3,
        ssim_range: float = 1.0,
    ) -> None:
        if min(l1, charbonnier, ssim, frequency) < 0 or not l1 + charbonnier + ssim + frequency > 0:
            raise InputError("a loss needs a positive weight", found=(l1, charbonnier, ssim, frequency))
        if epsilon <= 0 or ssim_range <= 0:
            raise InputError("epsilon and ssim_range must be positive", found=(epsilon, ssim_range))
        self.l1, self.charbonnier, self.ssim, self.frequency = l1, charbonnier, ssim, frequency
        self.epsilon, self.ssim_range = epsilon, ssim_range

    def __call__(self, restored: Image, target: Image, unit: float = 1.0) -> Float[Tensor, ""]:
        """The loss of a batch; `unit` is what counts as 1."""
        change = (restored - target) / unit
        total = change.new_zeros(())
        if self.l1:
            total = total + self.l1 * change.abs().mean()
        if self.charbonnier:
            smooth = torch.sqrt(change.square() + self.epsilon**2) - self.epsilon
            total = total + self.charbonnier * smooth.mean()
        if self.ssim:
            from torchmetrics.functional.image import structural_similarity_index_measure

            index = structural_similarity_index_measure(restored / unit, target / unit, data_range=self.ssim_range)
            assert isinstance(index, Tensor)
            total = total + self.ssim * (1 - index)
        if self.frequency:
            # The two halves of the spectrum of a real image are mirrored: one says it all.
            total = total + self.frequency * torch.fft.rfft2(change, norm="ortho").abs().mean()
        return total
