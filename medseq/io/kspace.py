"""Value objects for raw MR data: what a k-space slice is and how a file of them is read.

The contract only; readers for fastMRI and ISMRMRD files fulfil it. Complex arrays are complex64, never a trailing
axis of 2.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from medseq.errors import ShapeError
from medseq.io.volume import SourceRef

__all__ = ["FFTConvention", "KSpaceReader", "KSpaceSlice"]


@dataclass(frozen=True)
class FFTConvention:
    """How k-space and image belong together; a wrong one gives a checkerboard or a wrong scale, not an error.

    Attributes:
        origin: Where the zero frequency (and the image centre) is stored: ``centre`` or ``corner``.
        norm: ``ortho`` (unitary) or ``backward`` (1/n on the inverse), as in `numpy.fft`.
    """

    origin: Literal["centre", "corner"] = "centre"
    norm: Literal["ortho", "backward"] = "ortho"


@dataclass(frozen=True)
class KSpaceSlice:
    """Raw data of one slice.

    Attributes:
        kspace: ``(coil, row, col)`` complex64, arbitrary scanner units; zero where nothing was measured.
        mask: ``(1, row or 1, col)`` bool, True where measured; zero-padded columns are False.
        sens_maps: Coil sensitivities ``(coil, row, col)`` complex64, or None.
        noise_cov: Noise covariance ``(coil, coil)`` complex64, or None.
    """

    kspace: np.ndarray
    mask: np.ndarray
    sens_maps: np.ndarray | None = None
    noise_cov: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.kspace.ndim != 3 or not np.iscomplexobj(self.kspace):
            raise ShapeError(
                "k-space has the wrong form",
                found=f"{self.kspace.dtype} {self.kspace.shape}",
                wanted="complex (coil, row, col)",
            )
        coils, rows, cols = self.kspace.shape
        if self.mask.dtype != bool or self.mask.shape not in ((1, rows, cols), (1, 1, cols)):
            raise ShapeError(
                "the sampling mask has the wrong form",
                found=f"{self.mask.dtype} {self.mask.shape}",
                wanted=f"bool (1, {rows} or 1, {cols})",
            )
        if self.sens_maps is not None and self.sens_maps.shape != self.kspace.shape:
            raise ShapeError(
                "k-space and sensitivity maps disagree",
                found=self.sens_maps.shape,
                wanted=self.kspace.shape,
                remedy="re-estimate the maps or pass sens_maps=None",
            )
        if self.noise_cov is not None and self.noise_cov.shape != (coils, coils):
            raise ShapeError(
                "the noise covariance has the wrong shape", found=self.noise_cov.shape, wanted=(coils, coils)
            )


@runtime_checkable
class KSpaceReader(Protocol):
    """Reads raw MR data slice by slice.

    Attributes:
        n: Number of slices.
        fft: Convention of the stored k-space.
        recon_shape: ``(row, col)`` of the image that the scanner would show.
        fov_mm: ``(row, col)`` field of view of that image, or None.
        phase_axis: Axis of undersampling: 0 row, 1 column.
        affine: 4x4, ``(col, row, slice, 1)`` -> RAS mm of the reconstructed images, or None.
        source: Where the data came from.
    """

    n: int
    fft: FFTConvention
    recon_shape: tuple[int, int]
    fov_mm: tuple[float, float] | None
    phase_axis: Literal[0, 1]
    affine: np.ndarray | None
    source: SourceRef

    def read(self, i: int) -> KSpaceSlice:
        """Slice ``i``, 0 <= i < n."""
        ...
