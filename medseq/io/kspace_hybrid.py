"""A stored 3-D acquisition seen as slices: the inverse FFT along its readout, a slab of positions at a time."""

from collections.abc import Sequence

import numpy as np

from medseq.errors import FormatError
from medseq.io.kspace_fft import ifft_axis
from medseq.io.kspace_stored import StoredArray

__all__ = ["HybridArray"]

_SLAB_BYTES = 128 << 20


class HybridArray:
    """The array with its first axis, the readout, transformed: a pass over the file serves many positions.

    Args:
        array: K-space, the readout fully sampled.
        coil: Axis that is read one entry at a time, so that no more than one coil is in memory beside the slab.
        where: What messages call the file.
    """

    def __init__(self, array: StoredArray, coil: int, where: str):
        self._array, self._coil, self._where = array, coil, where
        self.shape, self.dtype = array.shape, np.dtype(np.complex64)
        self._slab: tuple[tuple[int | None, ...], int, np.ndarray] | None = None

    def take(self, index: Sequence[int | None]) -> np.ndarray:
        """See `StoredArray.take`; the readout must be numbered.

        Raises:
            FormatError: NaN or infinite samples, which the transform would spread.
        """
        i, *others = index
        rest = tuple(others)
        assert i is not None, "a slice is taken at one position of the readout"
        if self._slab is None or self._slab[0] != rest or not 0 <= i - self._slab[1] < len(self._slab[2]):
            self._slab = None
            first, data = self._read(i, rest)
            self._slab = (rest, first, data)
        return self._slab[2][i - self._slab[1]]

    def _read(self, i: int, rest: tuple[int | None, ...]) -> tuple[int, np.ndarray]:
        shape = tuple(n for n, at in zip(self.shape[1:], rest, strict=True) if at is None)
        size = max(1, _SLAB_BYTES // (8 * int(np.prod(shape))))
        first = i // size * size
        last = min(first + size, self.shape[0])
        slab = np.empty((last - first, *shape), np.complex64)
        # Place of the coil axis among the axes that are left.
        place = sum(at is None for at in rest[: self._coil - 1])
        for coil in range(self.shape[self._coil]):
            at = [None, *rest]
            at[self._coil] = coil
            data = self._array.take(at)
            if not np.isfinite(data).all():
                raise FormatError(
                    "k-space holds NaN or infinite samples",
                    where=self._where,
                    found=f"coil {coil}",
                    wanted="finite samples",
                    remedy="export the data again, or set what was not measured to 0",
                )
            slab[(slice(None),) * (place + 1) + (coil,)] = ifft_axis(data, 0)[first:last]
        return first, slab
