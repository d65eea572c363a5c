"""Small grey pictures of one slice before and after, for reports: display window, orientation, PNG. No torch.

A preview is plain data (``preview.json`` beside the result), so that a report can be made at any time, by any
process, from finished items alone.
"""

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseq.io.volume import Units, VolumeHeader

__all__ = ["DIFFERENCE_HU", "DIFFERENCE_SHARE", "Window", "difference_text", "display_window", "png", "preview"]

# The difference picture has one window for all items, so that their darkness can be compared.
DIFFERENCE_HU = 50.0
DIFFERENCE_SHARE = 0.1
_MAX_SIDE = 512
_BODY_HU, _BONE_HU = -500.0, 300.0


@dataclass(frozen=True)
class Window:
    """Values from `low` (black) to `high` (white)."""

    name: str
    low: float
    high: float


# Level and width as radiology prints them: soft tissue 40/400, lung -600/1500, bone 400/1800.
_SOFT = Window("soft tissue", -160.0, 240.0)
_LUNG = Window("lung", -1350.0, 150.0)
_BONE = Window("bone", -500.0, 1300.0)


def display_window(plane: np.ndarray, valid: np.ndarray | None, units: Units) -> Window:
    """The window a reader would choose: for CT by what the slice shows, else percentiles 0.5 to 99.5."""
    values = plane[np.isfinite(plane) if valid is None else np.isfinite(plane) & valid]
    if units == "HU":
        # Air around the patient tells nothing; lung is what lies between air and tissue.
        inside = values[values > -950]
        if inside.size and np.mean(inside < _BODY_HU) > 0.35:
            return _LUNG
        body = values[values > _BODY_HU]
        return _BONE if body.size and np.mean(body > _BONE_HU) > 0.4 else _SOFT
    if not values.size:
        return Window("percentile 0.5 to 99.5", 0.0, 1.0)
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return Window("percentile 0.5 to 99.5", low, high if high > low else low + 1.0)


def difference_text(units: str) -> str:
    """The window of all difference pictures of a run, in words."""
    if units == "HU":
        span = f"-{DIFFERENCE_HU:g} HU (black) over 0 (mid grey) to +{DIFFERENCE_HU:g} HU (white)"
    else:
        share = f"{100 * DIFFERENCE_SHARE:g} %"
        span = f"-{share} (black) over 0 (mid grey) to +{share} (white) of the width of the item's display window"
    return f"result - input, {span}, the same for every item"


def preview(
    before: np.ndarray, after: np.ndarray, valid: np.ndarray | None, header: VolumeHeader, plane: int
) -> dict[str, Any]:
    """Pictures of one plane ``(row, col)``, as a JSON-ready mapping with base64 PNGs.

    Args:
        before: Input in native units.
        after: Result in native units.
        valid: Padding mask, or None.
        header: Geometry: pictures are turned so that a patient lies as radiologists expect.
        plane: Number of the plane.
    """
    window = display_window(before, valid, header.units)
    if before.shape != after.shape:  # super-resolution: the acquired pixels, each as large as it is
        rows, cols = (new // old for new, old in zip(after.shape, before.shape, strict=True))
        before = before.repeat(rows, axis=0).repeat(cols, axis=1)
    half = DIFFERENCE_HU if header.units == "HU" else DIFFERENCE_SHARE * (window.high - window.low)
    affine = header.slice_affines[plane % header.shape[0]]
    spans = {"before": (before, window.low, window.high), "after": (after, window.low, window.high)}
    spans["difference"] = (after.astype(np.float32) - before, -half, half)
    pictures, ratio = {}, 1.0
    for name, (values, low, high) in spans.items():
        shown, (row_mm, col_mm) = _as_radiologists_look(values, affine)
        ratio = (shown.shape[1] * col_mm) / (shown.shape[0] * row_mm)
        pictures[name] = base64.b64encode(png(_grey(_reduced(shown), low, high))).decode()
    return {
        "plane": plane,
        "planes": header.planes,
        "shape": list(header.shape),
        "window": {"name": window.name, "low": window.low, "high": window.high, "units": header.units},
        "difference_half_width": half,
        "width_over_height": ratio,
        "pictures": pictures,
    }


def png(grey: np.ndarray) -> bytes:
    """An 8-bit greyscale image ``(row, col)`` as PNG.

    Reference:
        ISO/IEC 15948, sections 5 and 9 (filter type 2, "Up").
    """
    rows, cols = grey.shape
    above = np.vstack([np.zeros((1, cols), np.uint8), grey[:-1]])
    lines = np.hstack([np.full((rows, 1), 2, np.uint8), grey - above])
    header = struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255.0 / (high - low))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def _reduced(values: np.ndarray) -> np.ndarray:
    """Block means, so that neither side is longer than a report needs."""
    step = -(-max(values.shape) // _MAX_SIDE)
    if step == 1:
        return values
    rows, cols = (max(side // step, 1) for side in values.shape)
    kept = values[: rows * step, : cols * step]
    # A side shorter than one block stays as it is.
    blocks = kept.reshape(rows, kept.shape[0] // rows, cols, kept.shape[1] // cols)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def _as_radiologists_look(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Turn ``(row, col)`` so that columns run to the patient's left (or back) and rows to the back (or the feet).

    Returns the turned plane and its ``(row, col)`` spacing in mm.
    """
    # RAS axis (0 right, 1 anterior, 2 superior) along which columns and rows run, and in which sense.
    col_axis, row_axis = (int(np.argmax(np.abs(affine[:3, column]))) for column in (0, 1))
    col_mm, row_mm = (float(np.linalg.norm(affine[:3, column])) or 1.0 for column in (0, 1))
    col_sign, row_sign = affine[col_axis, 0], affine[row_axis, 1]
    # Left-right belongs on the columns; in a sagittal plane, the front-back axis does.
    if row_axis < col_axis:
        values, col_sign, row_sign = values.T, row_sign, col_sign
        row_mm, col_mm = col_mm, row_mm
    # Columns grow towards left or back, rows towards back or feet: all negative in RAS.
    if col_sign > 0:
        values = values[:, ::-1]
    if row_sign > 0:
        values = values[::-1]
    return np.ascontiguousarray(values), (row_mm, col_mm)
