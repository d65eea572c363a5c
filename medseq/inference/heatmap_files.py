"""Heat maps as files: GeoJSON for QuPath, PNG for people, a sheet of the patches that mattered most. No torch.

GeoJSON holds the patches themselves, in level-0 pixels, so that a viewer that has the slide shows them where they are.
The pyramidal TIFF is written by `medseq.io.heatmap_tiff`.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medseq.errors import FormatError
from medseq.inference.heatmap import HeatMap, colours, top_patches
from medseq.inference.run_folder import write_text

__all__ = ["MOST_FEATURES", "RegionReader", "contact_sheet", "over_thumbnail", "patch_features", "write_geojson"]

# Viewers slow down beyond this; the patches with the highest values are kept.
MOST_FEATURES = 20_000
_TILE = 128


class RegionReader(Protocol):
    """The part of a slide that pictures need."""

    def region(self, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray: ...


def patch_features(
    values: np.ndarray, percentile: np.ndarray, coords: np.ndarray, patch_size: int, name: str = "attention"
) -> dict[str, Any]:
    """A GeoJSON feature collection of square patches, the highest values first.

    Args:
        values: ``(n,)`` as the model gave them.
        percentile: ``(n,)`` of the values over the slide, 0 to 1.
        coords: ``(n, 2)`` top-left corners (x, y) in level-0 pixels.
        patch_size: Side of a patch in level-0 pixels.
        name: What the values are.

    Reference:
        RFC 7946; `objectType`, `classification` and `measurements` are the words that QuPath reads.
    """
    features = []
    for index in top_patches(values, MOST_FEATURES):
        x, y = (int(v) for v in coords[index])
        ring = [[x, y], [x + patch_size, y], [x + patch_size, y + patch_size], [x, y + patch_size], [x, y]]
        red, green, blue = (int(v) for v in colours(percentile[index : index + 1])[0])
        features.append(
            {
                "type": "Feature",
                "id": int(index),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "tile",
                    "classification": {"name": name, "color": [red, green, blue]},
                    "measurements": {name: float(values[index]), f"{name} percentile": float(percentile[index])},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def write_geojson(path: Path, collection: dict[str, Any]) -> Path:
    """Write a feature collection in one step."""
    write_text(path, json.dumps(collection, allow_nan=False, separators=(",", ":")))
    return path


def over_thumbnail(heat: HeatMap, thumbnail: np.ndarray | None, opacity: float = 0.5, side: int = 1024) -> np.ndarray:
    """The map over a picture of the slide, ``(row, col, 3)`` uint8; over white where there is none.

    Args:
        heat: The map.
        thumbnail: The whole slide at any size, ``(row, col, 3)`` uint8.
        opacity: Of the map, where there are patches.
        side: Longest side of the result.

    Raises:
        FormatError: The thumbnail is no picture of this slide: its shape is another.
    """
    width, height = heat.dims
    shrink = min(1.0, side / max(width, height))
    rows, cols = max(1, round(height * shrink)), max(1, round(width * shrink))
    if thumbnail is not None:
        wide = thumbnail.shape[1] / thumbnail.shape[0] * height / width
        if not 0.95 < wide < 1.05 and min(thumbnail.shape[:2]) > 40:
            raise FormatError("the thumbnail has another shape than the slide", found=thumbnail.shape[:2])
    nearest = heat.values[_places(rows, heat.values.shape[0], height / heat.scale)][
        :, _places(cols, heat.values.shape[1], width / heat.scale)
    ]
    below = np.full((rows, cols, 3), 255, np.uint8) if thumbnail is None else _resized(thumbnail, rows, cols)
    alpha = np.where(np.isnan(nearest), 0.0, opacity)[..., None]
    return np.round(alpha * colours(nearest) + (1 - alpha) * below).astype(np.uint8)


def contact_sheet(
    slide: RegionReader, values: np.ndarray, coords: np.ndarray, patch_size: int, k: int = 12, columns: int = 6
) -> np.ndarray:
    """The `k` patches with the highest values, highest first, row by row; ``(row, col, 3)`` uint8."""
    chosen = top_patches(values, k)
    rows = -(-len(chosen) // columns)
    sheet = np.full((rows * (_TILE + 4), columns * (_TILE + 4), 3), 255, np.uint8)
    for place, index in enumerate(chosen):
        x, y = (int(v) for v in coords[index])
        tile = _resized(slide.region(x, y, 0, patch_size, patch_size), _TILE, _TILE)
        top, left = (place // columns) * (_TILE + 4), (place % columns) * (_TILE + 4)
        sheet[top : top + _TILE, left : left + _TILE] = tile
    return sheet


def _places(count: int, available: int, extent: float) -> np.ndarray:
    """Which of `available` pixels, `extent` of which are filled, each of `count` shows."""
    return np.minimum(((np.arange(count) + 0.5) * extent / count).astype(int), available - 1)


def _resized(image: np.ndarray, rows: int, cols: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((cols, rows), Image.Resampling.BOX))
