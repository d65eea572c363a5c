"""What a reader of volumes sees of one item: before, after, their difference and the uncertainty, plane by plane.

All pictures come windowed as PNG with square pixels, in the radiological convention (`review_geometry`). Places on
the screen are ``x`` to the right and ``y`` downwards in voxels of the plane, from the top left corner of the first
voxel. No torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medseq.errors import InputError
from medseq.inference.preview import DIFFERENCE_HU, DIFFERENCE_SHARE, display_window
from medseq.inference.review_geometry import PLANES, Plane, PlaneLayout, require_plane
from medseq.inference.review_layer import Layer
from medseq.inference.review_picture import diverging, grey, png_bytes, presets, screen_size, sized, spread

__all__ = ["ROLES", "SeriesView"]

ROLES = ("before", "after", "difference", "uncertainty")
# Outer corners of two volumes that are linked lie closer than this, in voxels of the coarser one.
_APART = 1.0


class SeriesView:
    """The volumes of an item.

    Args:
        layers: By role; ``after`` or ``before`` at least. The first there is gives the planes.
        missing: Why a role is not there, in words.
        header: What stands above the picture: pseudonym, series, body part, laterality.
    """

    def __init__(
        self, layers: Mapping[str, Layer], missing: Mapping[str, str], header: Mapping[str, str | None]
    ) -> None:
        if not layers:
            raise InputError("there is no picture of this item", found="; ".join(missing.values()) or "no volume")
        self.layers, self.missing, self.header = dict(layers), dict(missing), dict(header)
        self.master = self.layers.get("after") or next(iter(self.layers.values()))
        self.link_refused = self._why_not_linked()
        self._windows: dict[str, Any] | None = None

    # --- facts

    @property
    def roles(self) -> list[str]:
        """What can be shown; a difference needs both volumes, linked."""
        found = [role for role in ROLES if role in self.layers]
        if "difference" not in found and {"before", "after"} <= set(found) and self.link_refused is None:
            found.insert(found.index("after") + 1, "difference")
        return found

    def info(self) -> dict[str, Any]:
        """Everything a viewer needs before the first picture, JSON-ready."""
        windows = self._limits()
        master = self.master
        refused = self.link_refused
        return {
            "roles": self.roles,
            "missing": self.missing,
            "linked": refused is None,
            "link_refused": refused,
            "planes": {plane: self._plane_info(master, plane) for plane in PLANES},
            "layers": {
                role: {plane: self._plane_info(layer, plane) for plane in PLANES}
                for role, layer in self.layers.items()
                if refused is not None
            },
            "shape": list(master.header.shape),
            "frames": master.frames,
            "spacing_mm": [round(float(v), 4) for v in master.geometry.spacing],
            "even": master.geometry.is_even,
            "reduced": master.reduced,
            "modality": master.header.modality,
            "units": master.header.units,
            "notice": "Research use only. Not for diagnosis.",
            "header": self.header,
            **windows,
        }

    # --- pictures

    def slice(
        self, role: str, plane: str, index: int, low: float | None = None, high: float | None = None, frame: int = 0
    ) -> bytes:
        """A plane as PNG.

        Args:
            role: ``before`` and ``after`` are grey, ``difference`` coloured, ``uncertainty`` coloured with alpha.
            plane: ``stack``, ``axial``, ``coronal`` or ``sagittal``.
            index: Slice from 0; for a linked role, slice of the planes in `info`.
            low: Black, or the lower limit; default: that of `info`.
            high: White, or the upper limit.
            frame: Time point.

        Raises:
            InputError: No such role, plane, slice or window.
        """
        name, limits = require_plane(plane), self._limits()
        span = limits["window"] if role in ("before", "after") else limits.get(role) or limits["window"]
        black, white = (span["low"] if low is None else low), (span["high"] if high is None else high)
        values = self._on_screen(role, name, index, frame, black if role in ("before", "after") else 0.0)
        if role == "difference":
            return png_bytes(diverging(values, black, white))
        if role == "uncertainty":
            return png_bytes(spread(values, black, white))
        return png_bytes(grey(values, black, white))

    def nifti(self, role: str, frame: int = 0) -> bytes:
        """A volume as NIfTI-1 for 3-D viewers: voxels and affine, no other word of the source.

        Raises:
            InputError: No such volume, or uneven slices, which no affine describes.
        """
        from medseq.io.nifti_bytes import nifti_bytes

        layer = self.layers.get(role)
        if layer is None:
            raise InputError("there is no such volume of this item", found=role[:20], wanted=", ".join(self.layers))
        volume, affine = layer.volume(frame)
        return nifti_bytes(volume, affine)

    # --- measurements

    def value(self, plane: str, index: int, x: float, y: float, frame: int = 0) -> dict[str, Any]:
        """Values of all roles under the cursor, and where it is in mm (right, anterior, superior are positive)."""
        name = require_plane(plane)
        layout = self._require_place(name, index)
        voxel = layout.voxel(index, y - 0.5, x - 0.5)
        found: dict[str, Any] = {
            "mm": [round(float(v), 2) for v in self.master.geometry.mm(voxel)],
            "voxel": [round(v) for v in voxel],
            "units": self.master.header.units,
        }
        for role in self.roles:
            if role in self.layers:
                found[role] = self.layers[role].value(
                    self._in_layer(self.layers[role], voxel), self._frame(role, frame)
                )
        if "difference" in self.roles and "difference" not in self.layers:
            pair = found.get("before"), found.get("after")
            found["difference"] = None if None in pair else pair[1] - pair[0]  # type: ignore[operator]
        return found

    def distance_mm(self, plane: str, index: int, start: tuple[float, float], end: tuple[float, float]) -> float:
        """Millimetres between two places ``(x, y)`` of one plane, by the affine."""
        layout = self._require_place(require_plane(plane), index)
        a, b = (layout.voxel(index, y - 0.5, x - 0.5) for x, y in (start, end))
        return self.master.geometry.distance_mm(a, b)

    def roi(
        self,
        role: str,
        plane: str,
        index: int,
        box: tuple[float, float, float, float],
        shape: str = "box",
        frame: int = 0,
    ) -> dict[str, Any]:
        """Count, mean, sd (n - 1), minimum, maximum and area of the voxels whose centres lie in a region.

        Args:
            role: Which volume.
            plane: See `slice`.
            index: Same.
            box: ``x0, y0, x1, y1``; of an ellipse the box around it.
            shape: ``box`` or ``ellipse``.
            frame: Time point.

        Raises:
            InputError: No voxel has its centre inside.
        """
        name = require_plane(plane)
        layout = self._require_place(name, index)
        values = self._exact(role, name, index, frame)
        scale_y, scale_x = values.shape[0] / layout.shape[1], values.shape[1] / layout.shape[2]
        (x0, x1), (y0, y1) = sorted((box[0], box[2])), sorted((box[1], box[3]))
        x, y = (np.arange(values.shape[1]) + 0.5) / scale_x, (np.arange(values.shape[0]) + 0.5) / scale_y
        inside = ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None]
        if shape == "ellipse":
            rx, ry = max((x1 - x0) / 2, 1e-9), max((y1 - y0) / 2, 1e-9)
            inside &= ((y - (y0 + y1) / 2) / ry)[:, None] ** 2 + ((x - (x0 + x1) / 2) / rx)[None] ** 2 <= 1
        elif shape != "box":
            raise InputError("no such region", found=shape[:20], wanted="box or ellipse")
        chosen = values[inside & np.isfinite(values)].astype(np.float64)
        if not chosen.size:
            raise InputError(
                "the region holds no voxel with a value", found=f"{x1 - x0:.2f} x {y1 - y0:.2f} voxels", wanted="larger"
            )
        area = inside.sum() * layout.row_mm * layout.col_mm / (scale_x * scale_y)
        return {
            "n": int(chosen.size),
            "mean": float(chosen.mean()),
            "sd": float(chosen.std(ddof=1)) if chosen.size > 1 else 0.0,
            "min": float(chosen.min()),
            "max": float(chosen.max()),
            "area_mm2": float(area),
            "units": self.master.header.units,
        }

    # --- inside

    def _plane_info(self, layer: Layer, plane: Plane) -> dict[str, Any]:
        layout = layer.layout(plane)
        height, width = screen_size(layout.shape[1:], layout.row_mm, layout.col_mm)
        return {
            "count": layout.shape[0],
            "rows": layout.shape[1],
            "cols": layout.shape[2],
            "row_mm": layout.row_mm,
            "col_mm": layout.col_mm,
            "height": height,
            "width": width,
            "letters": layout.letters,
            "to_mm": layer.geometry.screen_affine(plane).tolist(),
            "positions_mm": [round(layer.geometry.position_mm(plane, k), 2) for k in range(layout.shape[0])],
            # The plane whose slices were acquired; its pictures are exact and quick.
            "native": layout.axes[0] == 0,
        }

    def _limits(self) -> dict[str, Any]:
        """Windows and limits; the same for before and after, so that they can be compared."""
        if self._windows is None:
            base = self.layers.get("before") or self.master
            planes = base.sample()
            middle, units = planes[len(planes) // 2], base.header.units
            auto = display_window(middle, np.isfinite(middle), units)
            finite = planes[np.isfinite(planes)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            full = (low, high if high > low else low + 1.0)
            half = DIFFERENCE_HU if units == "HU" else DIFFERENCE_SHARE * (auto.high - auto.low)
            self._windows = {
                "window": {"name": auto.name, "low": auto.low, "high": auto.high},
                "presets": [preset.as_dict() for preset in presets(units, (auto.low, auto.high), full)],
                "difference": {"low": -half, "high": half},
                "uncertainty": self._spread_limits(),
            }
        return self._windows

    def _spread_limits(self) -> dict[str, float] | None:
        layer = self.layers.get("uncertainty")
        if layer is None:
            return None
        values = layer.sample()
        values = values[np.isfinite(values)]
        high = float(np.percentile(values, 99.5)) if values.size else 1.0
        return {"low": 0.0, "high": high if high > 0 else 1.0}

    def _on_screen(self, role: str, plane: Plane, index: int, frame: int, padding: float) -> np.ndarray:
        """Values with square pixels, on the grid of the planes in `info`."""
        if role not in self.roles:
            raise InputError("there is no such picture of this item", found=role[:20], wanted=", ".join(self.roles))
        shown = self.layers.get(role) if self.link_refused is not None else self.master
        layout = (shown or self.master).layout(plane)
        size = screen_size(layout.shape[1:], layout.row_mm, layout.col_mm)
        if role == "difference" and role not in self.layers:
            after, before = (self._plane_of(self.layers[name], plane, index, frame) for name in ("after", "before"))
            return (
                sized(after, size) - sized(before, size) if after.shape != before.shape else sized(after - before, size)
            )
        return sized(self._plane_of(self.layers[role], plane, index, frame), size, padding)

    def _plane_of(self, layer: Layer, plane: Plane, index: int, frame: int) -> np.ndarray:
        return layer.picture(plane, self._index_in(layer, plane, index), self._frame(layer.role, frame))

    def _exact(self, role: str, plane: Plane, index: int, frame: int) -> np.ndarray:
        if role not in self.roles:
            raise InputError("there is no such picture of this item", found=role[:20], wanted=", ".join(self.roles))
        if role in self.layers:
            layer = self.layers[role]
            return layer.values(plane, self._index_in(layer, plane, index), self._frame(role, frame))
        after, before = (self._exact(name, plane, index, frame) for name in ("after", "before"))
        if after.shape != before.shape:
            rows, cols = (new // old for new, old in zip(after.shape, before.shape, strict=True))
            before = before.repeat(rows, axis=0).repeat(cols, axis=1)
        return after - before

    def _index_in(self, layer: Layer, plane: Plane, index: int) -> int:
        """The slice of a layer at the place of a slice of the master."""
        count, own = self.master.layout(plane).shape[0], layer.layout(plane).shape[0]
        if layer is self.master or self.link_refused is not None or own == count:
            return index
        return min(own - 1, int((index + 0.5) * own / count)) if 0 <= index < count else index

    def _in_layer(self, layer: Layer, voxel: tuple[float, float, float]) -> tuple[float, float, float]:
        """Index in a layer of an index in the master: both cover the same place."""
        if layer is self.master or self.link_refused is not None:
            return voxel
        scaled = [
            (v + 0.5) * own / count - 0.5
            for v, own, count in zip(voxel, layer.geometry.shape, self.master.geometry.shape, strict=True)
        ]
        return scaled[0], scaled[1], scaled[2]

    def _frame(self, role: str, frame: int) -> int:
        layer = self.layers.get(role)
        return min(frame, layer.frames - 1) if layer is not None and layer.frames == 1 else frame

    def _require_place(self, plane: Plane, index: int) -> PlaneLayout:
        layout = self.master.layout(plane)
        if not 0 <= index < layout.shape[0]:
            raise InputError("no such slice", found=index, wanted=f"0 to {layout.shape[0] - 1}")
        return layout

    def _why_not_linked(self) -> str | None:
        """None if the volumes may be scrolled together: one frame of reference, one place."""
        for role in ("before", "difference", "uncertainty"):
            layer = self.layers.get(role)
            if layer is None or layer is self.master:
                continue
            frames = layer.header.frame_of_reference, self.master.header.frame_of_reference
            if None not in frames and frames[0] != frames[1]:
                return f"'{role}' has another frame of reference: its slices cannot be linked"
            gap, voxel = _corner_gap(layer, self.master)
            if gap > _APART * voxel:
                return f"'{role}' covers another place ({gap:.1f} mm apart): its slices cannot be linked"
        return None


def _corner_gap(a: Layer, b: Layer) -> tuple[float, float]:
    """Largest distance between outer corners of two volumes, and the largest voxel side, in mm."""
    gap = 0.0
    for corner in np.ndindex(2, 2, 2):
        places = []
        for layer in (a, b):
            # Outer corners in the plane; along the slices their centres, whose thickness files do not agree on.
            s, row, col = (c * (n - 1) for c, n in zip(corner, layer.geometry.shape, strict=True))
            places.append(layer.geometry.mm((s, row + corner[1] - 0.5, col + corner[2] - 0.5)))
        gap = max(gap, float(np.linalg.norm(places[0] - places[1])))
    return gap, max(*a.geometry.spacing, *b.geometry.spacing)
