"""K-space from ISMRMRD (MRD) files: readouts placed on the encoded grid, slice by slice.

Slices are ordered by position along their normal. Repetitions, averages, contrasts, phases and sets are items of their
own. A 3-D acquisition is transformed along its readout, whose positions become the slices. The file is read with h5py
alone: the `ismrmrd` package loads one readout at a time and opens files for writing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseq.errors import FormatError, ShapeError
from medseq.io.kspace import FFTConvention, KSpaceSlice
from medseq.io.kspace_coils import noise_covariance
from medseq.io.kspace_fft import Origin, checked_origin, fft_axis, ifft_axis
from medseq.io.kspace_ismrmrd_index import REVERSE, MRDIndex, read_index
from medseq.io.kspace_ismrmrd_space import Grid, grid_of, positions_on_grid, stack_affine, volume_affine
from medseq.io.kspace_layout import ITEM_AXES
from medseq.io.kspace_stored import h5_opened
from medseq.io.kspace_values import require_finite, zero_coils
from medseq.io.privacy import path_label
from medseq.io.source import SourceWarning
from medseq.io.volume import SourceRef

__all__ = ["MRDKSpace", "open_mrd_kspace"]

_SLAB_BYTES = 128 << 20
_MAX_NOISE = 256


@dataclass
class MRDKSpace:
    """A `KSpaceReader` over the readouts of one item.

    Attributes:
        path: The file.
        group: Group in the file.
        slices: For each slice the headers of its readouts; for a 3-D acquisition one entry with all of them.
        grid: Sizes.
        volume: 3-D: slices are positions along the readout.
        fft: See `KSpaceReader`.
        recon_shape: See `KSpaceReader`.
        fov_mm: See `KSpaceReader`.
        affine: See `KSpaceReader`.
        source: See `KSpaceReader`.
        label: Name of the item, empty if there is only one.
        noise_cov: ``(coil, coil)`` of the samples as read, or None.
        phase_axis: See `KSpaceReader`.
        notices: Remarks, each code once.
    """

    path: Path
    group: str
    slices: list[np.ndarray]
    grid: Grid
    volume: bool
    recon_shape: tuple[int, int]
    fov_mm: tuple[float, float] | None
    affine: np.ndarray | None
    source: SourceRef
    label: str = ""
    noise_cov: np.ndarray | None = None
    fft: FFTConvention = FFTConvention("centre", "ortho")
    phase_axis: Literal[0, 1] = 1
    notices: list[SourceWarning] = field(default_factory=list)
    _slab: tuple[int, np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.n = self.grid.kept if self.volume else len(self.slices)
        self._where = path_label(self.path)

    def read(self, i: int) -> KSpaceSlice:
        """See `KSpaceReader.read`.

        Raises:
            ShapeError: No such slice.
            FormatError: Damage, NaN, readouts that do not fit the grid.
        """
        if not 0 <= i < self.n:
            raise ShapeError("no such slice", where=self._where, found=i, wanted=f"0 <= i < {self.n}")
        kspace, mask = self._volume_slice(i) if self.volume else self._stack_slice(i)
        require_finite(kspace, f"{self._where}: slice {i}")
        dead = zero_coils(kspace)
        if len(dead) == len(kspace):
            self.note(SourceWarning("empty-slice", f"slice {i} holds only zeros"))
        elif len(dead):
            text = f"{len(dead)} of {len(kspace)} coils hold only zeros (first: coil {dead[0]}, slice {i})"
            self.note(SourceWarning("zero-coils", text))
        if not mask[0, mask.shape[1] // 2, mask.shape[2] // 2]:
            text = f"the centre of k-space was not sampled (slice {i}): coil sensitivities cannot be estimated from it"
            self.note(SourceWarning("no-centre", text))
        return KSpaceSlice(kspace, mask, None, self.noise_cov)

    def note(self, *notices: SourceWarning) -> None:
        """Add remarks whose code is new."""
        known = {notice.code for notice in self.notices}
        self.notices.extend(notice for notice in notices if notice.code not in known)

    def _stack_slice(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        lines, grid = self.slices[i], self.grid
        cols = grid.phase[0]
        places = positions_on_grid(lines["kspace_encode_step_1"], grid.offset[0], cols, "phase-encoding", self._where)
        coils = int(lines["active_channels"][0])
        summed = np.zeros((cols, coils, grid.readout), np.complex64)
        count = np.zeros((cols, grid.readout), np.int32)
        for k, data, start in self._readouts(lines):
            summed[places[k], :, start : start + data.shape[1]] += data
            count[places[k], start : start + data.shape[1]] += 1
        if count.max() > 1:
            text = "some phase-encoding lines were measured more than once; they are averaged"
            self.note(SourceWarning("repeated-lines", text))
        measured = np.asarray(count, dtype=bool)
        columns, readout = np.logical_or.reduce(measured, axis=1), np.logical_or.reduce(measured, axis=0)
        full = np.moveaxis(summed / np.maximum(count, 1)[:, None], 0, 2)
        kspace, rows = self._without_oversampling(full, readout)
        if (measured == columns[:, None]).all():
            return kspace, columns[None, None]
        text = "the readouts are asymmetric (partial echo); the part that was not measured is False in the mask"
        self.note(SourceWarning("partial-echo", text))
        mask = columns[None, :] & rows[:, None]
        return np.where(mask, kspace, np.complex64(0)), mask[None]

    def _without_oversampling(self, kspace: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crop ``(coil, readout, …)`` in the image along the readout; and which of the new rows were measured."""
        old, new = self.grid.readout, self.grid.kept
        if old == new:
            return kspace.astype(np.complex64), rows
        lo = old // 2 - new // 2
        cropped = fft_axis(ifft_axis(kspace, 1)[:, lo : lo + new], 1)
        # A new row lies between two old ones; both must have been measured.
        at = (np.arange(new) - new // 2) * old / new + old // 2
        below, above = np.floor(at).astype(int), np.minimum(np.ceil(at).astype(int), old - 1)
        return cropped, rows[below] & rows[above]

    def _volume_slice(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if self._slab is None or not self._slab[0] <= i < self._slab[0] + len(self._slab[1]):
            self._slab = None
            self._slab = self._read_slab(i)
        first, data, mask = self._slab
        return data[i - first], mask

    def _read_slab(self, i: int) -> tuple[int, np.ndarray, np.ndarray]:
        """As many slices as fit in `_SLAB_BYTES`, from one pass over all readouts."""
        lines, grid = self.slices[0], self.grid
        coils, (rows, cols) = int(lines["active_channels"][0]), grid.phase
        size = max(1, _SLAB_BYTES // (8 * coils * rows * cols))
        first = i // size * size
        last, lo = min(first + size, grid.kept), grid.readout // 2 - grid.kept // 2
        y = positions_on_grid(lines["kspace_encode_step_1"], grid.offset[0], rows, "phase-encoding", self._where)
        z = positions_on_grid(lines["kspace_encode_step_2"], grid.offset[1], cols, "second phase-encoding", self._where)
        slab = np.zeros((last - first, coils, rows, cols), np.complex64)
        count = np.zeros((rows, cols), np.int32)
        for k, data, start in self._readouts(lines):
            line = np.zeros((coils, grid.readout), np.complex64)
            line[:, start : start + data.shape[1]] = data
            slab[:, :, y[k], z[k]] += ifft_axis(line, 1)[:, lo + first : lo + last].T
            count[y[k], z[k]] += 1
        if count.max() > 1:
            text = "some phase-encoding lines were measured more than once; they are averaged"
            self.note(SourceWarning("repeated-lines", text))
            slab /= np.maximum(count, 1)
        return first, slab, (count > 0)[None]

    def _readouts(self, lines: np.ndarray) -> Any:
        """Number in `lines`, samples ``(coil, sample)`` and first place on the readout axis, of each readout."""
        order = np.argsort(lines["number"], kind="stable")
        numbers = lines["number"][order]
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        with h5_opened(self.path) as file:
            samples = file[self.group]["data"].fields("data")
            for run in np.split(order, breaks):
                lo = int(lines["number"][run[0]])
                for k, raw in zip(run, samples[lo : lo + len(run)], strict=True):
                    yield k, *self._placed(lines[k], raw)

    def _placed(self, line: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, int]:
        data = _samples(line, raw, self._where)
        count, readout = data.shape[1], self.grid.readout
        pre, post = int(line["discard_pre"]), int(line["discard_post"])
        middle = int(line["center_sample"])
        # Some converters leave the centre at 0 for complete readouts.
        start = 0 if middle == 0 and count == readout else readout // 2 - middle
        if line["flags"] & REVERSE:
            data = data[:, ::-1]
        data, start = data[:, pre : count - post], start + pre
        if start < 0 or start + data.shape[1] > readout or data.shape[1] < 1:
            raise FormatError(
                "a readout does not fit the encoded matrix",
                where=f"{self._where}: readout {int(line['number'])}",
                found=f"{count} samples, centre {middle}",
                wanted=f"within {readout} samples, centre {readout // 2}",
                remedy="the header's encodedSpace is wrong: convert the raw data again",
            )
        return data, start


def open_mrd_kspace(
    path: Path, group: str, *, fft: Origin | None = None, keep_oversampling: bool = False
) -> list[MRDKSpace]:
    """Readers over an ISMRMRD file, one an item.

    Args:
        path: The file.
        group: Group that holds ``xml`` and ``data``.
        fft: Fourier convention; default ``centre``.
        keep_oversampling: Leave the readout oversampled.

    Raises:
        FormatError: Damage, a trajectory that is not Cartesian, readouts that do not fit together.
    """
    where = path_label(path)
    index = read_index(path, group)
    encoding = index.header.encodings[0]
    if encoding.trajectory not in ("cartesian", "epi"):
        raise FormatError(
            "only Cartesian data can be read", where=where, found=encoding.trajectory, wanted="cartesian or epi"
        )
    if len(set(index.lines["active_channels"].tolist())) > 1:
        raise FormatError(
            "the number of receive coils changes within the file",
            where=where,
            found=sorted(set(index.lines["active_channels"].tolist())),
            wanted="one number",
        )
    volume = encoding.encoded.matrix[2] > 1 and bool(index.lines["kspace_encode_step_2"].any())
    grid, notices = grid_of(encoding, volume, keep_oversampling)
    if encoding.trajectory == "epi" or (index.lines["flags"] & REVERSE).any():
        notices.append(SourceWarning("epi", "echo-planar data: no correction of ghosts is applied"))
    if index.left_out:
        text = (
            f"{index.left_out} readouts are neither image nor noise (calibration scans, navigators); they are not used"
        )
        notices.append(SourceWarning("calibration-left-out", text))
    noise = _noise(path, index, where)
    readers = []
    for label, lines in _items(index.lines):
        readers.append(_reader(path, index, lines, label, grid, volume, noise, list(notices)))
    for reader in readers:
        _settle(reader, fft)
    return readers


def _items(lines: np.ndarray) -> list[tuple[str, np.ndarray]]:
    varying = [name for name in ITEM_AXES if len(np.unique(lines[name])) > 1]
    if not varying:
        return [("", lines)]
    keys, which = np.unique(np.stack([lines[name] for name in varying], axis=1), axis=0, return_inverse=True)
    labels = ["_".join(f"{name}-{value}" for name, value in zip(varying, key, strict=True)) for key in keys]
    return [(label, lines[which.reshape(-1) == number]) for number, label in enumerate(labels)]


def _reader(
    path: Path,
    index: MRDIndex,
    lines: np.ndarray,
    label: str,
    grid: Grid,
    volume: bool,
    noise: np.ndarray | None,
    notices: list[SourceWarning],
) -> MRDKSpace:
    encoding, pixel = index.header.encodings[0], grid.pixel_mm
    if volume:
        slices, shape = [lines], grid.shown
        affine, remarks = volume_affine(lines[0], (grid.kept, *shape), pixel)
        fov = (pixel[1] * shape[0], pixel[2] * shape[1])
    else:
        slices, shape = _slices(lines), (grid.kept, grid.shown[0])
        firsts = np.stack([part[0] for part in slices])
        affine, remarks = stack_affine(firsts, shape, pixel, encoding.recon.fov_mm[2])
        fov = (pixel[0] * shape[0], pixel[1] * shape[1])
    return MRDKSpace(
        path,
        index.group,
        slices,
        grid,
        volume,
        shape,
        fov if min(fov) > 0 else None,
        affine,
        SourceRef("kspace", (path,), index.header),
        label,
        noise,
        notices=notices + remarks,
    )


def _slices(lines: np.ndarray) -> list[np.ndarray]:
    """Readouts of each slice, in the order of position along the slice normal, else of the counter."""
    order = np.argsort(lines["slice"], kind="stable")
    numbers = lines["slice"][order]
    parts = [lines[part] for part in np.split(order, np.flatnonzero(np.diff(numbers)) + 1)]
    normal = lines["slice_dir"][0].astype(np.float64)
    return sorted(parts, key=lambda part: round(float(part["position"][0].astype(np.float64) @ normal), 3))


def _noise(path: Path, index: MRDIndex, where: str) -> np.ndarray | None:
    """Noise covariance of the imaging samples, from the noise readouts."""
    if not len(index.noise):
        return None
    parts = []
    with h5_opened(path) as file:
        data = file[index.group]["data"]
        for number in index.noise[:_MAX_NOISE]:
            entry = data[int(number)]
            parts.append(_samples(entry["head"], entry["data"], where))
    coils = int(index.lines["active_channels"][0])
    if any(len(part) != coils for part in parts):
        raise FormatError(
            "noise and image data come from different coils", where=where, found=len(parts[0]), wanted=f"{coils} coils"
        )
    covariance = noise_covariance(np.concatenate(parts, axis=1))
    # Noise power goes with the bandwidth, which is the inverse of the dwell time.
    if index.noise_dwell_us > 0 and index.dwell_us > 0:
        covariance *= np.float32(index.noise_dwell_us / (index.dwell_us * index.header.noise_bandwidth))
    return covariance


def _samples(line: np.ndarray, raw: np.ndarray, where: str) -> np.ndarray:
    coils, count = int(line["active_channels"]), int(line["number_of_samples"])
    if raw.size != 2 * coils * count or coils < 1:
        raise FormatError(
            "a readout does not hold what its header says",
            where=where,
            found=f"{raw.size // 2} samples",
            wanted=f"{coils} coils x {count} samples",
            remedy="copy the file again from its source",
        )
    return np.ascontiguousarray(raw, np.float32).view(np.complex64).reshape(coils, count)


def _settle(reader: MRDKSpace, fft: Origin | None) -> None:
    """Warn if the energy contradicts the convention of the format, which is always ``centre``."""
    remarks = list(reader.notices)
    probe = reader.read(reader.n // 2).kspace
    # What that slice says is said again when it is read in its turn.
    reader.notices = remarks
    if probe.any():
        origin, notices = checked_origin(fft, "centre", probe)
        reader.fft = FFTConvention(origin, "ortho")
        reader.note(*notices)
