"""How far a vector lies from a cloud of known ones, in units of the cloud's own spread.

A model that was trained on some bags says as little about very different ones; the distance of a bag's pooled embedding
from those of the training bags tells. The covariance is shrunk, since there are often fewer bags than dimensions, and
kept as a few axes and one number for all other directions, so that it fits in a bundle.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from medseq.errors import InputError, ShapeError

__all__ = ["Spread", "fit_spread"]


class Spread(NamedTuple):
    """Mean and covariance ``axes^T diag(variance) axes + residual (I - axes^T axes)``.

    mean: ``(width,)``.
    axes: ``(rank, width)``, orthonormal rows; rows of 0 are unused.
    variance: ``(rank,)``, along the axes.
    residual: Variance in every direction across the axes.
    """

    mean: np.ndarray
    axes: np.ndarray
    variance: np.ndarray
    residual: float

    def distance(self, vectors: Float[np.ndarray, "case width"]) -> Float[np.ndarray, " case"]:
        """Mahalanobis distance of each vector, ``sqrt((x - m)^T C^-1 (x - m))``.

        Raises:
            ShapeError: Vectors of another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ShapeError("vectors do not fit", found=vectors.shape, wanted=f"(case, {len(self.mean)})")
        away = vectors.astype(np.float64) - self.mean
        along = away @ self.axes.T
        across = np.maximum((away**2).sum(1) - (along**2).sum(1), 0)
        return np.sqrt((along**2 / self.variance).sum(1) + across / self.residual)


def fit_spread(vectors: Float[np.ndarray, "case width"], rank: int = 32) -> Spread:
    """Mean and shrunk covariance of vectors.

    The covariance is Ledoit and Wolf's ``(1 - a) S + a tr(S) / width I``. With fewer cases than `rank` it is kept
    exactly; otherwise the directions beyond the `rank` widest share their mean variance.

    Args:
        vectors: One a case; at least 2.
        rank: Axes to keep.

    Raises:
        InputError: Fewer than 2 cases, or all alike.

    Reference:
        Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate
        Analysis 88(2), 2004; Lee et al., arXiv:1807.03888, for the distance as a sign of foreign inputs.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    vectors = np.asarray(vectors, np.float64)
    n, width = vectors.shape
    if n < 2:
        raise InputError("a spread needs at least two cases", found=n)
    mean = vectors.mean(0)
    away = vectors - mean
    shrinkage = float(ledoit_wolf_shrinkage(away, assume_centered=True))
    # Singular values instead of a (width, width) matrix: there may be few cases and thousands of dimensions.
    _, singular, axes = np.linalg.svd(away, full_matrices=False)
    spread = singular**2 / n
    floor = shrinkage * spread.sum() / width
    kept = min(rank, len(spread), max(1, int(np.count_nonzero(spread > 1e-12 * spread[0]))))
    rest = width - kept
    residual = floor + (1 - shrinkage) * (spread[kept:].sum() / rest if rest else 0.0)
    if not residual > 0 and not (rest == 0 and spread[-1] > 0):
        raise InputError("the cases do not differ, so they have no spread", found=f"{n} cases")
    variance = np.ones(rank)
    variance[:kept] = (1 - shrinkage) * spread[:kept] + floor
    padded = np.zeros((rank, width))
    padded[:kept] = axes[:kept]
    return Spread(mean, padded, variance, float(residual) or 1.0)
