"""What a pathologist sees of one item: the slide itself, attention over it, the patches that mattered most. No torch.

A slide that is no longer there, or a bag of features without one, still shows scores and attention on a white ground.
"""

import io
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseq.errors import InputError, MedseqError
from medseq.inference.discover_mil import open_mil_item
from medseq.inference.heatmap import HeatMap, colours, heat_map, percentiles, top_patches
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_picture import png_bytes
from medseq.inference.review_runs import OutputFile, Runs
from medseq.inference.review_source import input_path
from medseq.io.attention_h5 import Attention, read_attention
from medseq.io.slide_deepzoom import DeepZoom

__all__ = ["SlideView", "jpeg_bytes", "open_slide_view"]

_QUALITY = 82


class SlideView:
    """One slide or bag.

    Args:
        zoom: The slide, or None.
        missing: Why there is no slide, in words.
        attention: Numbers of its patches, or None.
        patch_size: Side of a patch in level-0 pixels.
        scores: Content of ``scores.json``.
        bundle: What the report says of the model.
        stored: Pictures that the run wrote, by ``overlay`` and ``sheet``.
        cache: For tiles.
        key: Tells this slide from others in the cache.
    """

    def __init__(  # noqa: PLR0913  (what a run leaves of a slide)
        self,
        zoom: DeepZoom | None,
        missing: str,
        attention: Attention | None,
        patch_size: int,
        scores: Mapping[str, Any],
        *,
        bundle: Mapping[str, Any],
        stored: Mapping[str, Path],
        cache: "ByteCache[Any]",
        key: str,
    ) -> None:
        self.zoom, self.missing, self.attention, self.patch_size = zoom, missing, attention, patch_size
        self.scores, self._bundle, self._stored = dict(scores), dict(bundle), dict(stored)
        self._cache, self._key = cache, key

    def info(self, top: int = 12) -> dict[str, Any]:
        """Everything a viewer needs before the first tile, JSON-ready.

        ``overlay`` tells which part of the slide the attention picture covers: ``width`` and ``height`` in level-0
        pixels, from the top left corner.
        """
        zoom = self.zoom
        found: dict[str, Any] = {
            "slide": None,
            "missing": self.missing,
            "scores": self.scores,
            "calibration": self._bundle.get("calibration") or [],
            "intended_use": self._bundle.get("intended_use", ""),
            "notice": "Research use only. Not for diagnosis.",
            "methods": self.methods,
            "patch_size": self.patch_size,
            "stored": sorted(self._stored),
            "overlay": None,
            "top": [],
        }
        if zoom is not None:
            slide = zoom.slide
            found["slide"] = {
                "width": slide.dims[0][0],
                "height": slide.dims[0][1],
                "levels": slide.levels,
                "format": slide.format,
                "mpp": list(slide.mpp) if slide.mpp else None,
                "mpp_source": slide.mpp_source,
                "objective_power": slide.objective_power,
                "tile_size": zoom.tile_size,
                "overlap": zoom.overlap,
                "last_level": zoom.last,
            }
        if self.methods and self._has_places:
            heat = self.heat(self.methods[0])
            rows, cols = heat.values.shape
            found["overlay"] = {"width": cols * heat.scale, "height": rows * heat.scale, "rows": rows, "cols": cols}
            found["top"] = self.top(self.methods[0], top)
        return found

    @property
    def methods(self) -> list[str]:
        """Names of the numbers that patches have, ``attention`` last where another was asked for."""
        if self.attention is None:
            return []
        names = [name for name in self.attention.values if not name.endswith("_percentile")]
        return sorted(names, key=lambda name: (name == "attention", name))

    def heat(self, method: str) -> HeatMap:
        """The map of a method, by percentile.

        Raises:
            InputError: No such method, or patches without places.
        """
        attention = self._require(method)
        if attention.coords is None:
            raise InputError("the places of the patches are not known", remedy="give features with coordinates")
        dims = None if self.zoom is None else self.zoom.slide.dims[0]
        made: HeatMap = self._cache.get(
            (self._key, "heat", method),
            lambda: _Heat(heat_map(self._percentile(method), attention.coords, self.patch_size, dims)),  # type: ignore[arg-type]
        ).map
        return made

    def overlay(self, method: str, threshold: float = 0.0, opacity: float = 1.0) -> bytes:
        """Attention as a picture with transparency, to be laid over the slide.

        Args:
            method: See `methods`.
            threshold: Patches below this percentile (0 to 1) are left out.
            opacity: Of the others, 0 to 1.

        Raises:
            InputError: A number outside of 0 to 1, or no such method.
        """
        if not (0 <= threshold <= 1 and 0 <= opacity <= 1):
            raise InputError("threshold and opacity are shares", found=f"{threshold:g}, {opacity:g}", wanted="0 to 1")
        heat = self.heat(method)
        shown = np.nan_to_num(heat.values, nan=-1.0) >= threshold
        alpha = np.where(shown & ~np.isnan(heat.values), round(255 * opacity), 0).astype(np.uint8)
        return png_bytes(np.dstack([colours(heat.values), alpha]))

    def top(self, method: str, count: int = 12) -> list[dict[str, Any]]:
        """The patches with the highest values, highest first: number, corner in level-0 pixels, value, percentile."""
        attention = self._require(method)
        values, share = attention.values[method], self._percentile(method)
        return [
            {
                "index": int(i),
                "x": None if attention.coords is None else int(attention.coords[i][0]),
                "y": None if attention.coords is None else int(attention.coords[i][1]),
                "size": self.patch_size,
                "value": float(values[i]),
                "percentile": float(share[i]),
            }
            for i in top_patches(values, min(max(count, 1), 200))
        ]

    def patch(self, index: int, side: int = 192) -> bytes:
        """A patch of the slide as JPEG.

        Raises:
            InputError: No such patch, or no slide.
        """
        zoom, attention = self._require_slide(), self.attention
        if attention is None or attention.coords is None or not 0 <= index < len(attention.coords):
            raise InputError("no such patch", found=index)
        x, y = (int(v) for v in attention.coords[index])
        side = min(max(side, 32), 512)
        return self._kept(("patch", index, side), lambda: zoom.region(x, y, self.patch_size, side))

    def tile(self, level: int, col: int, row: int) -> bytes:
        """A Deep Zoom tile as JPEG.

        Raises:
            InputError: No such tile, or no slide.
            FormatError: This part of the slide cannot be read.
        """
        zoom = self._require_slide()
        return self._kept(("tile", level, col, row), lambda: zoom.tile(level, col, row))

    def thumbnail(self, side: int = 512) -> bytes:
        """The whole slide as JPEG."""
        zoom, side = self._require_slide(), min(max(side, 64), 2048)
        return self._kept(("thumbnail", side), lambda: zoom.thumbnail(side))

    def quality(self, side: int = 1024) -> tuple[bytes, dict[str, Any]]:
        """Picture of tissue, ink and folds as PNG, and the numbers of the slide's quality."""
        from dataclasses import asdict

        from medseq.io.tissue import find_tissue, read_overview
        from medseq.io.tissue_qc import qc_picture, tissue_qc

        zoom = self._require_slide()

        def made() -> tuple[bytes, dict[str, Any]]:
            tissue = find_tissue(read_overview(zoom.slide))
            return png_bytes(qc_picture(tissue, side)), asdict(tissue_qc(zoom.slide, tissue))

        found: _Quality = self._cache.get((self._key, "quality", side), lambda: _Quality(*made()))
        return found.picture, found.numbers

    def stored(self, name: str) -> bytes:
        """A picture that the run wrote: ``overlay`` or ``sheet``.

        Raises:
            InputError: There is none.
        """
        path = self._stored.get(name)
        if path is None or not path.is_file():
            raise InputError("the run wrote no such picture", found=name[:20], wanted=", ".join(self._stored))
        return path.read_bytes()

    def close(self) -> None:
        """Give the slide back."""
        if self.zoom is not None:
            self.zoom.close()

    @cached_property
    def _has_places(self) -> bool:
        return self.attention is not None and self.attention.coords is not None and len(self.attention.coords) > 0

    def _percentile(self, method: str) -> np.ndarray:
        attention = self._require(method)
        stored = attention.values.get(f"{method}_percentile")
        return percentiles(attention.values[method]) if stored is None else stored

    def _require(self, method: str) -> Attention:
        if self.attention is None or method not in self.methods:
            raise InputError("no such numbers of patches", found=method[:20], wanted=", ".join(self.methods) or "none")
        return self.attention

    def _require_slide(self) -> DeepZoom:
        if self.zoom is None:
            raise InputError("the slide is not at hand", found=self.missing or "no slide")
        return self.zoom

    def _kept(self, name: tuple[Any, ...], make: Any) -> bytes:
        picture: bytes = self._cache.get((self._key, *name), lambda: jpeg_bytes(make()))
        return picture


class _Heat:
    """A heat map with the size that a cache asks for."""

    def __init__(self, heat: HeatMap) -> None:
        self.map, self.nbytes = heat, heat.values.nbytes


class _Quality:
    """Picture and numbers of a slide's quality, likewise."""

    def __init__(self, picture: bytes, numbers: dict[str, Any]) -> None:
        self.picture, self.numbers, self.nbytes = picture, numbers, len(picture)


def open_slide_view(runs: Runs, token: str, cache: "ByteCache[Any]") -> SlideView:
    """The view of an item of a run of slides.

    Raises:
        FormatError: Its scores cannot be read.
    """
    outputs = {file.path.name: file for file in runs.outputs(token, rehash=False)}
    scores = _scores(next((f for f in outputs.values() if f.role == "scores"), None))
    attention_file = next((f for f in outputs.values() if f.role == "attention" and f.path.suffix == ".h5"), None)
    attention = read_attention(attention_file.path) if attention_file and not attention_file.problem else None
    zoom, missing = _slide(runs, token)
    stored = {
        name: file.path
        for name, role in (("overlay", "overlay"), ("sheet", "attention"))
        for file in outputs.values()
        if file.role == role and file.path.suffix == ".png" and file.problem is None
    }
    geojson = next((f for f in outputs.values() if f.path.suffix == ".geojson" and not f.problem), None)
    size = _patch_size(geojson.path if geojson else None, None if attention is None else attention.coords)
    bundle, key = runs.run_of(token).bundle, f"{token}/slide/{runs.output_hash(token)}"
    return SlideView(
        zoom,
        missing,
        attention,
        size,
        scores,
        bundle=bundle,
        stored=stored,
        cache=cache,
        key=key,
    )


def jpeg_bytes(rgb: np.ndarray) -> bytes:
    """``(row, col, 3)`` uint8 as JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _slide(runs: Runs, token: str) -> tuple[DeepZoom | None, str]:
    """The slide, or why it is not there."""
    from medseq.io.slide_open import open_slide

    item = runs.item(token)
    try:
        root, files = runs.input_files(token)
        relpaths = [row.relpath for row in files]
        for relpath in relpaths:
            input_path(root, relpath)
        found = open_mil_item(root, item.item_id, item.kind, relpaths, runs.folder(token) / "bags")
        if found.slide is None:
            return None, "the run scored features; no slide lies beside them"
        return DeepZoom(open_slide(found.slide, runs.params(token).get("mpp"))), ""
    except MedseqError as error:
        return None, str(error)


def _scores(file: OutputFile | None) -> dict[str, Any]:
    if file is None or file.problem in ("missing", "unreadable"):
        return {}
    try:
        content = json.loads(file.path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _patch_size(geojson: Path | None, coords: np.ndarray | None) -> int:
    """Side of a patch in level-0 pixels: as the run drew it, else the smallest step between patches."""
    if geojson is not None:
        try:
            ring = json.loads(geojson.read_text("utf-8"))["features"][0]["geometry"]["coordinates"][0]
            return max(1, int(ring[1][0] - ring[0][0]))
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            pass
    steps = [] if coords is None else [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    steps = [step for step in steps if step.size]
    return int(min(step.min() for step in steps)) if steps else 256
