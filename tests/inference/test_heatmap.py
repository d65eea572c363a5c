"""Heat maps: a patch is where it is, in every file."""

import json

import numpy as np
import pytest

from medseq.errors import InputError, ShapeError
from medseq.inference.heatmap import colours, heat_map, percentiles, top_patches
from medseq.inference.heatmap_files import contact_sheet, over_thumbnail, patch_features, write_geojson
from medseq.io.heatmap_tiff import write_heatmap_tiff

SIZE = 512


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def tissue(rng, cells=(30, 40), share=0.6):
    """A slide with holes: coordinates, one planted hot patch, values."""
    places = np.argwhere(rng.random(cells) < share)[:, ::-1]
    coords = (places * SIZE + np.array([700, 300])).astype(np.int64)
    values = rng.random(len(coords)) * 0.1
    hot = int(rng.integers(len(coords)))
    values[hot] = 1.0
    return coords, values, hot


class Painted:
    """A slide whose patches are told by their colour."""

    def region(self, x0, y0, level, width, height):
        assert level == 0
        tile = np.empty((height, width, 3), np.uint8)
        tile[:] = (x0 // SIZE, y0 // SIZE, 7)
        return tile


def test_percentiles_rank_and_share_ties():
    assert np.allclose(percentiles(np.array([3.0, 1.0, 2.0, 2.0])), [0.875, 0.125, 0.5, 0.5])
    assert np.allclose(percentiles(np.full(5, 0.2)), 0.5)
    assert percentiles(np.zeros(0)).shape == (0,)


def test_a_planted_patch_is_found_again_in_the_tiff_by_openslide(rng, tmp_path):
    import openslide

    coords, values, hot = tissue(rng)
    heat = heat_map(percentiles(values), coords, SIZE, dims=(24_000, 18_000), mpp=0.25)
    shown = np.where(np.isnan(heat.values), np.nan, heat.values >= np.nanmax(heat.values))
    path = write_heatmap_tiff(tmp_path / "heat.ome.tiff", colours(shown), 0.25 * heat.scale)
    with openslide.OpenSlide(path) as slide:
        across = 24_000 / slide.dimensions[0]
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25 * across, rel=0.01)
        image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    rows, cols = np.nonzero((image == colours(np.ones(1))[0]).all(-1))
    # A pixel of the map is an eighth of a patch.
    assert abs(cols.min() * across - coords[hot, 0]) <= SIZE / 8
    assert abs(rows.min() * across - coords[hot, 1]) <= SIZE / 8
    assert cols.max() - cols.min() + 1 == pytest.approx(8, abs=1)


def test_the_tiff_is_a_pyramid_whose_levels_show_the_same(rng, tmp_path):
    import tifffile

    rgb = rng.integers(0, 255, (700, 901, 3), dtype=np.uint8)
    rgb[:350] = 200
    path = write_heatmap_tiff(tmp_path / "p.ome.tiff", rgb, None)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        levels = file.series[0].levels
        assert [level.shape[:2] for level in levels] == [(700, 901), (350, 451), (175, 226)]
        assert np.array_equal(levels[0].asarray(), rgb)
        assert (levels[2].asarray()[:80] == 200).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.ome.tiff"]
    with pytest.raises(ShapeError, match="not a picture"):
        write_heatmap_tiff(path, rgb[..., 0], None)


# RFC 7946, as far as patches go.
SCHEMA = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "geometry", "properties"],
                "properties": {
                    "type": {"const": "Feature"},
                    "geometry": {
                        "type": "object",
                        "required": ["type", "coordinates"],
                        "properties": {
                            "type": {"const": "Polygon"},
                            "coordinates": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "array",
                                    "minItems": 4,
                                    "items": {
                                        "type": "array",
                                        "minItems": 2,
                                        "maxItems": 2,
                                        "items": {"type": "number"},
                                    },
                                },
                            },
                        },
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification", "measurements"],
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "tile"]},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {
                                    "color": {
                                        "type": "array",
                                        "minItems": 3,
                                        "maxItems": 3,
                                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                                    }
                                },
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}


def test_geojson_holds_the_patches_themselves(rng, tmp_path):
    import jsonschema

    coords, values, hot = tissue(rng)
    path = write_geojson(tmp_path / "heat.geojson", patch_features(values, percentiles(values), coords, SIZE))
    collection = json.loads(path.read_text())
    jsonschema.validate(collection, SCHEMA)
    assert len(collection["features"]) == len(coords)
    first = collection["features"][0]
    ring = np.array(first["geometry"]["coordinates"][0])
    assert ring[0].tolist() == ring[-1].tolist() == coords[hot].tolist()
    assert (ring.max(0) - ring.min(0)).tolist() == [SIZE, SIZE]
    assert first["properties"]["measurements"] == {
        "attention": 1.0,
        "attention percentile": pytest.approx(1, abs=1 / len(coords)),
    }


def test_geojson_keeps_the_highest_where_a_viewer_could_not_show_all(rng, monkeypatch):
    monkeypatch.setattr("medseq.inference.heatmap_files.MOST_FEATURES", 5)
    coords, values, hot = tissue(rng)
    features = patch_features(values, percentiles(values), coords, SIZE)["features"]
    assert [feature["id"] for feature in features] == np.argsort(-values, kind="stable")[:5].tolist()


def test_overlapping_patches_are_averaged_and_holes_stay_empty():
    coords = np.array([[0, 0], [256, 0], [2048, 0]])
    heat = heat_map(np.array([0.0, 1.0, 0.5]), coords, 512)
    assert heat.scale == 64
    assert np.allclose(heat.values[0, [0, 3]], 0)
    assert np.allclose(heat.values[0, 4:8], 0.5)
    assert np.allclose(heat.values[0, 8:12], 1)
    assert np.isnan(heat.values[0, 12:32]).all()


def test_very_large_slides_get_a_coarser_map():
    coords = np.array([[0, 0], [99_000, 99_500]])
    heat = heat_map(np.array([0.2, 0.9]), coords, 256, dims=(100_000, 100_000))
    assert max(heat.values.shape) <= 8192
    row, col = np.argwhere(heat.values > 0.5)[0]
    assert abs(col * heat.scale - 99_000) <= 256
    assert abs(row * heat.scale - 99_500) <= 256


@pytest.mark.parametrize(
    ("coords", "dims", "message"),
    [([[0, 0], [5000, 0]], (4000, 4000), "outside its slide"), ([[-1, 0], [0, 0]], None, "outside its slide")],
)
def test_patches_of_another_slide_are_refused(coords, dims, message):
    with pytest.raises(InputError, match=message):
        heat_map(np.zeros(2), np.array(coords), 256, dims)


def test_no_patches_no_map():
    with pytest.raises(InputError, match="needs patches"):
        heat_map(np.zeros(0), np.zeros((0, 2), int), 256)


def test_the_map_lies_on_its_thumbnail(rng):
    coords, values, hot = tissue(rng)
    dims = (22_000, 17_000)
    heat = heat_map(percentiles(values), coords, SIZE, dims)
    grey = np.full((170, 220, 3), 90, np.uint8)
    picture = over_thumbnail(heat, grey, opacity=1.0, side=1100)
    assert picture.shape == (850, 1100, 3)
    x, y = (coords[hot] + SIZE / 2) / 20
    assert (picture[int(y), int(x)] == colours(np.array([percentiles(values)[hot]]))[0]).all()
    assert (picture[2, 2] == 90).all()


def test_the_sheet_shows_the_highest_first(rng):
    coords, values, hot = tissue(rng)
    sheet = contact_sheet(Painted(), values, coords, SIZE, k=8, columns=4)
    assert sheet.shape == (2 * 132, 4 * 132, 3)
    order = top_patches(values, 8)
    assert order[0] == hot
    for place, index in enumerate(order):
        centre = sheet[(place // 4) * 132 + 64, (place % 4) * 132 + 64]
        assert centre.tolist() == [coords[index, 0] // SIZE, coords[index, 1] // SIZE, 7]
