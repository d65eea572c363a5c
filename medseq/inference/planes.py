"""Planes as a restoration model may see them: finite, without the scanner's padding, and on the grid of the result.

A super-resolution bundle (`output.scale_factor`) works on a grid that is finer in the plane over the same field of
view. `EnlargedReader` makes that grid by zero filling, so that everything after it knows one grid only.
"""

from dataclasses import replace

import numpy as np

from medseq.errors import FormatError
from medseq.io.volume import VolumeHeader, VolumeReader

__all__ = ["EnlargedReader", "enlarged_header", "fill_padding", "read_planes"]


def fill_padding(plane: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Give every padding pixel of ``(row, col)`` the value of the nearest valid one, so that no edge is invented.

    A plane without valid pixels becomes zero.
    """
    if valid.all():
        return plane
    if not valid.any():
        return np.zeros_like(plane)
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return plane[tuple(nearest)]


def read_planes(reader: VolumeReader, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Planes and their mask; None if every pixel is valid.

    Raises:
        FormatError: Pixels that are not finite, marked as padding or not; the message counts those of the volume.
    """
    planes, valid = reader.read(lo, hi), reader.valid(lo, hi)
    if not np.isfinite(planes).all():
        total = reader.header.planes
        bad = sum(int(np.count_nonzero(~np.isfinite(reader.read(i, i + 1)))) for i in range(total))
        raise FormatError(
            "pixels are NaN or infinite",
            found=f"{bad} of {total * planes[0].size}",
            wanted="finite values",
            remedy="replace them in the source, by 0 where there is background",
        )
    return planes, None if valid is not None and valid.all() else valid


def enlarged_header(header: VolumeHeader, factor: int) -> VolumeHeader:
    """The header of the same field of view with `factor` times as many rows and columns.

    Outer edges stay where they are, so that the centre of the first pixel moves by half the difference of the sizes.
    """
    grid = np.diag([1.0 / factor, 1.0 / factor, 1.0, 1.0])
    grid[:2, 3] = (1.0 / factor - 1.0) / 2
    return replace(
        header,
        shape=(header.shape[0], header.shape[1] * factor, header.shape[2] * factor, *header.shape[3:]),
        affine=None if header.affine is None else header.affine @ grid,
        slice_affines=header.slice_affines @ grid,
    )


class EnlargedReader:
    """A reader whose planes are zero-filled to a finer grid, with the padding of the source pasted in.

    Args:
        reader: The volume as it was acquired.
        factor: Rows and columns of the new grid in units of the old.
    """

    def __init__(self, reader: VolumeReader, factor: int) -> None:
        self._reader, self._factor = reader, factor
        self._header = enlarged_header(reader.header, factor)

    @property
    def header(self) -> VolumeHeader:
        """See `enlarged_header`."""
        return self._header

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `VolumeReader.read`.

        Raises:
            FormatError: See `read_planes`.
        """
        import torch

        from medseq.ops.resolution import zero_fill

        planes, valid = read_planes(self._reader, lo, hi)
        filled = planes
        if valid is not None:
            filled = np.stack([fill_padding(*pair) for pair in zip(planes, valid, strict=True)])
        image = torch.from_numpy(np.require(filled, np.float32, ["C", "W"]))
        fine = zero_fill(image, self._header.plane_shape).numpy()
        return fine if valid is None else np.where(self._repeated(valid), fine, self._repeated(planes))

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """See `VolumeReader.valid`: every pixel of the source covers the same area as before."""
        valid = self._reader.valid(lo, hi)
        return None if valid is None else self._repeated(valid)

    def _repeated(self, planes: np.ndarray) -> np.ndarray:
        return planes.repeat(self._factor, axis=1).repeat(self._factor, axis=2)
