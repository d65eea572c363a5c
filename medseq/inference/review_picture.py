"""From values to pictures for a screen: windows, presets, colour maps, square pixels, PNG. numpy and Pillow only."""

import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medseq.errors import InputError

__all__ = ["MAX_SIDE", "Preset", "diverging", "grey", "png_bytes", "presets", "screen_size", "sized", "spread"]

# Longest side of a picture: what a large screen shows of one plane.
MAX_SIDE = 2048


@dataclass(frozen=True)
class Preset:
    """A display window with a name and the number key that chooses it.

    Attributes:
        low: Black.
        high: White.
    """

    key: str
    name: str
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


# Level and width in HU as radiology prints them.
_CT = (
    ("brain", 40.0, 80.0),
    ("subdural", 75.0, 215.0),
    ("stroke", 40.0, 40.0),
    ("bone", 400.0, 1800.0),
    ("lung", -600.0, 1500.0),
    ("soft tissue", 40.0, 400.0),
    ("liver", 60.0, 160.0),
)


def presets(units: str, auto: tuple[float, float], full: tuple[float, float]) -> list[Preset]:
    """Windows on the number keys: 1 is the automatic one, 9 everything.

    Args:
        units: Of the values.
        auto: Black and white of the automatic window.
        full: Smallest and largest value.
    """
    found = [Preset("1", "auto", *auto)]
    if units == "HU":
        found += [
            Preset(str(key), name, level - width / 2, level + width / 2)
            for key, (name, level, width) in enumerate(_CT, start=2)
        ]
    elif units == "SUVbw":
        found += [Preset("2", "SUV 0 to 5", 0.0, 5.0), Preset("3", "SUV 0 to 10", 0.0, 10.0)]
    else:
        width = auto[1] - auto[0]
        found.append(Preset("2", "more contrast", auto[0] + 0.1 * width, auto[0] + 0.7 * width))
        found.append(Preset("3", "dark tissue", auto[0], auto[0] + 0.4 * width))
    return [*found, Preset("9", "full range", *full)]


def grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values ``(row, col)`` as uint8: `low` and below is 0, `high` and above 255; what is not finite is black.

    Raises:
        InputError: A window without width.
    """
    return _scaled(values, low, high)


def diverging(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Differences as ``(row, col, 3)``: blue below zero, orange above, dark at zero; for eyes of every kind.

    The dark middle keeps what did not change quiet on a dark screen.
    """
    half = max(abs(low), abs(high))
    return _DIVERGING[_scaled(np.nan_to_num(values, nan=0.0), -half, half)]


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uncertainty as ``(row, col, 4)``: violet over orange to yellow, and the less transparent the larger."""
    return _SPREAD[_scaled(values, low, high)]


def screen_size(shape: tuple[int, int], row_mm: float, col_mm: float) -> tuple[int, int]:
    """Rows and columns of a picture with square pixels: the finer spacing of the two, up to `MAX_SIDE`."""
    unit = min(row_mm, col_mm)
    rows, cols = shape[0] * row_mm / unit, shape[1] * col_mm / unit
    shrink = min(1.0, MAX_SIDE / max(rows, cols))
    return max(1, round(rows * shrink)), max(1, round(cols * shrink))


def sized(values: np.ndarray, size: tuple[int, int], padding: float = 0.0) -> np.ndarray:
    """Values ``(row, col)`` float32 on another grid of the same extent, linear between centres.

    Args:
        values: What is not finite counts as `padding`.
        size: Rows and columns.
        padding: Black, of a picture in grey.
    """
    if values.shape == size:
        return values
    from PIL import Image

    filled = np.nan_to_num(np.asarray(values, np.float32), nan=padding, posinf=padding, neginf=padding)
    picture = Image.fromarray(np.ascontiguousarray(filled))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def png_bytes(pixels: np.ndarray) -> bytes:
    """uint8 ``(row, col)``, ``(row, col, 3)`` or ``(row, col, 4)`` as PNG; quick rather than small."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        raise InputError("the window has no width", found=f"{low:g} to {high:g}", wanted="black below white")
    values = np.nan_to_num(np.asarray(values, np.float32), nan=low, posinf=high, neginf=low)
    return np.clip(np.round((values - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)


def _ramp(stops: list[tuple[float, tuple[int, ...]]]) -> np.ndarray:
    """256 colours through the stops, straight between them."""
    at = np.linspace(0, 1, 256)
    places = [place for place, _ in stops]
    channels = [np.interp(at, places, [colour[c] for _, colour in stops]) for c in range(len(stops[0][1]))]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


_DIVERGING = _ramp(
    [
        (0.0, (140, 200, 255)),
        (0.25, (40, 110, 220)),
        (0.5, (16, 16, 18)),
        (0.75, (215, 95, 20)),
        (1.0, (255, 205, 130)),
    ]
)
_SPREAD = _ramp(
    [
        (0.0, (60, 10, 110, 0)),
        (0.35, (150, 40, 130, 110)),
        (0.7, (240, 110, 60, 200)),
        (1.0, (255, 235, 100, 255)),
    ]
)
