"""Painted tissue: tiles that look like stained nuclei in a stained ground, for demonstrations. Simulated, no tissue.

Light is absorbed by two stains, ``I = I0 10^-(c_H v_H + c_E v_E)`` (Beer-Lambert), with the colours that Ruifrok and
Johnston measured. Nuclei are blurred discs of haematoxylin; the ground is eosin that varies smoothly.

Reference:
    Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution, Anal. Quant. Cytol. Histol.
    23(4), 2001.
"""

import numpy as np

__all__ = ["painted_tiles"]

_HAEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
# Nuclei in a tile of 128 um: between what fibrous and what crowded tissue has.
_SPARSE, _DENSE = (5, 60), (140, 260)


def painted_tiles(n: int, dense: bool, rng: np.random.Generator, side: int = 256) -> np.ndarray:
    """Tiles with few or with many nuclei, ``(n, side, side, 3)`` uint8, at 0.5 um a pixel.

    Args:
        n: Tiles.
        dense: Many nuclei.
        rng: Everything that varies: number, size and darkness of nuclei, ground, staining of the whole tile.
        side: Pixels.
    """
    return np.stack([_tile(side, *(_DENSE if dense else _SPARSE), rng) for _ in range(n)])


def _tile(side: int, fewest: int, most: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter, zoom

    ground = gaussian_filter(zoom(rng.random((9, 9)), side / 9, order=1)[:side, :side], 3)
    eosin = rng.uniform(0.15, 0.5) + 0.5 * ground + 0.05 * rng.standard_normal((side, side))
    nuclei = np.zeros((side, side))
    rows, cols = np.mgrid[:side, :side]
    count = int(rng.integers(fewest, most) * (side / 256) ** 2)
    for _ in range(max(count, 1)):
        row, col = rng.uniform(0, side, 2)
        a, b = rng.uniform(3.5, 8, 2)
        top, left = (slice(max(int(at) - 10, 0), int(at) + 11) for at in (row, col))
        inside = ((rows[top, left] - row) / a) ** 2 + ((cols[top, left] - col) / b) ** 2 < 1
        nuclei[top, left] = np.maximum(nuclei[top, left], inside * rng.uniform(0.5, 1.1))
    haematoxylin = 0.08 + gaussian_filter(nuclei, 1.0) + 0.04 * rng.standard_normal((side, side))
    stain = rng.uniform(0.7, 1.3, 2)
    density = stain[0] * haematoxylin[..., None] * _HAEMATOXYLIN + stain[1] * eosin[..., None] * _EOSIN
    return np.round(245 * 10 ** -density.clip(0)).clip(0, 255).astype(np.uint8)
