"""Tiles lie where they should and have exactly the resolution that was asked for."""

import tracemalloc

import numpy as np
import pytest

from medseq.errors import FormatError, InputError
from medseq.io.slide_open import open_slide
from medseq.io.slide_resample import best_level, read_scaled
from medseq.io.tiles import read_tiles, tile_grid
from medseq.io.tissue import Overview, Tissue, find_tissue, read_overview
from tests.io.slide_synthetic import break_tile, ellipse, real_svs, smooth, stained, write_svs, write_tiff


def tissue_of(mask, scale):
    picture = np.zeros((*mask.shape, 3), np.uint8)
    nothing = np.zeros_like(mask)
    return Tissue(mask, nothing, nothing, 20.0, Overview(picture, (scale, scale), (8.0, 8.0)))


@pytest.mark.parametrize("mpp", [0.5, 0.503, 0.7, 1.0, 1.37, 2.0, 3.1])
@pytest.mark.parametrize("factors", [(), (2, 4)], ids=["flat", "pyramid"])
@pytest.mark.parametrize("axis", [0, 1], ids=["row", "col"])
def test_a_tile_shows_exactly_its_part_of_the_slide(tmp_path, mpp, factors, axis):
    # Native 0.5 um/px. The oracle: any symmetric resampling keeps a ramp, its values stand at the pixels' centres.
    slope, side = 0.41, 608
    centres = slope * (np.arange(side) + 0.5)
    rising = np.stack([centres, 255 - centres, np.zeros(side)], axis=-1)
    image = np.rint(np.broadcast_to(np.expand_dims(rising, 1 - axis), (side, side, 3))).astype(np.uint8)
    with open_slide(write_tiff(tmp_path / "a.tif", image, factors=factors)) as slide:
        grid = tile_grid(slide, mpp=mpp, size=48, overlap=0.5)
        whole = [index for index, corner in enumerate(grid.coords) if corner.max() + 48 * mpp / 0.5 < side - 4]
        assert len(whole) >= 4
        for index in whole[:: max(len(whole) // 6, 1)]:
            pixels = next(read_tiles(slide, grid, index)).pixels[4:-4, 4:-4].astype(np.float64)
            corner = grid.coords[index][1 - axis]
            wanted = slope * (corner + (np.arange(4, 44) + 0.5) * (mpp / 0.5))
            wanted = np.expand_dims(wanted, 1 - axis)
            up, down = pixels[..., 0] - wanted, pixels[..., 1] - (255 - wanted)
            # Rounding of the stored ramp, of the levels and of the result: 0.5 each at most.
            assert max(np.abs(up).max(), np.abs(down).max()) < 1.6
            # Rounding halves up moves both the same way, a wrong place moves them apart: right to a quarter pixel.
            assert abs((up - down).mean() / 2 / slope) < 0.25


def test_levels_are_chosen_as_coarse_as_the_resolution_allows(tmp_path, rng):
    path = write_svs(tmp_path / "a.svs", smooth(rng, 1030, 1030), mpp=0.25, factors=(4, 16))
    with open_slide(path) as slide:
        wanted = {0.5: 0, 1: 0, 3.9: 0, 3.99: 1, 4: 1, 15: 1, 16: 2, 100: 2}
        assert {scale: best_level(slide, scale) for scale in wanted} == wanted


def test_tiles_at_the_native_resolution_are_the_stored_pixels(tmp_path, rng):
    image = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    with open_slide(write_tiff(tmp_path / "a.tif", image)) as slide:
        grid = tile_grid(slide, mpp=0.5, size=128)
        assert grid.coords.tolist() == [[x, y] for y in (0, 128, 256, 384) for x in (0, 128, 256, 384)]
        for tile in read_tiles(slide, grid):
            x, y = grid.coords[tile.index]
            wanted = np.full((128, 128, 3), 255, np.uint8)
            part = image[y : y + 128, x : x + 128]
            wanted[: part.shape[0], : part.shape[1]] = part
            np.testing.assert_array_equal(tile.pixels, wanted)


@pytest.mark.parametrize("mpp", [0.4987, 0.2521, 0.5])
def test_coordinates_divide_by_the_step_over_a_whole_slide(tmp_path, rng, mpp):
    # With a step of 256.67 pixels rounded tile by tile, two tiles of a wide slide would fall into one cell.
    class Wide:
        dims = ((150_000, 3000),)
        label = "wide"

        def require_mpp(self):
            return mpp, mpp

    grid = tile_grid(Wide(), mpp=0.5, size=256)
    cells = np.rint((grid.coords - grid.coords.min(axis=0)) / grid.patch_size_level0).astype(int)
    assert len(np.unique(cells, axis=0)) == len(grid)
    assert grid.coords.dtype == np.int64
    order = np.lexsort((grid.coords[:, 0], grid.coords[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(grid)))
    assert abs(grid.step_level0 - 256 * 0.5 / mpp) <= 0.5


def test_overlapping_tiles(tmp_path, rng):
    with open_slide(write_tiff(tmp_path / "a.tif", smooth(rng, 256, 256))) as slide:
        grid = tile_grid(slide, mpp=0.5, size=64, overlap=0.75)
        assert (grid.patch_size_level0, grid.step_level0, len(grid)) == (64, 16, 256)
        first, second = (next(read_tiles(slide, grid, index)).pixels for index in (0, 1))
        np.testing.assert_array_equal(first[:, 16:], second[:, :-16])


def test_the_share_of_tissue_is_counted_right(tmp_path, rng):
    mask = rng.random((40, 50)) < 0.4
    tissue = tissue_of(mask, 16.0)
    with open_slide(write_tiff(tmp_path / "a.tif", np.full((640, 800, 3), 255, np.uint8))) as slide:
        every = tile_grid(slide, tissue, mpp=0.5, size=128, min_tissue=1e-9)
        for (x, y), share in zip(every.coords, every.tissue_share, strict=True):
            cells = np.zeros((8, 8))
            part = mask[y // 16 : y // 16 + 8, x // 16 : x // 16 + 8]
            cells[: part.shape[0], : part.shape[1]] = part
            assert share == pytest.approx(cells.mean(), abs=1e-6)
        some = tile_grid(slide, tissue, mpp=0.5, size=128, min_tissue=0.4)
        keep = every.tissue_share >= 0.4
        np.testing.assert_array_equal(some.coords, every.coords[keep])
        assert 0 < len(some) < len(every)


def test_tiles_lie_on_the_tissue(tmp_path, rng):
    mask = ellipse(1500, 1800, 700, 800, 500, 400)
    with open_slide(write_tiff(tmp_path / "a.tif", stained(rng, mask), factors=(4,))) as slide:
        grid = tile_grid(slide, find_tissue(read_overview(slide)), mpp=0.5, size=128, min_tissue=0.5)
    truth = {
        (x, y)
        for y in range(0, 1500, 128)
        for x in range(0, 1800, 128)
        if mask[y : y + 128, x : x + 128].sum() / 128**2 >= 0.5
    }
    found = {(int(x), int(y)) for x, y in grid.coords}
    # Those within an overview's pixel of the limit may fall on either side.
    assert len(truth ^ found) <= 0.1 * len(truth)


def test_a_slide_scanned_too_coarsely_is_refused_and_a_little_is_not(tmp_path, rng):
    path = write_tiff(tmp_path / "a.tif", smooth(rng, 300, 300), 0.54)
    with open_slide(path) as slide:
        assert next(read_tiles(slide, tile_grid(slide, mpp=0.5, size=64))).pixels.shape == (64, 64, 3)
        with pytest.raises(InputError, match=r"too coarsely \(found 0.54 um/px, wanted 0.4 um/px .*--mpp-target 0.54"):
            tile_grid(slide, mpp=0.4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mpp": 0}, "mpp out of range"),
        ({"size": 2}, "tile size out of range"),
        ({"overlap": 1.0}, "overlap out of range"),
        ({"overlap": -0.1}, "overlap out of range"),
        ({"min_tissue": 0}, "least share of tissue out of range"),
        ({"min_tissue": 1.5}, "least share of tissue out of range"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, rng, words, message):
    with open_slide(write_tiff(tmp_path / "a.tif", smooth(rng, 64, 64))) as slide:
        with pytest.raises(InputError, match=message):
            tile_grid(slide, **words)


def test_a_broken_tile_comes_with_its_error_and_the_stream_goes_on(tmp_path, rng):
    image = smooth(rng, 512, 768)
    path = write_tiff(tmp_path / "a.tif", image, tile=(256, 256), compression="jpeg")
    break_tile(path, 4)
    with open_slide(path) as slide:
        tiles = list(read_tiles(slide, tile_grid(slide, mpp=0.5, size=128)))
        assert [tile.index for tile in tiles] == list(range(24))
        bad = [tile for tile in tiles if tile.pixels is None]
        assert {tile.index for tile in bad} == {14, 15, 20, 21}
        assert all(isinstance(tile.error, FormatError) for tile in bad)


def test_streaming_holds_one_tile_at_a_time(tmp_path, rng):
    path = write_tiff(tmp_path / "a.tif", smooth(rng, 2048, 2048), tile=(256, 256), compression="jpeg")
    with open_slide(path) as slide:
        grid = tile_grid(slide, mpp=0.5, size=256)
        next(read_tiles(slide, grid))
        tracemalloc.start()
        count = sum(tile.pixels is not None for tile in read_tiles(slide, grid))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == len(grid) == 64
    # The image is 13 MB and fits the reader's cache of decoded pieces (64 MB); tiles of 0.2 MB add little to it.
    assert peak < 18e6


def test_a_part_too_large_for_memory_is_refused(tmp_path):
    class Flat:
        dims = ((100_000, 100_000),)
        levels = 1

        def region(self, *where):
            raise AssertionError("nothing may be read")

    with pytest.raises(InputError, match="too large a part of a slide"):
        read_scaled(Flat(), 0, 0, (64.0, 64.0), 1000, 1000)


def test_tiles_of_the_real_slide_fit_together():
    with open_slide(real_svs()) as slide:
        grid = tile_grid(slide, mpp=0.499, size=256)
        assert (grid.patch_size_level0, len(grid)) == (256, 9 * 12)
        left, right = (next(read_tiles(slide, grid, index)).pixels for index in (40, 41))
        np.testing.assert_array_equal(
            np.hstack([left, right]), slide.region(*(int(v) for v in grid.coords[40]), 0, 512, 256)
        )
