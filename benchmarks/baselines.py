"""Classical denoisers behind one signature: ``(noisy (row, col), sd of the noise, pixel size in mm) -> (row, col)``.

Every method is told the true standard deviation of the noise, which the networks are not, and its strength was tuned
on the validation block of the training head (CT) or a validation slab (MR) by `tune`; the strengths are in units of
that sd. BM3D's package is for non-commercial use: it is used here if it is installed and is no dependency.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from medseq.ops.quality import rmse

__all__ = ["METHODS", "Denoiser", "available", "tune"]

Denoiser = Callable[[np.ndarray, float, float], np.ndarray]


def nothing(noisy: np.ndarray, sd: float, strength: float = 1.0) -> np.ndarray:
    """The noisy image itself."""
    return noisy


def nlm(noisy: np.ndarray, sd: float, strength: float = 0.8) -> np.ndarray:
    """Non-local means (Buades et al., 2005), fast version: 5 x 5 patches, distance 7."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(noisy, patch_size=5, patch_distance=7, h=strength * sd, sigma=sd, fast_mode=True)


def total_variation(noisy: np.ndarray, sd: float, strength: float = 1.0) -> np.ndarray:
    """Total variation (Rudin, Osher & Fatemi, 1992) by Chambolle's algorithm."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(noisy, weight=strength * sd, max_num_iter=200)


def wavelet(noisy: np.ndarray, sd: float, strength: float = 1.0) -> np.ndarray:
    """BayesShrink with db2 wavelets (Chang, Yu & Vetterli, 2000)."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(noisy, sigma=strength * sd, wavelet="db2", method="BayesShrink", rescale_sigma=False)


def bm3d(noisy: np.ndarray, sd: float, strength: float = 1.0) -> np.ndarray:
    """BM3D (Dabov et al., 2007), white-noise mode."""
    import bm3d as package

    return package.bm3d(noisy.astype(np.float64), strength * sd).astype(np.float32)


METHODS: dict[str, tuple[Callable[..., np.ndarray], Sequence[float]]] = {
    "nothing": (nothing, (1.0,)),
    "NLM": (nlm, (0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8)),
    "TV": (total_variation, (0.7, 1.0, 1.4, 2.0, 2.8)),
    "wavelet": (wavelet, (1.0, 1.5, 2.2, 3.0)),
    "BM3D": (bm3d, (1.0, 1.4, 1.8, 2.3)),
}
_NEEDS = {"BM3D": "bm3d", "wavelet": "pywt"}


def available() -> list[str]:
    """Methods whose packages are installed; what is missing is said on stderr."""
    names = []
    for name in METHODS:
        package = _NEEDS.get(name)
        if package is None or importlib.util.find_spec(package):
            names.append(name)
        else:
            print(f"{name}: package {package} is not installed, left out", file=sys.stderr)
    return names


def tune(
    name: str,
    pairs: Sequence[tuple[np.ndarray, np.ndarray, float]],
    limit: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    *,
    rician: bool = False,
) -> tuple[Denoiser, tuple[float, float]]:
    """The method at the strength with the lowest RMSE over ``(noisy, clean, sd)``, and that strength.

    Args:
        name: A key of `METHODS`.
        pairs: Validation images.
        limit: Applied to both before they are compared (the display window).
        rician: The noise is Rician: also try ``sqrt(max(result^2 - c sd^2, 0))``, c 1 or 2, which undoes its bias.

    Returns:
        The method, and its strength and c.
    """
    method, grid = METHODS[name]

    def unbiased(result: np.ndarray, sd: float, correction: float) -> np.ndarray:
        return np.sqrt(np.maximum(result**2 - correction * sd**2, 0)) if correction else result

    def run(noisy: np.ndarray, sd: float, spacing_mm: float, *, strength: float, correction: float) -> np.ndarray:
        return unbiased(method(noisy, sd, strength), sd, correction)

    errors = {}
    for strength in grid:
        results = [(method(noisy, sd, strength), clean, sd) for noisy, clean, sd in pairs]
        for correction in (0.0, 1.0, 2.0) if rician and name != "nothing" else (0.0,):
            wrong = [rmse(limit(unbiased(result, sd, correction)), limit(clean)) for result, clean, sd in results]
            errors[strength, correction] = np.mean(wrong)
    best = min(errors, key=errors.__getitem__)
    return partial(run, strength=best[0], correction=best[1]), best
