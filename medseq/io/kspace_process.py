"""What can be done to raw data before reconstruction: other maps, prewhitening, fewer coils; readers over readers."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from medseq.errors import InputError, ShapeError
from medseq.io.kspace import KSpaceReader, KSpaceSlice
from medseq.io.kspace_coils import apply_coils, geometric_compression, svd_compression, whitening_matrix
from medseq.io.kspace_fft import centred
from medseq.io.kspace_layout import Placed
from medseq.io.kspace_values import require_finite
from medseq.io.source import SourceWarning

__all__ = ["Compression", "Processed", "with_fewer_coils", "with_maps", "with_white_noise"]

Compression = Literal["svd", "geometric"]


class Processed(ABC):
    """A `KSpaceReader` that changes the slices of another and keeps everything else.

    Attributes:
        label: Name of the item within its file.
        notices: Remarks of the reader underneath, and its own.
    """

    def __init__(self, reader: KSpaceReader, *notices: SourceWarning):
        self._reader = reader
        self.n, self.fft, self.recon_shape = reader.n, reader.fft, reader.recon_shape
        self.fov_mm, self.phase_axis = reader.fov_mm, reader.phase_axis
        self.affine, self.source = reader.affine, reader.source
        self.label: str = getattr(reader, "label", "")
        self._own = list(notices)

    @property
    def notices(self) -> list[SourceWarning]:
        """All remarks so far."""
        return [*getattr(self._reader, "notices", []), *self._own]

    def read(self, i: int) -> KSpaceSlice:
        """See `KSpaceReader.read`."""
        return self._change(self._reader.read(i), i)

    @abstractmethod
    def _change(self, part: KSpaceSlice, i: int) -> KSpaceSlice:
        """The slice as this reader gives it."""


class _GivenMaps(Processed):
    def __init__(self, reader: KSpaceReader, maps: Placed):
        text = f"{maps.size('map')} sets of sensitivity maps; the first is used"
        super().__init__(reader, *([SourceWarning("map-sets", text)] if maps.size("map") > 1 else []))
        self._maps = maps
        if maps.size("slice") not in (1, reader.n):
            raise ShapeError(
                "k-space and sensitivity maps disagree",
                where=maps.where,
                found=f"maps of {maps.size('slice')} slices",
                wanted=f"{reader.n} slices, or 1 for all",
            )

    def _change(self, part: KSpaceSlice, i: int) -> KSpaceSlice:
        if self._maps.shape != part.kspace.shape:
            raise ShapeError(
                "k-space and sensitivity maps disagree",
                where=f"{self._maps.where}: slice {i}",
                found=f"maps (coil, row, col) = {self._maps.shape}",
                wanted=part.kspace.shape,
                remedy="re-estimate the maps from this data, or leave them out",
            )
        maps = self._maps.read(i, {})
        require_finite(maps, f"{self._maps.where}: slice {i}")
        return KSpaceSlice(part.kspace, part.mask, maps, part.noise_cov)


class _White(Processed):
    def _change(self, part: KSpaceSlice, i: int) -> KSpaceSlice:
        if part.noise_cov is None:
            return part
        matrix = whitening_matrix(part.noise_cov)
        maps = None if part.sens_maps is None else apply_coils(matrix, part.sens_maps)
        # Dead coils stay dead: their variance is 0.
        white = np.diag((np.abs(matrix).sum(axis=1) > 0).astype(np.complex64))
        return KSpaceSlice(apply_coils(matrix, part.kspace), part.mask, maps, white)


class _Fewer(Processed):
    def __init__(self, reader: KSpaceReader, virtual_coils: int, kind: Compression):
        super().__init__(reader)
        self._count, self._kind = virtual_coils, kind

    def _change(self, part: KSpaceSlice, i: int) -> KSpaceSlice:
        if self._count >= part.kspace.shape[0]:
            return part
        if self._kind == "geometric":
            return self._geometric(part)
        matrix = svd_compression(part.kspace, self._count)
        maps = None if part.sens_maps is None else apply_coils(matrix, part.sens_maps)
        noise = None if part.noise_cov is None else (matrix @ part.noise_cov @ matrix.conj().T).astype(np.complex64)
        return KSpaceSlice(apply_coils(matrix, part.kspace), part.mask, maps, noise)

    def _geometric(self, part: KSpaceSlice) -> KSpaceSlice:
        if part.mask.shape[1] > 1:
            raise InputError(
                "geometric coil compression needs a fully sampled readout",
                found="a two-dimensional sampling mask",
                wanted="whole columns",
                remedy="use svd compression",
            )
        compression = geometric_compression(part.kspace, self._count)
        kspace = np.where(part.mask, compression.kspace(part.kspace), np.complex64(0))
        maps = None if part.sens_maps is None else compression.image(part.sens_maps)
        # Orthonormal rows everywhere: white noise stays white; other noise becomes different in every row.
        noise = part.noise_cov
        white = noise is not None and np.allclose(noise, np.eye(len(noise)), atol=1e-3)
        return KSpaceSlice(kspace, part.mask, maps, np.eye(self._count, dtype=np.complex64) if white else None)


def with_maps(reader: KSpaceReader, maps: Placed) -> KSpaceReader:
    """Use these sensitivity maps, on the grid of k-space, in place of the file's own.

    Raises:
        ShapeError: Another number of slices; when a slice is read, another size or number of coils.
    """
    return _GivenMaps(reader, maps)


def with_white_noise(reader: KSpaceReader) -> KSpaceReader:
    """Turn the coils so that noise is independent with unit variance, where its covariance is known."""
    text = "the noise of the receive coils is known and was made independent with unit variance (prewhitening)"
    return _White(reader, SourceWarning("prewhitened", text))


def with_fewer_coils(reader: KSpaceReader, virtual_coils: int, kind: Compression = "svd") -> KSpaceReader:
    """Compress to at most this many virtual coils, each slice with its own matrix; maps are compressed alike.

    Args:
        reader: Any reader; geometric compression brings it to the convention ``centre`` first.
        virtual_coils: At least 1; slices with no more coils are left as they are.
        kind: ``svd``, or ``geometric`` (one matrix a position along the readout).

    Raises:
        InputError: Less than one coil, an unknown kind; when a slice is read, a 2-D mask with ``geometric``.
    """
    if virtual_coils < 1 or kind not in ("svd", "geometric"):
        raise InputError(
            "this coil compression is impossible",
            found=f"{kind}, {virtual_coils} coils",
            wanted="svd or geometric, at least 1 coil",
        )
    return _Fewer(centred(reader) if kind == "geometric" else reader, virtual_coils, kind)
