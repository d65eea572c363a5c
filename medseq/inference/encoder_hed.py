"""The built-in encoder ``hed-texture``: amounts of stain and their texture, 96 numbers a tile, nothing to download.

    18  of haematoxylin, eosin and DAB each: mean, sd, percentiles 10, 50, 90, skewness
     3  correlations of the three
     2  shares of glass, and of dense haematoxylin (nuclei)
    30  local binary patterns, uniform and rotation-invariant: haematoxylin at distance 1 and 3, eosin at 1
    20  grey-level co-occurrence of haematoxylin and eosin at 1 and 4 pixels, all directions: five Haralick features
    16  histogram of the gradient of haematoxylin, at full and at a quarter of the resolution
     7  sd of haematoxylin (4) and eosin (3) after averaging over blocks of 2, 4, 8 (and 16) pixels

A yardstick: what an encoder that learnt from tissue must beat. Made for 0.5 um/px.
"""

import numpy as np

from medseq.errors import ShapeError
from medseq.inference.encoders import EncoderInfo, require_tiles
from medseq.ops.stain import deconvolve, optical_density

__all__ = ["HedTexture"]

_DIM = 96
_MIN_SIDE = 32
# Amounts of stain are told apart up to here; more is the dark of a fold.
_MOST = 2.5
_NUCLEUS = 0.6
_GLASS = 0.15
_GREYS = 16
_GRADIENT_EDGES = np.concatenate([np.geomspace(0.005, 0.64, 8), [np.inf]])
_EPS = 1e-6
# Eight neighbours (down, right) in the order of a circle, and the class of every pattern of them.
_CIRCLE = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
_BITS = (np.arange(256)[:, None] >> np.arange(8)) & 1
_CLASSES = np.where((_BITS != np.roll(_BITS, 1, axis=1)).sum(axis=1) <= 2, _BITS.sum(axis=1), 9)


class HedTexture:
    """See the module; a `medseq.inference.encoders.PatchEncoder`."""

    def __init__(self) -> None:
        # The version changes whenever any number would.
        self.info = EncoderInfo("hed-texture", "built-in", _DIM, mpp=0.5, settings={"version": 1})

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        require_tiles(tiles, None, "hed-texture")
        if min(tiles.shape[1:3]) < _MIN_SIDE:
            raise ShapeError("tiles are too small", found=tiles.shape[1:3], wanted=f"at least {_MIN_SIDE} pixels")
        return np.stack([_features(tile) for tile in tiles]) if len(tiles) else np.empty((0, _DIM), np.float32)


def _features(tile: np.ndarray) -> np.ndarray:
    amounts = deconvolve(tile)
    # Uint8 levels: patterns and co-occurrence must not depend on noise below a stored value.
    levels = np.clip(np.rint(amounts * (255 / _MOST)), 0, 255).astype(np.uint8)
    haematoxylin, eosin = amounts[..., 0], amounts[..., 1]
    glass = (optical_density(tile) < _GLASS).all(axis=-1).mean()
    parts = [
        *(_statistics(amounts[..., stain]) for stain in range(3)),
        _correlations(amounts),
        [glass, (haematoxylin > _NUCLEUS).mean()],
        *(_patterns(levels[..., stain], radius) for stain, radius in ((0, 1), (0, 3), (1, 1))),
        *(_co_occurrence(levels[..., stain], distance) for stain in (0, 1) for distance in (1, 4)),
        *(_gradients(haematoxylin, block) for block in (1, 4)),
        [_averaged(haematoxylin, block).std() for block in (2, 4, 8, 16)],
        [_averaged(eosin, block).std() for block in (2, 4, 8)],
    ]
    return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])


def _statistics(amount: np.ndarray) -> list[float]:
    mean, sd = float(amount.mean(dtype=np.float64)), float(amount.std(dtype=np.float64))
    skewness = float((((amount - mean) / max(sd, _EPS)) ** 3).mean(dtype=np.float64)) if sd > _EPS else 0.0
    # A few saturated pixels on glass give thousands.
    return [mean, sd, *np.percentile(amount, (10, 50, 90)), float(np.clip(skewness, -10, 10))]


def _correlations(amounts: np.ndarray) -> list[float]:
    centred = amounts.reshape(-1, 3).astype(np.float64)
    centred = centred - centred.mean(axis=0)
    sd = np.sqrt((centred**2).mean(axis=0))
    products = centred.T @ centred / len(centred)
    # Noise on glass correlates by the deconvolution itself, not by what is there.
    return [products[i, j] / (sd[i] * sd[j]) if min(sd[i], sd[j]) > _EPS else 0.0 for i, j in ((0, 1), (0, 2), (1, 2))]


def _patterns(levels: np.ndarray, radius: int) -> np.ndarray:
    """Shares of the ten classes of uniform, rotation-invariant patterns; the neighbours lie on a square.

    Class 0 to 8 is the number of neighbours that are not darker, in one run around the circle; 9 is all others.

    Reference:
        Ojala et al., Multiresolution gray-scale and rotation invariant texture classification with local binary
        patterns, IEEE TPAMI 24(7), 2002, Eq. 9 (there with neighbours on a circle).
    """
    rows, cols = levels.shape
    r = radius
    centre = levels[r : rows - r, r : cols - r]
    codes = np.zeros(centre.shape, np.uint8)
    for bit, (down, right) in enumerate(_CIRCLE):
        neighbour = levels[r + r * down : rows - r + r * down, r + r * right : cols - r + r * right]
        codes |= (neighbour >= centre).astype(np.uint8) << np.uint8(bit)
    return np.bincount(_CLASSES[codes].ravel(), minlength=10) / codes.size


def _co_occurrence(levels: np.ndarray, distance: int) -> list[float]:
    """Contrast, correlation, energy, homogeneity and entropy of pairs of grey levels, over four directions.

    Reference:
        Haralick et al., Textural features for image classification, IEEE Trans. SMC 3(6), 1973, f1 to f3, f5, f9.
    """
    grey = (levels.astype(np.int64) * _GREYS) >> 8
    counts = np.zeros(_GREYS * _GREYS)
    rows, cols = grey.shape
    d = distance
    for a, b in (
        (grey[:, : cols - d], grey[:, d:]),
        (grey[: rows - d], grey[d:]),
        (grey[: rows - d, : cols - d], grey[d:, d:]),
        (grey[: rows - d, d:], grey[d:, : cols - d]),
    ):
        counts += np.bincount((a * _GREYS + b).ravel(), minlength=_GREYS * _GREYS)
    pairs = counts.reshape(_GREYS, _GREYS)
    pairs = (pairs + pairs.T) / (2 * pairs.sum())
    i, j = np.mgrid[:_GREYS, :_GREYS]
    mean = (i * pairs).sum()
    variance = ((i - mean) ** 2 * pairs).sum()
    correlation = ((i - mean) * (j - mean) * pairs).sum() / variance if variance > _EPS else 1.0
    entropy = -(pairs * np.log(np.maximum(pairs, 1e-12))).sum()
    return [
        ((i - j) ** 2 * pairs).sum() / (_GREYS - 1) ** 2,
        correlation,
        (pairs**2).sum(),
        (pairs / (1 + (i - j) ** 2)).sum(),
        entropy / np.log(_GREYS * _GREYS),
    ]


def _gradients(amount: np.ndarray, block: int) -> np.ndarray:
    """Shares of pixels by the length of the gradient, logarithmic classes."""
    averaged = _averaged(amount, block)
    down, right = np.gradient(averaged)
    counts, _ = np.histogram(np.hypot(down, right), _GRADIENT_EDGES)
    return counts / averaged.size


def _averaged(amount: np.ndarray, block: int) -> np.ndarray:
    """Means of square blocks; what does not fill one is left out."""
    rows, cols = (side // block for side in amount.shape)
    kept = amount[: rows * block, : cols * block].reshape(rows, block, cols, block)
    return kept.mean(axis=(1, 3), dtype=np.float64)
