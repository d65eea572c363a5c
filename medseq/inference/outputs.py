"""Where results of an item go: written below ``OUT/.work/<item_id>``, moved to their final place when complete.

``OUT/.work`` belongs to the run in progress; whatever a killed run left there is removed by the next. No torch.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from medseq.errors import OutputError
from medseq.inference.ledger_schema import OutputRow
from medseq.inference.outputs_dicom import SeriesWithMap
from medseq.inference.predictor import Role
from medseq.io import atomic
from medseq.io.volume import VolumeHeader, VolumeReader, VolumeWriter

__all__ = ["Identity", "ItemSink", "Layout", "TappedReader", "WORK", "file_sha256", "publish", "rows_of"]

WORK = ".work"


@dataclass(frozen=True)
class Identity:
    """What all results of a run have in common; it makes their DICOM UIDs and dates the same in every repetition."""

    bundle_name: str
    bundle_hash: str
    params_hash: str
    version: str
    created_utc: str


@dataclass(frozen=True)
class Layout:
    """Final paths of one item below the output folder.

    ``names="id"``: everything under ``<item_id>/``. ``names="source"``: a NIfTI keeps its relative path, a DICOM
    series lies in ``<item_id>/result/`` beside where its first file was, the preview in ``preview/<item_id>.json``.

    Attributes:
        item_id: The item.
        names: ``id`` or ``source``.
        kind: ``dicom``, ``nifti`` or ``kspace``: results are of the kind of their input, those of raw data NIfTI,
            HDF5 and, where the header says enough, DICOM.
        first: Relative path of its first input file.
        resampled: Its grid is no longer the source's, so that DICOM becomes NIfTI.
        part: Which acquisition of its file it is; empty for the only one.
    """

    item_id: str
    names: Literal["id", "source"]
    kind: str
    first: str
    resampled: bool = False
    part: str = ""

    @property
    def writes_dicom(self) -> bool:
        """Whether volumes are written as derived series."""
        return self.kind == "dicom" and not self.resampled

    def volume(self, role: Role) -> PurePosixPath:
        """The file, or the folder of a DICOM series, for a role."""
        source = PurePosixPath(self.first)
        if self.kind == "dicom":
            folder = (PurePosixPath() if self.names == "id" else source.parent) / self.item_id
            return folder / (role if self.writes_dicom else f"{role}.nii.gz")
        if self.kind == "kspace":
            return self.file(role, ".nii.gz")
        if self.names == "id":
            return PurePosixPath(self.item_id, f"{role}.nii.gz")
        suffix = ".nii.gz" if source.name.lower().endswith(".nii.gz") else ".nii"
        stem = source.name[: -len(suffix)]
        return source.with_name(f"{stem}{suffix}" if role == "result" else f"{stem}_{role}{suffix}")

    def object(self, name: str) -> PurePosixPath:
        """A DICOM object that is no series of images; it has a folder, which moves as a whole."""
        folder = PurePosixPath() if self.names == "id" else PurePosixPath(self.first).parent
        return folder / self.item_id / name / "0001.dcm"

    @property
    def series(self) -> PurePosixPath:
        """Folder of the DICOM series that raw data became."""
        folder = PurePosixPath() if self.names == "id" else PurePosixPath(self.first).parent
        return folder / self.item_id / "result"

    def file(self, role: Role, suffix: str) -> PurePosixPath:
        """A file that is no volume of the kind of the input."""
        if self.names == "id":
            return PurePosixPath(self.item_id, f"{role}{suffix}")
        source = PurePosixPath(self.first)
        words = [source.stem, self.part.replace(" ", "-"), "" if role == "result" else role]
        return source.with_name("_".join(word for word in words if word) + suffix)

    @property
    def preview(self) -> PurePosixPath:
        """The pictures for the report."""
        by_id = self.names == "id"
        return (
            PurePosixPath(self.item_id, "preview.json") if by_id else PurePosixPath("preview", f"{self.item_id}.json")
        )


class ItemSink:
    """Hands out writers below the staging folder of one item and keeps the middle plane of the result.

    Args:
        stage: The staging folder, a mirror of the output folder.
        layout: Final paths.
        identity: For DICOM.
        plane: Number of the plane to keep.
    """

    def __init__(self, stage: Path, layout: Layout, identity: Identity, plane: int) -> None:
        self._stage, self._layout, self._identity, self._plane = stage, layout, identity, plane
        self._result: _TappedWriter | None = None
        self.before: np.ndarray | None = None

    def file(self, role: Role, suffix: str) -> Path:
        """Where to write a file that is no volume; see `Layout.file`."""
        path = self._stage / self._layout.file(role, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def seen(self, plane: int, image: np.ndarray) -> None:
        """What a plane looked like before, where the input itself is no image; the kept plane is copied."""
        if plane == self._plane:
            self.before = image.copy()

    def volume(self, role: Role) -> VolumeWriter:
        """A writer for a role; see `medseq.inference.predictor.Sink`."""
        path = self._stage / self._layout.volume(role)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = self._writer(role, path)
        if role != "result":
            return writer
        self._result = _TappedWriter(writer, self._plane)
        return self._result

    def object(self, role: Role) -> Path:
        """Where to write a DICOM object of a role; see `Layout.object`."""
        path = self._stage / self._layout.object(role)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def provenance(self, role: Role) -> Any:
        """`medseq.io.dicom_derive.Provenance` of a role."""
        from medseq.io.dicom_derive import Provenance

        ids = self._identity
        return Provenance(
            ids.bundle_name, ids.bundle_hash, ids.params_hash, ids.version, role, created_utc=ids.created_utc
        )

    def series(self, label: str) -> VolumeWriter:
        """A writer for raw data as DICOM; see `medseq.inference.predictor.Sink`."""
        from medseq.io.dicom_raw import RawDicomWriter

        path, ids = self._stage / self._layout.series, self._identity
        path.parent.mkdir(parents=True, exist_ok=True)
        return RawDicomWriter(
            path,
            item=label,
            scan=self._layout.item_id,
            bundle_name=ids.bundle_name,
            bundle_hash=ids.bundle_hash,
            params_hash=ids.params_hash,
            version=ids.version,
            created_utc=ids.created_utc,
        )

    @property
    def plane(self) -> np.ndarray | None:
        """The kept plane of the result ``(row, col)``."""
        return None if self._result is None else self._result.kept

    @property
    def header(self) -> VolumeHeader | None:
        """What the result was begun with."""
        return None if self._result is None else self._result.header

    def _writer(self, role: Role, path: Path) -> Any:
        if self._layout.writes_dicom:
            from medseq.io.dicom import DicomSeriesWriter

            ids = self._identity
            series = DicomSeriesWriter(
                path,
                bundle_name=ids.bundle_name,
                bundle_hash=ids.bundle_hash,
                params_hash=ids.params_hash,
                version=ids.version,
                role=role,
                created_utc=ids.created_utc,
            )
            if role not in ("difference", "uncertainty"):
                return series
            from medseq.io.dicom_map import ParametricMapWriter

            exact = self._stage / self._layout.object(f"{role}_map")
            return SeriesWithMap(series, ParametricMapWriter(exact, self.provenance(role)))
        from medseq.io.nifti import NiftiWriter

        # A difference of unsigned integers has a sign: it never takes over the source's stored type.
        return NiftiWriter(path, dtype=None if role == "result" else np.dtype(np.float32))


class _TappedWriter:
    """A writer that keeps a copy of one plane."""

    def __init__(self, writer: Any, plane: int) -> None:
        self._writer, self._plane = writer, plane
        self.kept: np.ndarray | None = None
        self.header: VolumeHeader | None = None

    @property
    def clipped(self) -> int:
        return int(getattr(self._writer, "clipped", 0))

    @property
    def coarse(self) -> bool:
        return bool(getattr(self._writer, "coarse", False))

    def begin(self, header: VolumeHeader) -> None:
        self.header = header
        self._writer.begin(header)

    def write(self, lo: int, planes: np.ndarray) -> None:
        if lo <= self._plane < lo + len(planes):
            self.kept = planes[self._plane - lo].copy()
        self._writer.write(lo, planes)

    def commit(self) -> Sequence[Path]:
        return self._writer.commit()

    def abort(self) -> None:
        self._writer.abort()


class TappedReader:
    """A reader that keeps a copy of one plane and of its mask.

    Args:
        reader: The reader.
        plane: Number of the plane to keep.
        header: Stands in for the reader's own header, where the caller knows better (``--modality``).
    """

    def __init__(self, reader: VolumeReader, plane: int, header: VolumeHeader) -> None:
        self._reader, self._plane, self.header = reader, plane, header
        self.kept: np.ndarray | None = None
        self.kept_valid: np.ndarray | None = None

    def read(self, lo: int, hi: int) -> np.ndarray:
        """See `VolumeReader.read`."""
        planes = self._reader.read(lo, hi)
        if lo <= self._plane < hi:
            self.kept = planes[self._plane - lo].copy()
        return planes

    def valid(self, lo: int, hi: int) -> np.ndarray | None:
        """See `VolumeReader.valid`."""
        valid = self._reader.valid(lo, hi)
        if valid is not None and lo <= self._plane < hi:
            self.kept_valid = valid[self._plane - lo].copy()
        return valid


def rows_of(stage: Path, roles: dict[Path, str]) -> tuple[OutputRow, ...]:
    """Ledger rows of everything below a staging folder, hashed as it was read back from the disk.

    Args:
        stage: Mirror of the output folder.
        roles: Role of each file; a file without one is an error of the predictor.
    """
    found = sorted(Path(folder, name) for folder, _, names in os.walk(stage) for name in names)
    rows = []
    for path in found:
        if path not in roles:
            raise OutputError("the predictor wrote a file that it did not name", found=path.suffix)
        relpath = path.relative_to(stage).as_posix()
        rows.append(OutputRow(roles[path], relpath, file_sha256(path), path.stat().st_size))
    return tuple(rows)


def publish(stage: Path, out: Path, layout: Layout, rows: Sequence[OutputRow]) -> None:
    """Move a complete item to its final place: one rename by id, one a result where source names are kept."""
    if layout.names == "id":
        moves = {layout.item_id}
    else:
        # A DICOM series moves as a folder.
        moves = {row.relpath.rpartition("/")[0] if row.relpath.endswith(".dcm") else row.relpath for row in rows}
    for move in sorted(moves):
        atomic.clear(out / move)
        # Names that were only written so far (`medseq.io.atomic.names_forced_later`).
        atomic.fsync_below(stage / move)
        atomic.publish(stage / move, out / move)
    shutil.rmtree(stage, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
