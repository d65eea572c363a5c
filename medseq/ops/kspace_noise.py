"""The noise of a scan, from the scan itself."""

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.fourier import Origin, to_centre

__all__ = ["kspace_noise_sd"]

# Median of |n|^2 of complex normal noise, over its mean.
_MEDIAN_POWER = 0.6931471805599453


def kspace_noise_sd(kspace: Tensor, mask: Tensor, *, origin: Origin = "centre") -> Float[Tensor, " batch"]:
    """Standard deviation of the complex noise of the samples, ``sqrt(E |n|^2)``, the coils taken together.

    Read from the samples that are farthest from the centre of k-space: those beyond the ellipse that touches the
    edges where there are any (at least 64), else the outermost twentieth. The median of their power ignores the few
    that still carry signal. An overestimate where the resolution is so low that signal reaches the edge of k-space.

    Args:
        kspace: Measured k-space ``(batch, coil, row, col)``.
        mask: ``(batch or 1, 1, row or 1, col)``, not zero where measured.
        origin: Where the zero frequency stands.

    Returns:
        One number an item, in the units of `kspace`. Coils that are all zero do not count.

    Raises:
        ShapeError: Sizes do not fit.
        InputError: Nothing was measured.
    """
    if kspace.dim() != 4 or mask.dim() != 4:
        raise ShapeError(
            "k-space and mask have the wrong form",
            found=f"{tuple(kspace.shape)} and {tuple(mask.shape)}",
            wanted="(batch, coil, row, col) and (batch or 1, 1, row or 1, col)",
        )
    batch, _, rows, cols = kspace.shape
    measured = mask.bool().expand(batch, 1, rows, cols)[:, 0]
    power = kspace.detach().abs().square()
    if origin == "corner":
        measured, power = to_centre(measured), to_centre(power)
    y = (torch.arange(rows, device=kspace.device) - rows // 2) / (rows / 2)
    x = (torch.arange(cols, device=kspace.device) - cols // 2) / (cols / 2)
    radius = torch.sqrt(y[:, None] ** 2 + x**2)
    return torch.stack([_noise_sd(p, m, radius) for p, m in zip(power, measured, strict=True)])


def _noise_sd(power: Tensor, measured: Tensor, radius: Tensor) -> Tensor:
    """Of one item: power ``(coil, row, col)``."""
    distance = radius[measured]
    if distance.numel() == 0:
        raise InputError("nothing was measured", where="mask")
    limit = 1.0
    if int((distance > limit).sum()) < 64:
        limit = float(torch.quantile(distance.float(), 0.95)) - 1e-6
    outer = power[:, measured & (radius > limit)]
    outer = outer[outer.amax(dim=1) > 0] if outer.numel() else outer
    if outer.numel() == 0:
        return power.new_zeros(())
    # The lower of the two middle values, as torch's median: exact for the large counts met here.
    return torch.sqrt(outer.median(dim=1).values.mean() / _MEDIAN_POWER)
