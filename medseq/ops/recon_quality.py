"""Scores of MR reconstructions in the conventions of the toolkits, each under its own name.

The toolkits share the formulas and differ in the data range and in what is divided by what, so the same pair of images
has different scores: numbers of different conventions must not stand in one table. Images are magnitudes
``(slice, row, col)`` of one volume; `scaled_nrmse` and `data_residual` take complex data.

    fastmri   data range = largest reference value of the volume; NMSE over the volume.
    calgary   each slice over the reference slice's maximum; range = largest minus smallest of both; mean over slices.
    atommic   each slice of either over its own maximum; range likewise; mean over slices. Blind to scale errors.

SSIM is that of Wang et al. with a uniform 7x7 window, K1 0.01, K2 0.03 and sample covariance in all three.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Complex, Float

from medseq.errors import InputError, ShapeError
from medseq.ops.quality import nmse, psnr

__all__ = [
    "Convention",
    "atommic_scores",
    "calgary_scores",
    "data_residual",
    "fastmri_scores",
    "scaled_nrmse",
    "scores",
    "uniform_ssim",
]

Convention = Literal["fastmri", "calgary", "atommic"]
Volume = Float[np.ndarray, "slice row col"]


def scores(image: Volume, reference: Volume, convention: Convention) -> dict[str, float]:
    """SSIM, PSNR in dB and (except ``calgary``) NMSE; every key begins with the convention's name.

    Raises:
        InputError: Unknown convention.
        ShapeError: The volumes differ in shape or are smaller than the 7x7 window.
    """
    functions = {"fastmri": fastmri_scores, "calgary": calgary_scores, "atommic": atommic_scores}
    if convention not in functions:
        raise InputError("unknown convention of scores", found=convention, wanted=", ".join(functions))
    return functions[convention](image, reference)


def fastmri_scores(image: Volume, reference: Volume) -> dict[str, float]:
    """What the fastMRI leaderboard and direct report for a volume.

    Reference:
        Zbontar et al., fastMRI, arXiv:1811.08839, section 5.5.
    """
    image, reference = _volumes(image, reference)
    peak = float(reference.max())
    return {
        "fastmri_ssim": float(np.mean([uniform_ssim(a, b, peak) for a, b in zip(image, reference, strict=True)])),
        "fastmri_psnr": psnr(image, reference, peak),
        "fastmri_nmse": nmse(image, reference),
    }


def calgary_scores(image: Volume, reference: Volume) -> dict[str, float]:
    """What the Calgary-Campinas challenge reports (its VIF aside)."""
    image, reference = _volumes(image, reference)
    ssim, noise = [], []
    for a, b in zip(image, reference, strict=True):
        a, b = a / b.max(), b / b.max()
        span = float(max(a.max(), b.max()) - min(a.min(), b.min()))
        ssim.append(uniform_ssim(a, b, span))
        noise.append(psnr(a, b, span))
    return {"calgary_ssim": float(np.mean(ssim)), "calgary_psnr": float(np.mean(noise))}


def atommic_scores(image: Volume, reference: Volume) -> dict[str, float]:
    """What atommic logs: both images over their own maxima, so a wrong scale costs nothing."""
    image, reference = _volumes(image, reference)
    parts: dict[str, list[float]] = {"atommic_ssim": [], "atommic_psnr": [], "atommic_nmse": []}
    for a, b in zip(image, reference, strict=True):
        a, b = a / a.max(), b / b.max()
        span = float(max(a.max(), b.max()) - min(a.min(), b.min()))
        parts["atommic_ssim"].append(uniform_ssim(a, b, max(span, 1.0)))
        parts["atommic_psnr"].append(psnr(a, b, span))
        parts["atommic_nmse"].append(nmse(a, b))
    return {key: float(np.mean(values)) for key, values in parts.items()}


def uniform_ssim(
    image: Float[np.ndarray, "row col"], reference: Float[np.ndarray, "row col"], data_range: float
) -> float:
    """Structural similarity with a uniform 7x7 window and sample covariance, borders of 3 pixels left out.

    Raises:
        ShapeError: The image is smaller than the window.
    """
    from skimage.metrics import structural_similarity

    if min(image.shape) < 7:
        raise ShapeError("image is too small for SSIM", found=image.shape, wanted="at least 7 x 7")
    return float(structural_similarity(image, reference, win_size=7, data_range=data_range))


def scaled_nrmse(
    image: Complex[np.ndarray, "*slice row col"],
    reference: Complex[np.ndarray, "*slice row col"],
    support: Bool[np.ndarray, "*slice row col"] | None = None,
) -> float:
    """``min over a complex number a of ||a x - ref|| / ||ref||`` inside `support`: blind to global scale and phase.

    Args:
        image: Reconstruction, complex or magnitude.
        reference: What it should be.
        support: Where the reference holds an object; None takes all pixels.

    Raises:
        ShapeError: The arrays do not fit.
        InputError: The reference is zero in the support.
    """
    image, reference = np.asarray(image, np.complex128), np.asarray(reference, np.complex128)
    if image.shape != reference.shape or (support is not None and support.shape != image.shape):
        raise ShapeError("image and reference do not fit", found=image.shape, wanted=reference.shape)
    x, y = (image[support], reference[support]) if support is not None else (image.ravel(), reference.ravel())
    norm = np.linalg.norm(y)
    if not norm > 0:
        raise InputError("the reference is zero in its support")
    energy = np.vdot(x, x).real
    scale = np.vdot(x, y) / energy if energy > 0 else 0.0
    return float(np.linalg.norm(scale * x - y) / norm)


def data_residual(
    predicted: Complex[np.ndarray, "*batch coil row col"],
    measured: Complex[np.ndarray, "*batch coil row col"],
    mask: Bool[np.ndarray, "..."],
) -> float:
    """``||M (k - y)|| / ||M y||``: how far an image's k-space is from what was measured.

    A network that invents anatomy that contradicts the data shows here, whatever the image looks like.

    Raises:
        InputError: Nothing was measured.
    """
    norm = np.linalg.norm(np.where(mask, measured, 0))
    if not norm > 0:
        raise InputError("the measured k-space is zero")
    return float(np.linalg.norm(np.where(mask, predicted - measured, 0)) / norm)


def _volumes(image: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image, reference = np.asarray(image, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if image.shape != reference.shape or image.ndim != 3 or not image.size:
        raise ShapeError(
            "image and reference do not fit", found=image.shape, wanted=f"(slice, row, col) as {reference.shape}"
        )
    for name, volume in (("image", image), ("reference", reference)):
        if not np.isfinite(volume).all() or not (volume.max(axis=(1, 2)) > 0).all():
            raise InputError(f"the {name} has a slice that is empty or not finite")
    return image, reference
