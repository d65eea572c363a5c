"""The small YAML or JSON file beside a plain array that says what its axes are.

    axes: [slice, coil, row, col]         # one name an axis; also parts, contrast, phase, repetition, average, set, one
    fft: {origin: centre, norm: ortho}    # or just: fft: corner
    spacing_mm: [5.0, 0.9, 0.9]           # slice, row, col; or fov_mm: [row, col]
    recon_shape: [320, 320]               # the image is cropped to it
    phase_axis: 1                         # axis of undersampling: 0 row, 1 column
    affine: [[...], [...], [...], [...]]  # (col, row, slice, 1) -> RAS mm
    key: kspace                           # dataset of an .h5 or .npz file
    mask: mask.npy                        # a file of the same folder, or a dataset of the same file
    sens_maps: maps.npy                   # the same; axes as k-space unless sens_axes says otherwise
    sens_axes: [slice, coil, row, col]
    noise_cov: noise.npy

Every line is optional but `axes`, and that too for an array of two or four axes.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseq.errors import FormatError
from medseq.io.kspace import FFTConvention
from medseq.io.kspace_fft import origin_name
from medseq.io.kspace_layout import AXES
from medseq.io.kspace_stored import readable
from medseq.io.plain_text import plain_json, plain_yaml
from medseq.io.privacy import path_label

__all__ = ["Sidecar", "find_sidecar", "read_sidecar"]

_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Sidecar:
    """What the file says; None where it does not. See the module for the fields."""

    axes: tuple[str, ...] | None = None
    fft: FFTConvention | None = None
    spacing_mm: tuple[float, float, float] | None = None
    fov_mm: tuple[float, float] | None = None
    recon_shape: tuple[int, int] | None = None
    phase_axis: Literal[0, 1] = 1
    affine: np.ndarray | None = None
    key: str | None = None
    mask: str | None = None
    sens_maps: str | None = None
    sens_axes: tuple[str, ...] | None = None
    noise_cov: str | None = None


def find_sidecar(path: Path) -> Path | None:
    """The sidecar of an array file: ``scan.npy`` -> ``scan.yaml``, ``scan.yml`` or ``scan.json``."""
    return next((path.with_suffix(suffix) for suffix in _SUFFIXES if path.with_suffix(suffix).is_file()), None)


def read_sidecar(path: Path) -> Sidecar:
    """Read and check a sidecar.

    Raises:
        FormatError: Not YAML or JSON, an unknown field, or a value of the wrong form; the message names the field.
    """
    where = path_label(path)
    with readable(where):
        text = path.read_bytes()[: _MAX_BYTES + 1]
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError("too long")
        content = plain_json(text) if path.suffix.lower() == ".json" else plain_yaml(text)
    except ValueError:
        raise FormatError("the sidecar is neither YAML nor JSON", where=where) from None
    known = [field.name for field in fields(Sidecar)]
    if not isinstance(content, dict) or set(content) - set(known):
        odd = sorted(str(name) for name in set(content) - set(known)) if isinstance(content, dict) else type(content)
        raise FormatError(
            "the sidecar has fields that are not known", where=where, found=odd, wanted=f"some of {', '.join(known)}"
        )
    values = {}
    for name, value in content.items():
        try:
            values[name] = _PARSERS[name](value)
        except (ValueError, TypeError, KeyError):
            raise FormatError(
                f"the sidecar's '{name}' has the wrong form",
                where=where,
                found=str(value)[:80],
                wanted=_WANTED[name],
            ) from None
    return Sidecar(**values)


def _axes(value: Any) -> tuple[str, ...]:
    axes = tuple(str(name).lower() for name in value)
    if isinstance(value, str) or set(axes) - set(AXES) or not {"row", "col"} <= set(axes):
        raise ValueError
    return axes


def _convention(value: Any) -> FFTConvention:
    given = {"origin": value} if isinstance(value, str) else dict(value)
    norm = given.get("norm", "ortho")
    if norm not in ("ortho", "backward") or set(given) - {"origin", "norm"}:
        raise ValueError
    origin = origin_name(str(given.get("origin", "centre")))
    return FFTConvention(origin, "backward" if norm == "backward" else "ortho")


def _positive(count: int, kind: type) -> Any:
    def parse(value: Any) -> tuple[Any, ...]:
        numbers = tuple(kind(n) for n in value)
        if isinstance(value, str) or len(numbers) != count or not all(0 < n < 1e6 for n in numbers):
            raise ValueError
        return numbers

    return parse


def _phase_axis(value: Any) -> Literal[0, 1]:
    if value not in (0, 1):
        raise ValueError
    return 1 if value else 0


def _affine(value: Any) -> np.ndarray:
    affine = np.asarray(value, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError
    return affine


def _name(value: Any) -> str:
    """A name inside the file, or of a file beside it: never a way out of the folder."""
    text = str(value)
    if not isinstance(value, str) or not text or text.startswith(("/", "~")) or "\\" in text or ".." in text.split("/"):
        raise ValueError
    return text


_PARSERS: dict[str, Any] = {
    "axes": _axes,
    "fft": _convention,
    "spacing_mm": _positive(3, float),
    "fov_mm": _positive(2, float),
    "recon_shape": _positive(2, int),
    "phase_axis": _phase_axis,
    "affine": _affine,
    "key": _name,
    "mask": _name,
    "sens_maps": _name,
    "sens_axes": _axes,
    "noise_cov": _name,
}
_AXES_FORM = f"row, col and some of {', '.join(name for name in AXES if name not in ('row', 'col'))}"
_WANTED = {
    "axes": _AXES_FORM,
    "fft": "centre or corner, or {origin: …, norm: ortho or backward}",
    "spacing_mm": "three positive numbers: slice, row, col",
    "fov_mm": "two positive numbers: row, col",
    "recon_shape": "two positive whole numbers: row, col",
    "phase_axis": "0 or 1",
    "affine": "an invertible 4 x 4 matrix",
    "key": "the name of a dataset",
    "mask": "the name of a dataset, or of a file in the same folder",
    "sens_maps": "the name of a dataset, or of a file in the same folder",
    "sens_axes": _AXES_FORM,
    "noise_cov": "the name of a dataset, or of a file in the same folder",
}
