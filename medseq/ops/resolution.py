"""Fewer and more pixels over the same field of view, as an MR scanner makes them: k-space cut, or filled with zeros.

Both grids share the field of view, so that pixel ``j`` of `n` covers ``[j / n, (j + 1) / n]`` of it; a plain FFT with
zeros would keep the centre of pixel 0 in its place instead, shift the image by a fraction of a pixel, and treat a
mirrored image differently. Images are taken as periodic, as the Fourier transform does. `truncate_kspace` is a left
inverse of `zero_fill`: ``truncate_kspace(zero_fill(x, fine), coarse) = x`` for every real x, the line at the Nyquist
frequency included.

With ``x_i = (i + 1/2) n / N - 1/2``, the place of fine pixel i on the coarse grid of n pixels, ``k <= n / 2``, and
w = 1 but for w = 1/2 at k = n / 2 of an even n:

    zero_fill        y_i = sum_j D(x_i - j) x_j,    D(t) = (1 + 2 sum_k w_k cos(2 pi k t / n)) / n
    truncate_kspace  x_j = (n / N) sum_i D(x_i - j) y_i, with w = 1 throughout

Reference:
    The closed form of the sum is the Dirichlet kernel; Oppenheim & Schafer, Discrete-Time Signal Processing, 3rd ed.,
    section 8.5. Ringing at edges: Gibbs, in MR: Czervionke et al., AJR 151, 1988.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from medseq.errors import ShapeError

__all__ = ["truncate_kspace", "zero_fill"]


def zero_fill(image: Float[Tensor, "*batch row col"], shape: tuple[int, int]) -> Float[Tensor, "*batch _ _"]:
    """The image on a finer grid: its k-space surrounded by zeros (sinc interpolation, edges ring).

    Args:
        image: Real images, any units; they are kept.
        shape: Rows and columns of the fine grid, at least those of the image.

    Raises:
        ShapeError: The grid is coarser than the image's.
    """
    _require(image.shape[-2:], shape)
    rows, cols = (_kernel(coarse, fine, image) for coarse, fine in zip(image.shape[-2:], shape, strict=True))
    return rows @ image @ cols.mT


def truncate_kspace(image: Float[Tensor, "*batch row col"], shape: tuple[int, int]) -> Float[Tensor, "*batch _ _"]:
    """The image on a coarser grid: only the middle of its k-space is kept (no aliasing, edges ring).

    Args:
        image: Real images, any units; they are kept.
        shape: Rows and columns of the coarse grid, at most those of the image.

    Returns:
        Real images with values of either sign; a magnitude image is the absolute value.

    Raises:
        ShapeError: The grid is finer than the image's.
    """
    _require(shape, image.shape[-2:])
    rows, cols = (_adjoint(coarse, fine, image) for coarse, fine in zip(shape, image.shape[-2:], strict=True))
    return rows @ image @ cols.mT


def _places(coarse: int, fine: int) -> Float[Tensor, " fine"]:
    return (torch.arange(fine, dtype=torch.float64) + 0.5) * (coarse / fine) - 0.5


def _kernel(coarse: int, fine: int, like: Tensor) -> Float[Tensor, "fine coarse"]:
    if coarse == fine:
        return torch.eye(fine, dtype=like.dtype, device=like.device)
    distance = _places(coarse, fine)[:, None] - torch.arange(coarse, dtype=torch.float64)
    angle = math.pi * distance / coarse
    slope = torch.sin(angle) if coarse % 2 else torch.tan(angle)
    # Where a fine pixel lies on a coarse one both sines vanish, and the kernel is 1.
    kernel = torch.where(slope.abs() < 1e-9, 1.0, torch.sin(math.pi * distance) / (coarse * slope))
    return kernel.to(like)


def _adjoint(coarse: int, fine: int, like: Tensor) -> Float[Tensor, "coarse fine"]:
    wide = like.new_empty(0, dtype=torch.float64, device="cpu")
    matrix = _kernel(coarse, fine, wide).mT
    if coarse == fine:
        return matrix.to(like)
    if coarse % 2 == 0:
        # Both ends of k-space fall on the one Nyquist line of the coarse grid.
        signs = torch.cos(math.pi * torch.arange(coarse, dtype=torch.float64))
        matrix = matrix + signs[:, None] * torch.cos(math.pi * _places(coarse, fine)) / coarse
    return (matrix * (coarse / fine)).to(like)


def _require(coarse: tuple[int, ...], fine: tuple[int, ...]) -> None:
    if min(coarse) < 1 or any(few > many for few, many in zip(coarse, fine, strict=True)):
        raise ShapeError(
            "the grids do not fit: one must be finer", found=f"{tuple(coarse)} and {tuple(fine)}", wanted="coarse, fine"
        )
