"""Parametric Maps: exact float32 values on the grid of a DICOM source, for an uncertainty or a difference.

The values are streamed: planes go to a raw file, and the object's header, made by highdicom, is put before them at the
end. Memory is that of one plane, however many there are.
"""

import io
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from medseq.errors import OutputError, ShapeError
from medseq.io.atomic import clear, discard, publish, written
from medseq.io.dicom_derive import IMAGE_COMMENTS, Provenance
from medseq.io.dicom_header import understood
from medseq.io.dicom_objects import completed, object_identity, unit_code
from medseq.io.dicom_regrid import same_grid
from medseq.io.dicom_types import DicomSource
from medseq.io.volume import Units, VolumeHeader

__all__ = ["ParametricMapWriter", "write_parametric_map"]

_NAMES = {"uncertainty": "Uncertainty", "difference": "Difference", "attention": "Attention"}
_WHERE = "the result as a Parametric Map"
_REMEDY = "write NIfTI instead"
# Explicit VR, little endian: tag, VR, two reserved bytes, four of length.
_PIXELS = 0x7FE00008
_MOST_BYTES = (1 << 32) - 2


class ParametricMapWriter:
    """A `VolumeWriter` for one multi-frame Parametric Map.

    Args:
        target: Final path; the file appears whole, at `commit`.
        made: Provenance; the role is ``uncertainty``, ``difference`` or ``attention``.
        units: Units of the values; default: the volume's.

    Reference:
        DICOM PS3.3 A.75 (Parametric Map), C.7.6.16.2.11 (real-world value mapping).
    """

    def __init__(self, target: Path, made: Provenance, units: Units | None = None):
        self._target, self._made, self._units = Path(target), made, units
        self._raw: Path | None = None

    def begin(self, header: VolumeHeader) -> None:
        """Take the header of a volume on its source's own grid.

        Raises:
            OutputError: Not from DICOM, or too large for one object.
            ShapeError: Another grid.
        """
        source = header.source.header
        if not isinstance(source, DicomSource):
            raise OutputError("a map needs the DICOM slices that it belongs to", where=_WHERE, remedy=_REMEDY)
        if not same_grid(header, source):
            raise ShapeError("the map is not on the grid of its source", found=header.shape)
        self._start(source, self._units or header.units)

    def write(self, lo: int, planes: np.ndarray) -> None:
        """Append planes ``lo ..``; they must follow the ones written before.

        Raises:
            OutputError: NaN or infinite values.
            ShapeError: Planes out of order or of another size.
        """
        raw = self._started()
        if lo != self._planes or planes.shape[1:] != self._shape[1:]:
            raise ShapeError(
                "planes do not continue the map", found=(lo, planes.shape), wanted=(self._planes, self._shape)
            )
        if not np.isfinite(planes).all():
            raise OutputError("the map holds NaN or infinite values", where=f"series {self._source.label}")
        self._low, self._high = min(self._low, float(planes.min())), max(self._high, float(planes.max()))
        with written("the output folder"), raw.open("ab") as file:
            file.write(np.ascontiguousarray(planes, dtype="<f4").tobytes())
        self._planes += len(planes)

    def commit(self) -> Sequence[Path]:
        """Put the header before the values and publish; returns the one file."""
        raw = self._started()
        if self._planes != self._shape[0]:
            raise OutputError("the map is not complete", found=f"{self._planes} planes", wanted=self._shape[0])
        head, order = self._head()
        size, plane = raw.stat().st_size, raw.stat().st_size // self._planes
        partial = clear(self._target)
        with written("the output folder"), partial.open("wb") as file, raw.open("rb") as values:
            file.write(head)
            file.write(struct.pack("<HH2sHL", _PIXELS >> 16, _PIXELS & 0xFFFF, b"OF", 0, size))
            for number in order:
                values.seek(number * plane)
                file.write(values.read(plane))
            file.flush()
            os.fsync(file.fileno())
        publish(partial, self._target)
        self.abort()
        return [self._target]

    def abort(self) -> None:
        """Remove what is not published."""
        if self._raw is not None:
            discard(self._raw)
        self._raw = None

    def _start(self, source: DicomSource, units: Units) -> None:
        pixels = source.frames[0].pixels
        self._source, self._of = source, units
        self._shape = (len(source.frames), pixels.rows, pixels.columns)
        if 4 * int(np.prod(self._shape, dtype=object)) > _MOST_BYTES:
            raise OutputError("the map is too large for one DICOM object", where=_WHERE, remedy=_REMEDY)
        self._planes, self._low, self._high = 0, np.inf, -np.inf
        with written("the output folder"):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._raw = self._target.with_name(f".{self._target.name}.values")
            self._raw.write_bytes(b"")

    def _started(self) -> Path:
        if self._raw is None:
            raise OutputError("nothing was begun", wanted="begin(header) before write and commit")
        return self._raw

    def _head(self) -> tuple[bytes, list[int]]:
        """The encoded object up to its pixels, and the order of its frames."""
        name = _NAMES.get(self._made.role, "Result")
        with understood(_WHERE, "cannot be written", remedy=_REMEDY):
            # Headers of the source objects, each once, in slice order.
            paths = dict.fromkeys(frame.path for frame in self._source.frames)
            images = [dcmread(path, stop_before_pixels=True, force=True) for path in paths]
            out = completed(self._object(name, images), self._made, images[0], self._description(name))
            # highdicom sorts the frames, each of which was one pixel: its number.
            order = np.frombuffer(out[_PIXELS].value, "<f4").astype(int).tolist()
            del out[_PIXELS]
            out.Rows, out.Columns = self._shape[1:]
            buffer = io.BytesIO()
            dcmwrite(buffer, out, implicit_vr=False, little_endian=True, enforce_file_format=True)
            return buffer.getvalue(), order

    def _object(self, name: str, images: list[Dataset]) -> Dataset:
        import highdicom as hd

        made, source = self._made, self._source
        mapping = hd.pm.RealWorldValueMapping(
            lut_label=name[:16],
            lut_explanation=f"{name}, {made.bundle_name}"[:64],
            unit=unit_code(self._of),
            value_range=(self._low, self._high),
            slope=1.0,
            intercept=0.0,
        )
        middle, width = (self._low + self._high) / 2, max(self._high - self._low, 1e-6)
        window = hd.VOILUTTransformation(window_center=middle, window_width=width)
        out: Dataset = hd.pm.ParametricMap(
            source_images=images,
            pixel_array=np.arange(self._shape[0], dtype=np.float32)[:, None, None],
            **object_identity(source.series_uid, made, "map", images[0]),
            manufacturer="medseq",
            manufacturer_model_name=made.bundle_name[:64],
            software_versions=f"medseq {made.version}"[:64],
            device_serial_number=made.bundle_hash[:16],
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[window],
            content_description=f"{name}: {IMAGE_COMMENTS}"[:64],
            content_label=re.sub(r"[^A-Z0-9_ ]", "", name.upper())[:16],
            # The frames have the source's positions: its own order.
            **_geometry(source),
        )
        return out

    def _description(self, name: str) -> str:
        return f"RUO medseq {self._made.bundle_name} {name}"


def write_parametric_map(
    target: Path, values: np.ndarray, source: DicomSource, made: Provenance, *, units: Units = "1"
) -> Path:
    """Write one multi-frame Parametric Map of values that are in memory.

    Args:
        target: Final path; it appears whole.
        values: ``(slice, row, col)`` on the grid of the source, in its slice order; finite.
        source: `VolumeHeader.source.header` of the source.
        made: Provenance; the role is ``uncertainty``, ``difference`` or ``attention``.
        units: Units of the values.

    Raises:
        ShapeError: Another grid than the source's.
        OutputError: Values that are not finite, or a source that cannot be referred to.
    """
    pixels = source.frames[0].pixels
    wanted = (len(source.frames), pixels.rows, pixels.columns)
    if values.shape != wanted:
        raise ShapeError("the map is not on the grid of its source", found=values.shape, wanted=wanted)
    writer = ParametricMapWriter(target, made)
    writer._start(source, units)
    try:
        writer.write(0, values)
        writer.commit()
    finally:
        writer.abort()
    return Path(target)


def _geometry(source: DicomSource) -> dict[str, Any]:
    """Positions of the frames, spacing and orientation, as highdicom takes them."""
    import highdicom as hd

    first = source.frames[0]
    step = np.linalg.norm(np.subtract(source.frames[-1].position, first.position)) / max(1, len(source.frames) - 1)
    return {
        "pixel_measures": hd.PixelMeasuresSequence(
            pixel_spacing=first.spacing,
            slice_thickness=first.thickness or float(step) or 1.0,
            spacing_between_slices=float(step) or None,
        ),
        "plane_orientation": hd.PlaneOrientationSequence("PATIENT", first.orientation),
        "plane_positions": [hd.PlanePositionSequence("PATIENT", frame.position) for frame in source.frames],
    }
