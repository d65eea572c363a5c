"""The acquisitions of an ISMRMRD file sorted into slices and items, from their headers alone; no samples are read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseq.errors import FormatError
from medseq.io.kspace_layout import ITEM_AXES
from medseq.io.kspace_stored import h5_opened
from medseq.io.mrd_header import MRDHeader, parse_mrd_header
from medseq.io.privacy import path_label

__all__ = ["CALIBRATION", "IMAGED_CALIBRATION", "NOISE", "REVERSE", "MRDIndex", "find_group", "read_index"]


def _bit(number: int) -> int:
    # The standard counts flags from 1.
    return 1 << (number - 1)


NOISE, CALIBRATION, IMAGED_CALIBRATION, REVERSE = _bit(19), _bit(20), _bit(21), _bit(22)
# Navigators, phase correction, feedback, dummy scans, surface-coil correction, phase stabilisation.
_OTHER = sum(_bit(number) for number in (23, 24, 26, 27, 28, 29, 30, 31))
_COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", *ITEM_AXES)
_FIELDS = ("flags", "number_of_samples", "active_channels", "center_sample", "discard_pre", "discard_post")
_PLACE = ("position", "read_dir", "phase_dir", "slice_dir")
_CHUNK = 8192


@dataclass(frozen=True)
class MRDIndex:
    """Headers of the imaging readouts, as columns.

    Attributes:
        group: Name of the group in the file.
        header: The XML header.
        lines: Structured array, one element a readout: `number` in the file, counters, sizes, flags, place.
        noise: Numbers of the noise readouts.
        noise_dwell_us: Their dwell time, 0 if unknown.
        dwell_us: Dwell time of the imaging readouts, 0 if unknown.
        left_out: Readouts that are neither image nor noise.
    """

    group: str
    header: MRDHeader
    lines: np.ndarray
    noise: np.ndarray
    noise_dwell_us: float
    dwell_us: float
    left_out: int


def find_group(path: Path) -> str | None:
    """The first group that holds an ISMRMRD acquisition list, or None."""
    with h5_opened(path) as file:
        for name in file:
            entry = file.get(name)
            if hasattr(entry, "keys") and {"xml", "data"} <= set(entry.keys()):
                names = getattr(entry["data"], "dtype", np.dtype("f4")).names or ()
                if {"head", "data"} <= set(names):
                    return str(name)
    return None


def read_index(path: Path, group: str) -> MRDIndex:
    """Read every acquisition header.

    Raises:
        FormatError: A header that makes no sense, or no imaging readout.
    """
    where, parts = path_label(path), []
    with h5_opened(path) as file:
        stored = file[group]["xml"]
        if getattr(stored, "size", None) != 1:
            raise FormatError("the ISMRMRD header is no text", where=where, wanted="one string")
        xml = np.asarray(stored[()]).item()
        header = parse_mrd_header(xml if isinstance(xml, str | bytes) else b"", where)
        data = file[group]["data"]
        heads = data.fields("head")
        for lo in range(0, data.shape[0], _CHUNK):
            parts.append(_columns(heads[lo : lo + _CHUNK], lo))
    lines = np.concatenate(parts) if parts else np.empty(0, _dtype())
    is_noise = (lines["flags"] & NOISE) != 0
    separate = header.encodings[0].calibration in ("separate", "external")
    calibration = ((lines["flags"] & CALIBRATION) != 0) & ((lines["flags"] & IMAGED_CALIBRATION) == 0)
    unusable = (lines["flags"] & _OTHER) != 0
    # Other encodings are calibration scans and navigators with a matrix of their own.
    image = ~is_noise & ~unusable & ~(calibration & separate) & (lines["encoding_space_ref"] == 0)
    if not image.any():
        raise FormatError(
            "the file holds no imaging readout",
            where=where,
            found=f"{len(lines)} readouts, {int(is_noise.sum())} of noise",
            wanted="at least one",
        )
    return MRDIndex(
        group,
        header,
        lines[image],
        lines["number"][is_noise],
        _dwell(lines[is_noise]),
        _dwell(lines[image]),
        int((~image & ~is_noise).sum()),
    )


def _dtype() -> np.dtype:
    counters = [(name, "i4") for name in _COUNTERS]
    place = [(name, "f4", (3,)) for name in _PLACE]
    sizes = [(name, "u8" if name == "flags" else "i4") for name in _FIELDS]
    return np.dtype([("number", "i8"), *counters, *sizes, ("encoding_space_ref", "i4"), ("dwell", "f4"), *place])


def _columns(heads: np.ndarray, first: int) -> np.ndarray:
    out = np.empty(len(heads), _dtype())
    out["number"] = first + np.arange(len(heads))
    for name in _COUNTERS:
        out[name] = heads["idx"][name]
    for name in (*_FIELDS, "encoding_space_ref", *_PLACE):
        out[name] = heads[name]
    out["dwell"] = heads["sample_time_us"]
    return out


def _dwell(lines: np.ndarray) -> float:
    return float(np.median(lines["dwell"])) if len(lines) else 0.0
