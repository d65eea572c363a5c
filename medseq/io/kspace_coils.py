"""Receive coils as linear algebra: noise covariance and prewhitening, compression to fewer virtual coils.

Pure functions over k-space ``(coil, row, col)`` complex64; a matrix ``(new coil, coil)`` acts on the coil axis, alike
for samples and for sensitivity maps.
"""

from dataclasses import dataclass

import numpy as np

from medseq.errors import FormatError, InputError
from medseq.io.kspace_fft import fft_axis, ifft_axis

__all__ = [
    "GeometricCompression",
    "apply_coils",
    "geometric_compression",
    "noise_covariance",
    "svd_compression",
    "whitening_matrix",
]

# Below this share of the largest eigenvalue a coil is dead, or a copy of others: its noise cannot be made 1.
_DEAD = 1e-10


def noise_covariance(noise: np.ndarray) -> np.ndarray:
    """Covariance of noise samples.

    Args:
        noise: ``(coil, sample)`` complex, in scanner units.

    Returns:
        ``(coil, coil)`` complex64 Hermitian: the mean of ``n n^H``, scanner units squared. The mean is not removed:
        receiver noise has none.

    Raises:
        FormatError: Fewer samples than coils, NaN, or silence.
    """
    coils, samples = noise.shape
    if samples < coils or not np.isfinite(noise).all() or not noise.any():
        raise FormatError(
            "the noise measurement is of no use",
            found=f"{samples} samples of {coils} coils",
            wanted=f"at least {coils} finite samples that are not all zero",
        )
    wide = noise.astype(np.complex128)
    return (wide @ wide.conj().T / samples).astype(np.complex64)


def whitening_matrix(covariance: np.ndarray) -> np.ndarray:
    """The matrix that turns noise of this covariance into independent noise of unit variance.

    Args:
        covariance: ``(coil, coil)`` Hermitian.

    Returns:
        Inverse of its lower Cholesky factor, ``(coil, coil)`` complex64; rows and columns of dead coils are zero.

    Raises:
        FormatError: Not a covariance: not finite, or with negative eigenvalues.

    Reference:
        Pruessmann et al., Magn Reson Med 46:638 (2001), appendix A.
    """
    wide = np.asarray(covariance, dtype=np.complex128)
    wide = (wide + wide.conj().T) / 2
    power = wide.diagonal().real
    if not np.isfinite(wide).all() or power.min() < 0 or not power.max() > 0:
        raise FormatError("the noise covariance makes no sense", wanted="finite, with positive variances")
    alive = np.flatnonzero(power > _DEAD * power.max())
    part = wide[np.ix_(alive, alive)]
    try:
        factor = np.linalg.cholesky(part)
    except np.linalg.LinAlgError:
        raise FormatError(
            "the noise covariance is not positive definite",
            found=f"smallest eigenvalue {np.linalg.eigvalsh(part)[0]:.3g}",
            wanted="more noise samples than coils",
        ) from None
    out = np.zeros(wide.shape, np.complex64)
    out[np.ix_(alive, alive)] = np.linalg.inv(factor)
    return out


def apply_coils(matrix: np.ndarray, data: np.ndarray) -> np.ndarray:
    """``matrix (new, coil)`` on the first axis of ``data (coil, ...)``, complex64."""
    return np.tensordot(matrix, data, axes=1).astype(np.complex64, copy=False)


def svd_compression(kspace: np.ndarray, virtual_coils: int) -> np.ndarray:
    """Principal components of the coils: orthonormal rows that keep the most energy.

    Args:
        kspace: ``(coil, row, col)``, prewhitened if the noise is known.
        virtual_coils: Coils to keep, 1 to the number of coils.

    Returns:
        ``(virtual coil, coil)`` complex64, energy falling.

    Raises:
        InputError: More virtual coils than coils, or less than one.

    Reference:
        Buehrer et al., Magn Reson Med 57:1131 (2007).
    """
    _check(virtual_coils, kspace.shape[0])
    flat = kspace.reshape(kspace.shape[0], -1)
    return _leading(flat, virtual_coils).astype(np.complex64)


@dataclass(frozen=True)
class GeometricCompression:
    """One compression matrix a position along the readout.

    Attributes:
        matrices: ``(row, virtual coil, coil)`` complex64.
    """

    matrices: np.ndarray

    def kspace(self, kspace: np.ndarray) -> np.ndarray:
        """Compress k-space ``(coil, row, col)`` whose readout (row) is fully sampled."""
        return fft_axis(self.image(ifft_axis(kspace, 1)), 1)

    def image(self, data: np.ndarray) -> np.ndarray:
        """Compress data ``(coil, row, ...)`` that is an image along the readout, sensitivity maps for one."""
        return np.einsum("rvc,crx->vrx", self.matrices, data, optimize=True).astype(np.complex64)


def geometric_compression(kspace: np.ndarray, virtual_coils: int, window: int = 5) -> GeometricCompression:
    """Compression that follows the anatomy along the readout: fewer virtual coils for the same loss.

    Principal components of each row of the hybrid data (a window of rows around it), each set rotated to be as near as
    possible to its neighbour's, so that the virtual sensitivities are smooth along the readout.

    Args:
        kspace: ``(coil, row, col)`` in the convention ``centre``, readout along the rows and fully sampled.
        virtual_coils: Coils to keep.
        window: Rows that share a decomposition, odd.

    Raises:
        InputError: More virtual coils than coils, or less than one.

    Reference:
        Zhang et al., Magn Reson Med 69:571 (2013), section "Alignment of compression matrices".
    """
    coils, rows, _ = kspace.shape
    _check(virtual_coils, coils)
    hybrid = ifft_axis(kspace, 1)
    half = window // 2
    sets = np.empty((rows, virtual_coils, coils), np.complex128)
    start = rows // 2
    for row in (*range(start, rows), *range(start - 1, -1, -1)):
        block = hybrid[:, max(0, row - half) : row + half + 1].reshape(coils, -1)
        sets[row] = _leading(block, virtual_coils)
        if row != start:
            neighbour = sets[row - 1 if row > start else row + 1]
            # Orthogonal Procrustes: the unitary U V^H brings this set nearest to its neighbour.
            left, _, right = np.linalg.svd(neighbour @ sets[row].conj().T)
            sets[row] = left @ right @ sets[row]
    return GeometricCompression(sets.astype(np.complex64))


def _leading(flat: np.ndarray, count: int) -> np.ndarray:
    """Conjugated leading left singular vectors of ``(coil, sample)``, as rows: ``(count, coil)``."""
    # The Gram matrix is coils x coils; a singular value decomposition of the samples would need all of them twice.
    wide = flat.astype(np.complex64)
    gram = (wide @ wide.conj().T).astype(np.complex128)
    _, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1][:, :count].conj().T


def _check(virtual_coils: int, coils: int) -> None:
    if not 1 <= virtual_coils <= coils:
        raise InputError(
            "this number of virtual coils is impossible", found=virtual_coils, wanted=f"1 to the {coils} coils measured"
        )
