"""Sparse images: the proximal maps of wavelet and total-variation penalties, and the accelerated descent around them.

All work on batches of images ``(batch, row, col)``, real or complex; a complex number is shrunk by its modulus, which
leaves its phase alone.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TotalVariationProx", "WaveletProx", "fista", "shrink"]

_ROOT3 = math.sqrt(3.0)
# Daubechies' wavelet with two vanishing moments.
_LOW = [
    (1 + _ROOT3) / math.sqrt(32),
    (3 + _ROOT3) / math.sqrt(32),
    (3 - _ROOT3) / math.sqrt(32),
    (1 - _ROOT3) / math.sqrt(32),
]
_HIGH = [_LOW[3], -_LOW[2], _LOW[1], -_LOW[0]]


def fista(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, float], Tensor],
    start: Tensor,
    *,
    bound: float,
    iterations: int,
) -> Tensor:
    """Minimise ``f(x) + g(x)``: gradient steps on f, proximal maps of g, momentum that restarts where it overshoots.

    Args:
        gradient: Of f.
        prox: ``(x, t) -> argmin_z g(z) + |z - x|^2 / (2 t)``.
        start: First x.
        bound: Lipschitz constant of the gradient.
        iterations: Number of steps.

    Reference:
        Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, SIAM J. Imaging Sciences 2, 2009;
        O'Donoghue and Candes, Adaptive restart for accelerated gradient schemes, arXiv:1204.3982, for the restart.
    """
    x = ahead = start
    momentum = torch.ones(len(start), 1, 1, dtype=start.real.dtype, device=start.device)
    for _ in range(iterations):
        new = prox(ahead - gradient(ahead) / bound, 1 / bound)
        step = new - x
        overshoot = ((ahead - new) * step.conj()).real.sum(dim=(1, 2), keepdim=True) > 0
        momentum = torch.where(overshoot, 1, momentum)
        following = (1 + torch.sqrt(1 + 4 * momentum**2)) / 2
        x, ahead = new, new + (momentum - 1) / following * step
        momentum = following
    return x


def shrink(x: Tensor, amount: Tensor | float) -> Tensor:
    """Soft threshold: every modulus smaller by `amount`, at least 0."""
    size = _power(x).sqrt()
    return x * ((size - amount).clamp_min(0) / size.clamp_min(torch.finfo(size.dtype).tiny))


class WaveletProx:
    """Soft threshold of the undecimated wavelet transform: ``lam * ||W x||_1`` averaged over all shifts of the grid.

    The average of the proximal maps of all shifts of Daubechies' orthonormal wavelet of four taps, details only. One
    grid alone leaves blocks, and a new random grid in each step of an accelerated descent drifts away from the
    solution; the average does neither, takes images of any size, and costs as many filters as there are levels.

    Args:
        lam: Weight.
        size: Rows and columns of the images.
        levels: Of the transform; None for a coarsest image of at least 16 pixels a side.

    Reference:
        Daubechies, Orthonormal bases of compactly supported wavelets, CPAM 41, 1988; Coifman and Donoho,
        Translation-invariant de-noising, Lecture Notes in Statistics 103, 1995.
    """

    def __init__(self, lam: Tensor | float, size: tuple[int, int], levels: int | None = None) -> None:
        self.lam = lam
        self.levels = max(1, int(math.log2(max(2, min(size) / 16)))) if levels is None else levels

    def __call__(self, x: Tensor, step: float) -> Tensor:
        return self._shrink(x, self.lam * step, 0)

    def _shrink(self, x: Tensor, amount: Tensor | float, level: int) -> Tensor:
        if level == self.levels:
            return x
        gap = 2**level
        low, high = analyse(x, -2, gap)
        low, low_high = analyse(low, -1, gap)
        high_low, high = analyse(high, -1, gap)
        low = self._shrink(low, amount, level + 1)
        details = (shrink(band, amount) for band in (low_high, high_low, high))
        low = synthesise(low, next(details), -1, gap)
        return synthesise(low, synthesise(next(details), next(details), -1, gap), -2, gap)


def analyse(x: Tensor, dim: int, gap: int = 1) -> tuple[Tensor, Tensor]:
    """One level of the undecimated periodic wavelet transform: smooth part and details at every position.

    Args:
        x: Any tensor.
        dim: Axis.
        gap: Distance of the taps, ``2^level``.
    """
    low, high = _LOW[0] * x, _HIGH[0] * x
    for tap in (1, 2, 3):
        moved = x.roll(-tap * gap, dim)
        low.add_(moved, alpha=_LOW[tap])
        high.add_(moved, alpha=_HIGH[tap])
    return low, high


def synthesise(low: Tensor, high: Tensor, dim: int, gap: int = 1) -> Tensor:
    """Inverse of `analyse`: half its adjoint, the mean over both phases of the decimated transform."""
    x = torch.zeros_like(low)
    for tap in range(4):
        part = (0.5 * _LOW[tap] * low).add_(high, alpha=0.5 * _HIGH[tap])
        x.add_(part.roll(tap * gap, dim))
    return x


class TotalVariationProx:
    """Proximal map of ``lam * TV(x)`` with isotropic total variation, by accelerated projections of its dual.

    The dual of one call is where the next one starts: inside an outer descent a few inner steps are enough. So one
    object belongs to one descent.

    Args:
        lam: Weight.
        inner: Steps a call.

    Reference:
        Beck and Teboulle, Fast gradient-based algorithms for constrained total variation image denoising and
        deblurring problems, IEEE TIP 18, 2009, section IV.
    """

    def __init__(self, lam: Tensor | float, inner: int = 5) -> None:
        self.lam, self.inner = lam, inner
        self.dual: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, step: float) -> Tensor:
        amount = self.lam * step
        if self.dual is None:
            self.dual = (torch.zeros_like(x[..., 1:, :]), torch.zeros_like(x[..., 1:]))
        dual = ahead = self.dual
        momentum = 1.0
        for _ in range(self.inner):
            image = x - amount * _divergence(*ahead)
            # Differences along two axes have a squared norm of at most 8.
            new = _project(*(d + g / (8 * amount) for d, g in zip(ahead, _differences(image), strict=True)))
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            weight = (momentum - 1) / following
            ahead = (new[0] + weight * (new[0] - dual[0]), new[1] + weight * (new[1] - dual[1]))
            dual, momentum = new, following
        self.dual = dual
        return x - amount * _divergence(*dual)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def _divergence(down: Tensor, across: Tensor) -> Tensor:
    """The adjoint of `_differences`."""
    return F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1)) + F.pad(across, (1, 0)) - F.pad(across, (0, 1))


def _project(down: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors longer than 1 are cut to length 1; at the last row and column only one of the components exists."""
    power = F.pad(_power(down), (0, 0, 0, 1)) + F.pad(_power(across), (0, 1))
    scale = power.clamp_min(1).rsqrt()
    return down * scale[..., :-1, :], across * scale[..., :-1]


def _power(x: Tensor) -> Float[Tensor, "..."]:
    return x.abs().square() if not x.is_complex() else x.real.square() + x.imag.square()
