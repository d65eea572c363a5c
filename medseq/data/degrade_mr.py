"""Lower resolution as an MR scanner gives it: fewer lines of k-space in the plane, thicker slices through it.

What is simulated is the acquisition, not the interpolation: an image of few pixels on its own grid. Zero filling
(`medseq.ops.resolution.zero_fill`) brings it to the fine grid afterwards, in training and in prediction alike.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from medseq.errors import InputError, ShapeError
from medseq.ops.resolution import truncate_kspace

__all__ = ["coarse_shape", "low_resolution", "slice_profile", "thick_slices"]

Profile = Literal["box", "gaussian"]


def coarse_shape(shape: tuple[int, int], factor: int) -> tuple[int, int]:
    """Rows and columns at `factor` times the pixel size, over the same field of view.

    Raises:
        ShapeError: A side is not a multiple of the factor.
    """
    if any(side % factor for side in shape):
        raise ShapeError(
            "the image cannot be divided evenly",
            found=shape,
            wanted=f"multiples of {factor}",
            remedy="crop it to a multiple of the factor",
        )
    return shape[0] // factor, shape[1] // factor


def low_resolution(image: Float[Tensor, "*batch row col"], factor: int) -> Float[Tensor, "*batch _ _"]:
    """The magnitude image that the middle of k-space gives: `factor` times larger pixels, with Gibbs ringing.

    Args:
        image: Magnitude images in any units; sides are multiples of `factor`.
        factor: Ratio of pixel sizes in both directions, 1 (the image itself), 2, 3, 4 …

    Raises:
        InputError: The factor is below 1.
        ShapeError: A side is not a multiple of the factor.
    """
    if factor < 1:
        raise InputError("scale factor is out of range", found=factor, wanted="an integer, 1 or more")
    shape = coarse_shape((image.shape[-2], image.shape[-1]), factor)
    return image.clone() if factor == 1 else truncate_kspace(image, shape).abs()


def slice_profile(factor: float, profile: Profile = "gaussian") -> Float[np.ndarray, " tap"]:
    """Weights of the fine slices within a thick one, their sum 1 and their number odd.

    Args:
        factor: Thickness in fine slices: the width of the box, or the full width at half maximum of the Gaussian that
            selective excitation comes close to.
        profile: ``box`` or ``gaussian``.

    Raises:
        InputError: A thickness below one fine slice.
    """
    if factor < 1:
        raise InputError("slice thickness is below a fine slice", found=factor, wanted="1 or more")
    reach = int(np.ceil(factor if profile == "gaussian" else (factor - 1) / 2))
    at = np.arange(-reach, reach + 1, dtype=np.float64)
    if profile == "gaussian":
        weights = np.exp(-4 * np.log(2) * np.square(at / factor))
    else:
        # How much of each fine slice lies inside the box.
        weights = np.clip(factor / 2 - np.abs(at) + 0.5, 0.0, 1.0)
    return weights / weights.sum()


def thick_slices(
    volume: Float[np.ndarray, "slice row col"], factor: int, *, thickness: float | None = None, profile: Profile
) -> Float[np.ndarray, "thick row col"]:
    """Every `factor`-th slice, as thick as the profile says: anisotropic 2-D acquisition of an isotropic volume.

    Thick slice i is centred in fine slices ``i factor .. (i + 1) factor - 1``; at the ends the volume is repeated. A
    centre between two fine slices is met by linear interpolation.

    Args:
        volume: Isotropic volume, float32, any units.
        factor: Distance of the thick slices, in fine ones.
        thickness: See `slice_profile`; default: the distance, so that slices touch. Less leaves gaps.
        profile: See `slice_profile`.

    Raises:
        ShapeError: Fewer slices than one thick slice has.
    """
    if volume.ndim != 3 or factor < 1 or volume.shape[0] < factor:
        raise ShapeError("too few slices", found=volume.shape, wanted=f"(slice, row, col), {factor} slices or more")
    weights = slice_profile(thickness if thickness is not None else factor, profile)
    reach, count = len(weights) // 2, volume.shape[0] // factor
    centres = np.arange(count) * factor + (factor - 1) / 2
    matrix = np.zeros((count, volume.shape[0]))
    for row, centre in enumerate(centres):
        for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
            left = int(np.floor(centre + offset))
            share = centre + offset - left
            for index, part in ((left, 1 - share), (left + 1, share)):
                matrix[row, min(max(index, 0), volume.shape[0] - 1)] += weight * part
    return np.tensordot(matrix, volume, axes=1).astype(np.float32)
