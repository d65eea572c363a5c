"""Simulated multi-coil MR scans of real anatomy: coils, phase, resolution and noise as a scanner would add them.

Everything continuous happens on a grid at least twice as fine as the scan; the scan is the centre of its k-space. A
model is thus never trained on data that its own discrete operator made (no inverse crime): truncation rings as it does
on a scanner. What is simulated is called simulated wherever a number is shown.
"""

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from medseq.data.coil_fields import coil_maps, smooth_field, uniform
from medseq.errors import InputError, ShapeError
from medseq.ops.coils import divide_or_zero, rss
from medseq.ops.fourier import fft2c, ifft2c

__all__ = ["Scan", "acquire", "add_phase", "imperfect_maps", "simulate_scan"]


class Scan(NamedTuple):
    """One fully sampled simulated slice; centred, unitary Fourier convention.

    Attributes:
        kspace: Noisy k-space ``(coil, row, col)``.
        sens_maps: True sensitivities, root sum of squares 1.
        image: Combination of the coils without noise ``(row, col)``, complex.
        noisy: Combination of the noisy coils: what a real, fully sampled reference looks like.
        noise_sd: ``sqrt(E |n|^2)`` of a sample of k-space.
    """

    kspace: Complex[Tensor, "coil row col"]
    sens_maps: Complex[Tensor, "coil row col"]
    image: Complex[Tensor, "row col"]
    noisy: Complex[Tensor, "row col"]
    noise_sd: float


def simulate_scan(
    magnitude: Float[Tensor, "fine_row fine_col"],
    coils: int,
    noise: float,
    generator: torch.Generator,
    *,
    fine: int = 2,
) -> Scan:
    """Scan a magnitude image with a random coil array and random phase.

    Args:
        magnitude: Image on a grid `fine` times as fine as the scan; sizes divisible by `fine`.
        coils: Number of receivers.
        noise: ``sqrt(E |n|^2)`` of a coil's pixel, as a part of the image's 95th percentile.
        generator: Source of randomness.
        fine: How much finer the image's grid is, at least 2.

    Raises:
        InputError: `fine` below 2.
        ShapeError: The image's sizes are no multiples of it.
    """
    if fine < 2:
        raise InputError("a scan simulated on its own grid proves nothing", found=f"fine={fine}", wanted="2 or more")
    rows, cols = magnitude.shape
    if rows % fine or cols % fine:
        raise ShapeError("the fine grid does not fit", found=(rows, cols), wanted=f"multiples of {fine}")
    fov = (rows / max(rows, cols), cols / max(rows, cols))
    maps = coil_maps((rows, cols), coils, generator, fov)
    strength = rss(maps, dim=0)
    maps = divide_or_zero(maps, strength[None])
    shading = (strength / strength.mean()) ** uniform((0.3, 1.0), generator)
    image = add_phase(magnitude, generator, fine=fine) * shading
    return acquire(image, maps, noise, generator, fine=fine)


def acquire(
    image: Complex[Tensor, "fine_row fine_col"],
    maps: Complex[Tensor, "coil fine_row fine_col"],
    noise: float,
    generator: torch.Generator,
    *,
    fine: int = 2,
) -> Scan:
    """Measure the centre of the k-space of every coil image, with noise; see `simulate_scan`.

    The result is scaled so that the 95th percentile of the noise-free combination's magnitude is 1.
    """
    coil_images = image * maps
    rows, cols = image.shape[0] // fine, image.shape[1] // fine
    top, left = image.shape[0] // 2 - rows // 2, image.shape[1] // 2 - cols // 2
    # Unitary transforms of different sizes: the crop's amplitude grows by the ratio of the sides.
    kspace = fft2c(coil_images)[:, top : top + rows, left : left + cols] / fine
    # The scan's pixel n // 2 is the fine grid's n' // 2, and `fine` of its pixels make one.
    row_start, col_start = (image.shape[i] // 2 - fine * (size // 2) for i, size in enumerate((rows, cols)))
    low = maps[:, row_start::fine, col_start::fine][:, :rows, :cols]
    low = divide_or_zero(low, rss(low, dim=0)[None])
    combined = (low.conj() * ifft2c(kspace)).sum(0)
    scale = float(torch.quantile(combined.abs().flatten(), 0.95).clamp_min(1e-8))
    kspace, combined = kspace / scale, combined / scale
    # torch's complex normal numbers have E |n|^2 = 1.
    noisy = kspace + noise * torch.randn(kspace.shape, generator=generator, dtype=kspace.dtype)
    return Scan(noisy, low, combined, (low.conj() * ifft2c(noisy)).sum(0), noise)


def add_phase(
    magnitude: Float[Tensor, "row col"], generator: torch.Generator, *, fine: int = 2
) -> Complex[Tensor, "row col"]:
    """Background phase: smooth fields, echo shifts, and fat that is out of phase with water.

    Args:
        magnitude: Image.
        generator: Source of randomness.
        fine: Pixels of the image in one of the scan.
    """
    shape = (magnitude.shape[0], magnitude.shape[1])

    def smooth(low: int, high: int) -> Tensor:
        return smooth_field(shape, low + int(torch.randint(high - low + 1, (), generator=generator)), generator)[0]

    phase = uniform((0, 2), generator) * smooth(3, 4) + uniform((0, 0.5), generator) * smooth(6, 13)
    phase = phase + uniform((-3.2, 3.2), generator)
    if uniform((0, 1), generator) < 0.5:
        y, x = (torch.linspace(-0.5, 0.5, size) for size in shape)
        phase = phase + uniform((-8, 8), generator) * y[:, None] + uniform((-8, 8), generator) * x
    if uniform((0, 1), generator) < 0.6:
        bright = torch.sigmoid(15 * (magnitude - uniform((0.4, 1.2), generator)))
        phase = phase + uniform((-1.2, 1.2), generator) * bright * (1 + 0.5 * smooth(5, 5))
    return torch.polar(magnitude, phase)


def imperfect_maps(scan: Scan, generator: torch.Generator) -> Complex[Tensor, "coil row col"]:
    """Maps as an estimate from the scan would give them: smoothly wrong, zero in air, or from few central lines."""
    rows, cols = scan.image.shape
    smooth = F.avg_pool2d(scan.image.abs()[None, None], 15, stride=1, padding=7, count_include_pad=False)[0, 0]
    if len(scan.kspace) > 1 and uniform((0, 1), generator) < 0.2:
        return _low_resolution_maps(scan, generator)
    error = uniform((0, 0.02), generator)
    wrong = smooth_field((rows, cols), 6, generator, len(scan.sens_maps), complex_values=True)
    maps = scan.sens_maps * (1 + error * wrong)
    maps = divide_or_zero(maps, rss(maps, dim=0)[None])
    if uniform((0, 1), generator) < 0.7:
        maps = maps * (smooth >= uniform((0.02, 0.08), generator))
    return maps


def _low_resolution_maps(scan: Scan, generator: torch.Generator) -> Tensor:
    """Low-pass coil images over their root sum of squares, in the phase gauge of the true maps."""
    rows, cols = scan.image.shape
    width = 0.8 * uniform((8, 12), generator)
    y, x = torch.arange(rows) - rows // 2, torch.arange(cols) - cols // 2
    low_pass = torch.exp(-((torch.sqrt(y[:, None] ** 2 + x**2) / width) ** 4))
    images = ifft2c(scan.kspace * low_pass)
    strength = rss(images, dim=0)
    maps = divide_or_zero(images, strength[None])
    gauge = (maps * scan.sens_maps.conj()).sum(0)
    maps = maps * divide_or_zero(gauge.conj(), gauge.abs())
    return maps * (strength >= uniform((0.03, 0.1), generator) * strength.max())
