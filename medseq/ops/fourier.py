"""Two-dimensional Fourier transforms between images and k-space, over the last two axes of complex tensors.

Two conventions meet in MR data. ``origin="centre"`` keeps the zero frequency, and the image's middle, at index
``n // 2`` (fastMRI, ISMRMRD, BART); ``origin="corner"`` keeps both at index 0, as the FFT itself does (what the
Calgary-Campinas configurations of the original toolkits use). `norm` is torch's word: ``ortho`` is unitary,
``backward`` divides the inverse by n, ``forward`` the other. Any size works, odd ones included.
"""

from typing import Literal

import torch
from jaxtyping import Complex
from torch import Tensor

from medseq.errors import InputError

__all__ = ["Norm", "Origin", "fft2", "fft2c", "ifft2", "ifft2c", "to_centre", "to_corner"]

Origin = Literal["centre", "corner"]
Norm = Literal["ortho", "backward", "forward"]
_AXES = (-2, -1)


def fft2(
    image: Complex[Tensor, "*batch row col"], *, origin: Origin = "centre", norm: Norm = "ortho"
) -> Complex[Tensor, "*batch row col"]:
    """Image -> k-space.

    Args:
        image: Complex image, any leading axes.
        origin: Where both domains have their origin, see the module.
        norm: Which direction carries the factor 1/n.

    Returns:
        K-space of the same shape.

    Raises:
        InputError: The image is not complex, or the convention unknown.
    """
    _check(image, origin, norm)
    if origin == "corner":
        return torch.fft.fft2(image, dim=_AXES, norm=norm)
    return to_centre(torch.fft.fft2(to_corner(image), dim=_AXES, norm=norm))


def ifft2(
    kspace: Complex[Tensor, "*batch row col"], *, origin: Origin = "centre", norm: Norm = "ortho"
) -> Complex[Tensor, "*batch row col"]:
    """K-space -> image: the inverse of `fft2` of the same convention.

    Raises:
        InputError: K-space is not complex, or the convention unknown.
    """
    _check(kspace, origin, norm)
    if origin == "corner":
        return torch.fft.ifft2(kspace, dim=_AXES, norm=norm)
    return to_centre(torch.fft.ifft2(to_corner(kspace), dim=_AXES, norm=norm))


def fft2c(image: Complex[Tensor, "*batch row col"]) -> Complex[Tensor, "*batch row col"]:
    """Centred, unitary image -> k-space: the convention of fastMRI."""
    return fft2(image)


def ifft2c(kspace: Complex[Tensor, "*batch row col"]) -> Complex[Tensor, "*batch row col"]:
    """Centred, unitary k-space -> image: the convention of fastMRI."""
    return ifft2(kspace)


def to_centre(x: Tensor) -> Tensor:
    """Move index 0 of the last two axes to ``n // 2`` (numpy's fftshift)."""
    return torch.fft.fftshift(x, dim=_AXES)


def to_corner(x: Tensor) -> Tensor:
    """Move index ``n // 2`` of the last two axes to 0 (numpy's ifftshift): undoes `to_centre` for odd sizes too."""
    return torch.fft.ifftshift(x, dim=_AXES)


def _check(x: Tensor, origin: str, norm: str) -> None:
    if not x.is_complex():
        raise InputError("Fourier transforms take complex tensors", found=x.dtype, wanted="complex64 or complex128")
    if origin not in ("centre", "corner"):
        raise InputError("unknown origin of the Fourier transform", found=origin, wanted="centre or corner")
    if norm not in ("ortho", "backward", "forward"):
        raise InputError("unknown norm of the Fourier transform", found=norm, wanted="ortho, backward or forward")
