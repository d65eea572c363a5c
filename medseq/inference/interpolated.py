"""Whether a series was enlarged before it came: then there is nothing between its pixels that a model could add.

Scanners often store twice the acquired matrix. The outer part of such an image's k-space holds next to nothing: of the
power without the mean, at most 7e-5 along each axis for zero-filled images of eight slices of six people, and at least
2.4e-4 along one of them for the same slices as they were acquired. A scan that is that smooth by nature is rare.
"""

import numpy as np
from jaxtyping import Float

from medseq.inference.predictor import Flag
from medseq.io.volume import VolumeReader

__all__ = ["interpolation_flags", "outer_share"]

_EMPTY = 1.5e-4
_PLANES = 5
# Nyquist is 0.5: what a two-fold zero filling leaves empty, less the rounding of the magnitude.
_OUTER = 0.27


def outer_share(plane: Float[np.ndarray, "row col"]) -> tuple[float, float]:
    """Share of a plane's power, without its mean, beyond half the resolution: along rows and along columns.

    0 for a constant plane.
    """
    centred = plane - plane.mean(dtype=np.float64)
    power = np.square(np.abs(np.fft.fft2(centred)))
    total = float(power.sum())
    if not total > 0:
        return 0.0, 0.0
    rows, cols = (np.abs(np.fft.fftfreq(side)) > _OUTER for side in plane.shape)
    return float(power[rows].sum()) / total, float(power[:, cols].sum()) / total


def interpolation_flags(reader: VolumeReader) -> list[Flag]:
    """A flag for a series whose planes, at five places, hold nothing beyond half their resolution.

    Planes that are constant tell nothing; a series of such planes is not flagged.
    """
    count = reader.header.planes
    places = np.unique(np.linspace(0, count - 1, min(count, _PLANES) + 2)[1:-1].round().astype(int))
    shares = [outer_share(reader.read(int(place), int(place) + 1)[0]) for place in places]
    told = [max(share) for share in shares if max(share) > 0]
    if not told or float(np.median(told)) >= _EMPTY:
        return []
    text = (
        "the images hold nothing beyond half their resolution: they seem to have been enlarged already, "
        "and the result shows no more than they do; use the acquired matrix"
    )
    return [Flag("interpolated", text)]
