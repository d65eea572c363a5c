"""Image quality against a reference, and the noise of an image without one.

Every function says which convention it follows; the data range is never guessed.

Images are ``(row, col)`` or ``(slice, row, col)`` arrays in native units. Numbers of different conventions must not
stand in one table.
"""

import numpy as np
from jaxtyping import Float

from medseq.errors import InputError, ShapeError

__all__ = ["in_window", "nmse", "noise_sd", "psnr", "rmse", "ssim"]

Image = Float[np.ndarray, "*slice row col"]
# Median of |x| of a standard normal variable.
_MAD_NORMAL = 0.6744897501960817


def rmse(image: Image, reference: Image) -> float:
    """Root mean squared error in native units, over all pixels."""
    image, reference = _pair(image, reference)
    return float(np.sqrt(np.mean(np.square(image - reference))))


def nmse(image: Image, reference: Image) -> float:
    """``||image - reference||^2 / ||reference||^2`` over the whole array (fastMRI's convention)."""
    image, reference = _pair(image, reference)
    return float(np.sum(np.square(image - reference)) / np.sum(np.square(reference)))


def psnr(image: Image, reference: Image, data_range: float) -> float:
    """``10 log10(data_range^2 / MSE)`` in dB over the whole array; infinite where the two are equal.

    Args:
        image: What is judged.
        reference: What it should be.
        data_range: Distance of the largest and smallest possible value: the width of the window, or what the paper
            that one compares with takes.
    """
    image, reference = _pair(image, reference)
    _check_range(data_range)
    error = np.mean(np.square(image - reference))
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: Image, reference: Image, data_range: float) -> float:
    """Structural similarity of Wang et al.: Gaussian weights of sd 1.5 (11 x 11), K1 0.01, K2 0.03, mean over slices.

    Population covariance, borders of half a window left out (scikit-image's convention with
    ``gaussian_weights=True, use_sample_covariance=False``).

    Raises:
        ShapeError: The image is smaller than the 11 x 11 window.

    Reference:
        Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004.
    """
    from skimage.metrics import structural_similarity

    image, reference = _pair(image, reference)
    _check_range(data_range)
    if min(image.shape[-2:]) < 11:
        raise ShapeError("image is too small for SSIM", found=image.shape[-2:], wanted="at least 11 x 11")
    pairs = zip(image.reshape(-1, *image.shape[-2:]), reference.reshape(-1, *image.shape[-2:]), strict=True)
    scores = [
        structural_similarity(
            a, b, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in pairs
    ]
    return float(np.mean(scores))


def in_window(image: Image, window: tuple[float, float]) -> Image:
    """The image limited to a display window, as a reader sees it; PSNR and SSIM then take the window's width."""
    return np.clip(image, *window)


def _pair(image: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, reference = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if image.shape != reference.shape or image.ndim not in (2, 3) or not image.size:
        raise ShapeError("image and reference do not fit", found=image.shape, wanted=reference.shape)
    return image, reference


def _check_range(data_range: float) -> None:
    if not data_range > 0:
        raise InputError("data_range must be positive", found=data_range)


def noise_sd(plane: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Noise standard deviation of one plane ``(row, col)``: MAD of the diagonal Haar wavelet band.

    Blocks that are exactly flat (air, zero background) or touch padding say nothing about noise and are left out.
    Returns 0.0 if no block is left.

    Reference:
        Donoho & Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81 (1994), section 4.2.
    """
    rows, cols = (side // 2 * 2 for side in plane.shape)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    a, b, c, d = (plane[i:rows:2, j:cols:2].astype(np.float32) for i, j in corners)
    diagonal = np.abs(a - b - c + d) / 2
    keep = diagonal > 0
    if valid is not None:
        for i, j in corners:
            keep &= valid[i:rows:2, j:cols:2]
    return float(np.median(diagonal[keep]) / _MAD_NORMAL) if keep.any() else 0.0
