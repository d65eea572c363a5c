"""Derived DICOM series on another grid than their source: super-resolution in the plane or through it, resampling.

Each new slice takes its header from the source slice that lies nearest, and refers to the source slices on both sides.
Rows, columns, spacing, orientation and position are those of the new grid. Values wait in the partial folder until all
are known; then one stored format is chosen for the series (`medseq.io.dicom_range`).
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, discard, publish, written
from medseq.io.dicom_derive import Provenance, code_item, derived_header, derived_uid, source_item
from medseq.io.dicom_geometry import LPS_TO_RAS, frame_affine
from medseq.io.dicom_header import understood
from medseq.io.dicom_range import StoredFormat, series_format
from medseq.io.dicom_types import DicomSource, Frame
from medseq.io.integers import to_stored
from medseq.io.volume import VolumeHeader

__all__ = ["RegriddedWriter", "put_pixels", "same_grid"]

_SAME_MM = 1e-4
_SQUARE = 1e-4
# They describe the source's grid, or its padding.
_GRID_BOUND = """
    PixelPaddingValue PixelPaddingRangeLimit SliceLocation SpatialResolution ReconstructionDiameter PixelAspectRatio
    TemporalPositionIdentifier InStackPositionNumber PixelSpacingCalibrationType PixelSpacingCalibrationDescription
    ImagerPixelSpacing NominalScannedPixelSpacing
""".split()


def same_grid(header: VolumeHeader, source: DicomSource) -> bool:
    """Whether a volume has the source's own slices, rows and columns, in its places."""
    pixels = source.frames[0].pixels
    if header.planes != len(source.frames) or header.plane_shape != (pixels.rows, pixels.columns):
        return False
    own = np.stack([frame_affine(frame) for frame in source.frames])
    return bool(np.abs(own - header.slice_affines).max() <= _SAME_MM)


class RegriddedWriter:
    """A `VolumeWriter` for a volume whose grid is not its DICOM source's.

    Args:
        target: Final folder; it appears, complete, at `commit`.
        made: Provenance.

    Attributes:
        clipped: Pixels that did not fit; always 0, since the format follows the values.
        coarse: The values spanned more than 65536 native units, and are stored in larger ones.
    """

    def __init__(self, target: Path, made: Provenance):
        self._target, self._made = Path(target), made
        self._partial: Path | None = None
        self.clipped, self.coarse = 0, False

    def begin(self, header: VolumeHeader) -> None:
        """Check the grid and make the partial folder.

        Raises:
            OutputError: Time points, or rows and columns that are not at right angles.
        """
        steps = header.slice_affines[:, :3, :2] / np.linalg.norm(header.slice_affines[:, :3, :2], axis=1, keepdims=True)
        if len(header.shape) != 3 or np.abs((steps[:, :, 0] * steps[:, :, 1]).sum(axis=1)).max() > _SQUARE:
            raise OutputError(
                "this grid cannot be written as DICOM",
                found=f"shape {header.shape}",
                wanted="one volume with rows and columns at right angles",
                remedy="write NIfTI instead",
            )
        self._header, self._source = header, header.source.header
        self._planes, self._low, self._high = 0, np.inf, -np.inf
        self._partial = clear(self._target)
        with written("the output folder"):
            self._partial.mkdir()

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Append planes ``lo ..``; they must follow the ones written before.

        Raises:
            OutputError: NaN or infinite values.
            ShapeError: Planes out of order or of another size.
        """
        partial = self._started()
        if lo != self._planes or planes.shape[1:] != self._header.plane_shape:
            raise ShapeError(
                "planes do not continue the volume",
                found=f"plane {lo}, shape {planes.shape}",
                wanted=f"plane {self._planes}, shape (n, {self._header.shape[1]}, {self._header.shape[2]})",
            )
        for plane in planes:
            if not np.isfinite(plane).all():
                raise OutputError(
                    "integer pixels cannot hold NaN or infinite values",
                    where=f"series {self._source.label}, slice {self._planes + 1}",
                    remedy="write a floating-point NIfTI or look why the result is not finite",
                )
            self._low, self._high = min(self._low, float(plane.min())), max(self._high, float(plane.max()))
            with written("the output folder"):
                np.save(partial / f"{self._planes}.npy", plane.astype("<f4"))
            self._planes += 1

    def commit(self) -> Sequence[Path]:
        """Choose the stored format, encode and publish; returns the files in slice order."""
        partial = self._started()
        if self._planes != self._header.planes:
            raise OutputError("the series is not complete", found=f"{self._planes} planes", wanted=self._header.planes)
        stored = self._format()
        self.coarse = stored.coarse
        width, names = max(4, len(str(self._planes))), []
        for i in range(self._planes):
            plane = np.load(partial / f"{i}.npy", allow_pickle=False)
            where = f"series {self._source.label}, slice {i + 1}"
            buffer = io.BytesIO()
            with understood(where, "the source header cannot be written back", remedy="write NIfTI instead"):
                out = self._place(i)
                values, clipped = to_stored(plane, stored.slope, stored.intercept, stored.dtype, stored.limits, where)
                self.clipped += int(clipped.sum())
                rescaled = (stored.slope, stored.intercept) != (1.0, 0.0)
                if rescaled or "RescaleSlope" in out or "RescaleIntercept" in out:
                    out.RescaleSlope = format_number_as_ds(stored.slope)
                    out.RescaleIntercept = format_number_as_ds(stored.intercept)
                    if "RescaleType" not in out and out.Modality == "MR":
                        out.RescaleType = "US"
                put_pixels(out, values, stored.bits)
                dcmwrite(buffer, out, implicit_vr=False, little_endian=True, enforce_file_format=True)
            names.append(f"{i + 1:0{width}d}.dcm")
            with written("the output folder"), open(partial / names[-1], "wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            (partial / f"{i}.npy").unlink()
        publish(partial, self._target)
        self._partial = None
        return [self._target / name for name in names]

    def abort(self) -> None:
        """Remove what was written; nothing happens after a commit."""
        if self._partial is not None:
            discard(self._partial)
        self._partial = None

    def _started(self) -> Path:
        if self._partial is None:
            raise OutputError("nothing was begun", wanted="begin(header) before write and commit")
        return self._partial

    def _format(self) -> StoredFormat:
        frames = self._source.frames
        # PET's slices have slopes of their own: the finest, so that no slice loses by the change.
        finest = min(frames, key=lambda frame: abs(frame.slope))
        intercept = finest.intercept if self._made.role == "result" else 0.0
        chosen = series_format(self._low, self._high, finest.slope, intercept, finest.pixels, self._header.modality)
        # The file holds decimal strings of 16 characters: what they say is what is used.
        slope, moved = (float(format_number_as_ds(float(n))) for n in (chosen.slope, chosen.intercept))
        return StoredFormat(chosen.dtype, chosen.bits, slope, moved, chosen.coarse)

    def _place(self, i: int) -> Dataset:
        """Header of a new slice, without its pixels."""
        affine = LPS_TO_RAS @ self._header.slice_affines[i]
        near = self._nearest(affine)
        frame = near[0]
        dataset = dcmread(frame.path, stop_before_pixels=True, force=True)
        lattice = np.asarray(self._header.slice_affines[0]).round(4).tolist()
        grid = f"{self._source.series_uid}/grid/{self._header.shape}/{lattice}"
        out = derived_header(dataset, frame, derived_uid(grid, self._made), i + 1, self._made)
        for element in [e for e in out if e.keyword in _GRID_BOUND or e.tag.group & 0xFF01 == 0x6000]:
            del out[element.tag]
        out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = derived_uid(grid, self._made, i + 1)
        out.InstanceNumber = i + 1
        sizes = np.linalg.norm(affine[:3, :2], axis=0)
        out.Rows, out.Columns = self._header.plane_shape
        out.PixelSpacing = [format_number_as_ds(float(n)) for n in (sizes[1], sizes[0])]
        cosines = [*(affine[:3, 0] / sizes[0]), *(affine[:3, 1] / sizes[1])]
        out.ImageOrientationPatient = [format_number_as_ds(float(n) + 0.0) for n in cosines]
        out.ImagePositionPatient = [format_number_as_ds(float(n) + 0.0) for n in affine[:3, 3]]
        step = self._header.spacing_mm[0]
        own = abs(self._source.frames[0].thickness or step)
        # Slices may overlap or have gaps; a new slice between them is no thicker than its distance to the next.
        changed = not np.isclose(step, self._own_step(), rtol=1e-3)
        out.SliceThickness = format_number_as_ds(float(step if changed else own))
        out.SpacingBetweenSlices = format_number_as_ds(float(step))
        codes = [item for item in out.DerivationCodeSequence if item.CodeValue != "113087"]
        out.DerivationCodeSequence = [*codes, code_item("113085", "Spatial resampling")]
        if "SourceImageSequence" in out:
            out.SourceImageSequence = [source_item(one) for one in near]
        return out

    def _nearest(self, affine_lps: np.ndarray) -> list[Frame]:
        """Source slices around a new one, the nearest first."""
        normal = np.cross(affine_lps[:3, 0], affine_lps[:3, 1])
        normal = normal / np.linalg.norm(normal)
        rows, columns = self._header.plane_shape
        centre = (affine_lps @ [(columns - 1) / 2, (rows - 1) / 2, 0, 1])[:3]
        distances = []
        for frame in self._source.frames:
            own = LPS_TO_RAS @ frame_affine(frame)
            middle = (own @ [(frame.pixels.columns - 1) / 2, (frame.pixels.rows - 1) / 2, 0, 1])[:3]
            distances.append(float((middle - centre) @ normal))
        order = np.argsort(np.abs(distances), kind="stable")
        first = int(order[0])
        # The one on the other side, unless the new slice lies in a source slice.
        if abs(distances[first]) > _SAME_MM * 10:
            other = [int(k) for k in order[1:] if distances[int(k)] * distances[first] < 0]
            return [self._source.frames[k] for k in (first, *other[:1])]
        return [self._source.frames[first]]

    def _own_step(self) -> float:
        frames = self._source.frames
        if len(frames) < 2:
            return float(frames[0].step or frames[0].thickness or 0.0)
        return float(np.linalg.norm(np.subtract(frames[1].position, frames[0].position)))


def put_pixels(out: Dataset, values: np.ndarray, bits_stored: int) -> None:
    """Set the pixel data of an image to integers ``(row, col)``, and every attribute that describes their format."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    out.BitsAllocated, out.BitsStored, out.HighBit = values.dtype.itemsize * 8, bits_stored, bits_stored - 1
    out.PixelRepresentation, out.SamplesPerPixel = int(values.dtype.kind == "i"), 1
    out.add_new(0x7FE00010, "OB" if values.dtype.itemsize == 1 else "OW", data + bytes(len(data) % 2))
