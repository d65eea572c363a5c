"""Slides for the screen: tiles are the slide's own pixels, attention lies where it belongs, and a slide may be gone."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from medseq.errors import FormatError, InputError
from medseq.inference.heatmap import percentiles
from medseq.inference.heatmap_files import patch_features, write_geojson
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_run import find_runs
from medseq.inference.review_runs import Runs
from medseq.inference.review_slide import open_slide_view
from medseq.io.attention_h5 import read_attention, write_attention
from medseq.io.slide_deepzoom import DeepZoom
from medseq.io.slide_file import SlideFile
from medseq.io.slide_open import open_slide
from tests.inference.made_review import KEY, add_item, begin_run
from tests.io.slide_synthetic import reduced, smooth, write_svs

PATCH = 64


@pytest.fixture
def image(rng):
    return smooth(rng, 700, 900)


def mosaic(zoom, level):
    """All tiles of a level put together, overlaps cut off."""
    width, height = zoom.size(level)
    out = np.zeros((height, width, 3), np.uint8)
    cols, rows = zoom.tiles(level)
    for col in range(cols):
        for row in range(rows):
            tile = zoom.tile(level, col, row)
            left, top = (zoom.overlap if place else 0 for place in (col, row))
            x, y = col * zoom.tile_size, row * zoom.tile_size
            part = tile[top : top + zoom.tile_size, left : left + zoom.tile_size]
            out[y : y + part.shape[0], x : x + part.shape[1]] = part
    return out


def test_tiles_together_are_the_slide(tmp_path, image):
    with open_slide(write_svs(tmp_path / "a.svs", image)) as slide:
        zoom = DeepZoom(slide, tile_size=254)
        assert zoom.last == 10
        assert zoom.size(10) == (900, 700)
        assert zoom.size(9) == (450, 350)
        assert zoom.size(0) == (1, 1)
        whole = mosaic(zoom, 10)
        assert np.array_equal(whole, slide.region(0, 0, 0, 900, 700))
        # Half as large: within what another filter than the box makes of smooth colours.
        assert np.abs(mosaic(zoom, 9).astype(int) - reduced(whole, 2).astype(int)).mean() < 2
        small = zoom.tile(6, 0, 0)
        assert small.shape == (44, 57, 3)


def test_neighbouring_tiles_share_their_overlap(tmp_path, image):
    with open_slide(write_svs(tmp_path / "a.svs", image)) as slide:
        zoom = DeepZoom(slide, tile_size=200, overlap=2)
        left, right = zoom.tile(10, 0, 1), zoom.tile(10, 1, 1)
        assert left.shape[1] == 202
        assert right.shape[1] == 204
        assert np.array_equal(left[:, -4:], right[:, :4])
        descriptor = ElementTree.fromstring(zoom.descriptor())
        assert descriptor.attrib == {"TileSize": "200", "Overlap": "2", "Format": "jpeg"}
        assert descriptor[0].attrib == {"Width": "900", "Height": "700"}


def test_tiles_that_are_none_are_refused(tmp_path, image):
    with open_slide(write_svs(tmp_path / "a.svs", image)) as slide:
        zoom = DeepZoom(slide)
        for level, col, row in ((10, 4, 0), (10, 0, 3), (10, -1, 0), (11, 0, 0), (-1, 0, 0)):
            with pytest.raises(InputError, match="no such (tile|level)"):
                zoom.tile(level, col, row)


class Enormous(SlideFile):
    """A slide of 100 000 x 80 000 pixels that no file holds: colours tell the place."""

    def __init__(self, path, dims):
        super().__init__(path)
        self.dims, self.levels, self.format, self.objective_power = dims, len(dims), "made up", 40.0
        self._set_mpp((0.25, 0.25), None)
        self.pixels = self.largest = 0

    def _read(self, x0, y0, level, width, height):
        self.pixels, self.largest = self.pixels + width * height, max(self.largest, width * height)
        down = self.downsamples[level]
        x = (x0 + (np.arange(width) + 0.5) * down) / self.dims[0][0]
        y = (y0 + (np.arange(height) + 0.5) * down) / self.dims[0][1]
        out = np.zeros((height, width, 3), np.uint8)
        out[..., 0], out[..., 1] = (255 * np.clip(x, 0, 1))[None], (255 * np.clip(y, 0, 1))[:, None]
        return out

    def close(self):
        pass


def test_an_enormous_slide_is_read_a_tile_at_a_time(tmp_path, rng):
    dims = tuple((100_000 // 4**n, 80_000 // 4**n) for n in range(5))
    slide = Enormous(tmp_path / "x", dims)
    zoom = DeepZoom(slide)
    assert zoom.last == 17
    for level in range(zoom.last + 1):
        cols, rows = zoom.tiles(level)
        col, row = int(rng.integers(0, cols)), int(rng.integers(0, rows))
        before = slide.pixels
        tile = zoom.tile(level, col, row)
        # From a level at most four times as fine, with margins: never a large part of the slide.
        assert slide.pixels - before < 40 * 256 * 256
        width, height = zoom.size(level)
        x = (max(0, col * 254 - (col > 0)) + tile.shape[1] / 2) / width
        y = (max(0, row * 254 - (row > 0)) + tile.shape[0] / 2) / height
        middle = tile[tile.shape[0] // 2, tile.shape[1] // 2].astype(int)
        assert np.abs(middle[:2] - (255 * x, 255 * y)).max() < 3 + 255 / min(width, height)


def test_a_large_flat_file_shows_its_overview_far_out(tmp_path):
    slide = Enormous(tmp_path / "x", ((9_000, 7_000),))
    zoom = DeepZoom(slide)
    tile = zoom.tile(7, 0, 0)
    assert tile.shape == (55, 71, 3)
    assert np.abs(tile[27, 35, :2].astype(int) - 127).max() < 6
    assert slide.largest < 1 << 26
    read = slide.pixels
    zoom.tile(6, 0, 0)
    # The overview is made once.
    assert slide.pixels == read


# --- an item of a run


@pytest.fixture
def run(tmp_path, rng, image):
    """A slide with attention, as the run leaves it; returns the folder and what was written."""
    out, root = tmp_path / "out" / "wsi", tmp_path / "input" / "wsi"
    root.mkdir(parents=True)
    path = write_svs(root / "Plantedname.svs", image)
    item_id = "c" * 16
    (out / item_id).mkdir(parents=True)
    coords = np.array([(x, y) for y in range(0, 640, PATCH) for x in range(0, 832, PATCH)])
    values = rng.random(len(coords)).astype(np.float32)
    share = percentiles(values)
    attention = write_attention(
        out / item_id / "attention.h5", {"attention": values, "attention_percentile": share}, coords, {"model": "m"}
    )
    geojson = write_geojson(out / item_id / "overlay.geojson", patch_features(values, share, coords, PATCH))
    scores = out / item_id / "scores.json"
    scores.write_text('{"classes": ["a", "b"], "probabilities": [0.25, 0.75], "call": "b"}')
    with begin_run(out, name="mil", task="mil", modality=(), mpp=None) as ledger:
        outputs = [("attention", attention), ("overlay", geojson), ("scores", scores)]
        add_item(ledger, item_id, kind="slide", root=root, inputs=[path], outputs=outputs)
    return out, path, coords, values


def opened(out):
    runs = Runs(find_runs([out]), KEY)
    cache = ByteCache(1 << 26, lambda value: len(value) if isinstance(value, bytes) else value.nbytes)
    return open_slide_view(runs, runs.page()[0][0].token, cache)


def test_a_view_tells_what_a_viewer_needs(run):
    out, _, coords, values = run
    view = opened(out)
    info = view.info(top=5)
    assert (info["slide"]["width"], info["slide"]["height"]) == (900, 700)
    assert info["slide"]["mpp"] == [0.5, 0.5]
    assert info["scores"]["probabilities"] == [0.25, 0.75]
    assert info["patch_size"] == PATCH
    assert "Plantedname" not in str(info)
    # Highest first, with their corners: a click jumps there.
    order = np.argsort(-values)[:5]
    assert [patch["index"] for patch in info["top"]] == order.tolist()
    assert [(patch["x"], patch["y"]) for patch in info["top"]] == [tuple(map(int, coords[i])) for i in order]
    view.close()


def test_attention_lies_over_its_patches_and_obeys_threshold_and_opacity(run):
    out, _, coords, values = run
    view = opened(out)
    share = percentiles(values)
    info = view.info()["overlay"]
    for threshold in (0.0, 0.7):
        picture = np.asarray(Image.open(io.BytesIO(view.overlay("attention", threshold, 0.5))))
        assert picture.shape == (info["rows"], info["cols"], 4)
        scale = info["width"] / info["cols"]
        for (x, y), percentile in zip(coords, share, strict=True):
            alpha = picture[int((y + PATCH / 2) / scale), int((x + PATCH / 2) / scale), 3]
            assert alpha == (128 if percentile >= threshold else 0)
        # Beside the patches there is nothing.
        assert picture[:, int(870 / scale), 3].max() == 0
    for threshold, opacity in ((-0.1, 1), (1.1, 1), (0.5, 2)):
        with pytest.raises(InputError, match="are shares"):
            view.overlay("attention", threshold, opacity)
    with pytest.raises(InputError, match="no such numbers"):
        view.overlay("../scores")
    view.close()


def test_patches_thumbnail_tiles_and_quality(run, image):
    out, _, coords, _ = run
    view = opened(out)
    patch = np.asarray(Image.open(io.BytesIO(view.patch(7, 64))))
    x, y = coords[7]
    # JPEG twice over.
    assert np.abs(patch.astype(int) - image[y : y + PATCH, x : x + PATCH].astype(int)).mean() < 12
    assert Image.open(io.BytesIO(view.thumbnail(300))).size == (300, 233)
    assert Image.open(io.BytesIO(view.tile(10, 0, 0))).size == (255, 255)
    picture, numbers = view.quality()
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    assert 0 <= numbers["tissue_share"] <= 1
    for index in (-1, len(coords)):
        with pytest.raises(InputError, match="no such patch"):
            view.patch(index)
    with pytest.raises(InputError, match="no such picture"):
        view.stored("overlay")
    view.close()


def test_a_slide_that_is_gone_is_said_and_the_scores_stay(run):
    out, path, _, _ = run
    path.unlink()
    view = opened(out)
    info = view.info()
    assert info["slide"] is None
    assert "not at hand" in info["missing"]
    assert "Plantedname" not in str(info)
    assert info["scores"]["call"] == "b"
    assert len(info["top"]) == 12
    assert Image.open(io.BytesIO(view.overlay("attention"))).mode == "RGBA"
    for ask in (lambda: view.tile(0, 0, 0), lambda: view.patch(0), view.thumbnail, view.quality):
        with pytest.raises(InputError, match="the slide is not at hand"):
            ask()


def test_a_slide_that_was_changed_is_not_shown_as_the_one_that_was_scored(run, image):
    out, path, _, _ = run
    path.write_bytes(path.read_bytes() + b"x")
    assert "changed since the run" in opened(out).info()["missing"]


def test_scores_or_attention_that_are_broken_do_not_hide_the_slide(run):
    out, _, _, _ = run
    (out / ("c" * 16) / "scores.json").write_text("{")
    view = opened(out)
    assert view.info()["scores"] == {}
    assert view.info()["slide"]["width"] == 900
    view.close()


def test_attention_is_read_back_and_damage_is_an_error(tmp_path, rng):
    values, coords = rng.random(9).astype(np.float32), rng.integers(0, 99, (9, 2))
    path = write_attention(tmp_path / "a.h5", {"attention": values}, coords, {"model": "m"})
    found = read_attention(path)
    assert np.array_equal(found.values["attention"], values)
    assert np.array_equal(found.coords, coords)
    assert found.attributes == {"model": "m"}
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FormatError, match="cannot be read"):
        read_attention(path)
    import h5py

    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["attention"] = values
        file["coords"] = coords[:3]
    with pytest.raises(FormatError, match="not the attention of a slide"):
        read_attention(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["attention"] = h5py.ExternalLink(str(path), "attention")
    # A link that leads to another file is not followed.
    with pytest.raises(FormatError, match="not the attention"):
        read_attention(tmp_path / "c.h5")
