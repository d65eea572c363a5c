"""Tissue is found where it was put, on slides of any layout, and on nothing else."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medseq.errors import FormatError, InputError
from medseq.io.slide_open import open_slide
from medseq.io.tiles import tile_grid
from medseq.io.tissue import Overview, TissueRules, find_tissue, read_overview
from medseq.io.tissue_qc import BLURRED, focus_score, qc_picture, require_tissue, tissue_qc, write_png
from tests.io.slide_synthetic import GLASS, break_tile, ellipse, real_svs, stained, write_svs, write_tiff

MPP = 8.0


def overview(image, mpp=MPP):
    return Overview(image, (mpp / 0.5, mpp / 0.5), (mpp, mpp))


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def glass(rng, rows, cols):
    return np.clip(rng.normal(GLASS, 3, (rows, cols, 3)), 0, 255).astype(np.uint8)


def test_an_ellipse_is_found_with_its_area(rng):
    mask = ellipse(300, 260, 140, 120, 70, 90)
    tissue = find_tissue(overview(stained(rng, mask)))
    assert overlap(tissue.mask, mask) > 0.97
    # Ellipse of 560 x 720 um half-axes.
    assert tissue.area_mm2 == pytest.approx(np.pi * 0.56 * 0.72, rel=0.02)
    assert not tissue.pen.any()


@pytest.mark.parametrize("level", [255, 245, 128, 5])
def test_an_empty_slide_has_no_tissue_whatever_the_noise(rng, level):
    # Otsu finds two classes in anything.
    image = np.clip(level + rng.normal(0, 3, (200, 200, 3)), 0, 255).astype(np.uint8)
    tissue = find_tissue(overview(image))
    assert tissue.area_mm2 == 0


def test_a_slide_full_of_tissue_is_all_tissue(rng):
    tissue = find_tissue(overview(stained(rng, np.ones((200, 200), bool))))
    assert tissue.mask.mean() > 0.99


def test_dust_goes_and_small_holes_are_filled(rng):
    mask = ellipse(300, 300, 150, 150, 110, 110)
    # 10 x 10 pixels of 64 um2 are 0.0064 mm2; 40 x 40 are 0.1 mm2.
    mask[150:160, 150:160] = False
    mask[100:140, 120:160] = False
    mask[5:15, 5:15] = True
    image = stained(rng, mask)
    default = find_tissue(overview(image)).mask
    assert default[152:158, 152:158].all()
    assert not default[105:135, 125:155].any()
    assert not default[:20, :20].any()
    loose = find_tissue(overview(image), TissueRules(min_tissue_mm2=0.001, min_hole_mm2=0.001)).mask
    assert loose[7:13, 7:13].all()
    assert not loose[152:158, 152:158].any()


@pytest.mark.parametrize(
    ("name", "colour"), [("green", (30, 140, 60)), ("blue", (40, 90, 200)), ("black", (25, 25, 28))]
)
def test_ink_is_told_apart_from_tissue(rng, name, colour):
    mask = ellipse(300, 300, 150, 180, 80, 70)
    image = stained(rng, mask)
    pen = np.zeros_like(mask)
    pen[20:280, 60:72] = True
    image[pen] = np.clip(np.array(colour) + rng.normal(0, 4, (pen.sum(), 3)), 0, 255)
    tissue = find_tissue(overview(image))
    assert overlap(tissue.pen, pen) > 0.9
    assert not (tissue.mask & pen).any()
    assert overlap(tissue.mask, mask & ~pen) > 0.95
    with_qc = tissue.pen.mean()
    assert with_qc == pytest.approx(pen.mean(), rel=0.1)


def test_haematoxylin_eosin_and_dab_are_not_ink(rng):
    for colour in ((90, 50, 140), (70, 55, 120), (225, 120, 160), (150, 95, 50), (60, 40, 100)):
        image = glass(rng, 120, 120)
        image[30:90, 30:90] = colour
        tissue = find_tissue(overview(image))
        assert tissue.pen.sum() == 0, colour
        assert tissue.mask[35:85, 35:85].all(), colour


def test_folds_are_told_and_kept(rng):
    mask = ellipse(300, 300, 150, 150, 90, 90)
    image = stained(rng, mask).astype(np.float32)
    fold = np.zeros_like(mask)
    fold[100:200, 140:150] = True
    # Twice the tissue: the square of its transmission.
    image[fold] = 255 * (np.minimum(image[fold], (140, 60, 130)) / 255) ** 2
    tissue = find_tissue(overview(image.astype(np.uint8)))
    assert tissue.mask[fold].all()
    assert overlap(tissue.fold & fold, fold) > 0.8
    assert tissue.fold[mask & ~fold].mean() < 0.02


def test_the_overview_of_a_pyramid_and_of_a_flat_file_show_the_same(tmp_path, rng):
    mask = ellipse(2000, 2600, 900, 1500, 500, 700)
    image = stained(rng, mask)
    flat = write_tiff(tmp_path / "flat.tif", image, tile=None, rowsperstrip=16, compression="zlib")
    pyramid = write_svs(tmp_path / "pyramid.svs", image, factors=(4, 16))
    found = []
    for path in (flat, pyramid):
        with open_slide(path) as slide:
            seen = read_overview(slide)
            assert seen.rgb.shape == (125, 162, 3)
            assert seen.mpp == pytest.approx((8.02, 8.0), abs=0.01)
            found.append(find_tissue(seen))
    for tissue in found:
        assert tissue.area_mm2 == pytest.approx(np.pi * 0.25 * 0.35, rel=0.03)
    assert overlap(found[0].mask, found[1].mask) > 0.96


def test_the_overview_costs_a_block_not_the_slide(tmp_path):
    image = np.full((6000, 8000, 3), 240, np.uint8)
    path = write_tiff(tmp_path / "flat.tif", image, tile=(512, 512), compression="zlib")
    del image
    with open_slide(path) as slide:
        tracemalloc.start()
        read_overview(slide)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A block of 2048 x 2048 and its resampling, and the kept pieces (64 MB); the image is 144 MB.
    assert peak < 110e6


def test_unreadable_parts_are_white_and_too_many_are_an_error(tmp_path, rng):
    image = np.full((2048, 4096, 3), (215, 140, 190), np.uint8)
    path = write_tiff(tmp_path / "a.tif", image, tile=(1024, 1024), compression="jpeg")
    break_tile(path, 0)
    with open_slide(path) as slide:
        with pytest.raises(
            FormatError, match=r"too much of the slide cannot be read \(found 1 of \d parts, wanted at most 5%"
        ):
            read_overview(slide)
        seen = read_overview(slide, TissueRules(max_bad_share=0.6))
    assert 0 < seen.bad_share <= 0.5
    assert (seen.rgb[:60, :60] == 255).all()
    assert (seen.rgb[:, 140:] < 250).any()


def test_a_slide_without_resolution_is_not_measured(tmp_path, rng):
    path = write_tiff(tmp_path / "a.tif", stained(rng, np.ones((300, 300), bool)), None)
    with open_slide(path) as slide, pytest.raises(InputError, match="--mpp"):
        read_overview(slide)
    with open_slide(path, mpp=2.0) as slide:
        assert find_tissue(read_overview(slide)).area_mm2 == pytest.approx(0.36, rel=0.02)


def test_focus_falls_with_blur(rng):
    tile = stained(rng, np.ones((256, 256), bool))
    scores = [focus_score(gaussian_filter(tile, (sd, sd, 0))) for sd in (0, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 10 * BLURRED
    assert scores[-1] < BLURRED
    assert focus_score(np.full((64, 64, 3), 200, np.uint8)) == 0
    # Luma's weights sum to 1: grey of amplitude 10 on a checkerboard has a Laplacian of +-80.
    board = np.repeat((np.indices((32, 32)).sum(axis=0) % 2 * 20 + 100).astype(np.uint8)[..., None], 3, axis=-1)
    assert focus_score(board) == pytest.approx(80**2, rel=1e-4)


def test_the_qc_of_a_slide_is_counted_in_its_own_units(tmp_path, rng):
    mask = ellipse(1600, 1600, 800, 800, 600, 500)
    image = stained(rng, mask)
    image[:800] = gaussian_filter(image[:800], (6, 6, 0))
    path = write_tiff(tmp_path / "a.tif", image, factors=(4,))
    with open_slide(path) as slide:
        qc = tissue_qc(slide, find_tissue(read_overview(slide)))
    assert qc.tissue_mm2 == pytest.approx(np.pi * 0.3 * 0.25, rel=0.03)
    assert qc.tissue_share == pytest.approx(mask.mean(), rel=0.03)
    # The upper half is blurred; tiles on the border between the halves are neither.
    assert 0.3 < qc.blurred_share < 0.7
    assert (qc.focus_mpp, qc.pen_share, qc.unreadable_share) == (0.5, 0, 0)


def test_the_picture_shows_the_outline_on_the_border_of_the_tissue(rng, tmp_path):
    mask = ellipse(300, 260, 140, 120, 70, 90)
    picture = qc_picture(find_tissue(overview(stained(rng, mask))))
    assert max(picture.shape) == 1024
    green = (picture == (0, 150, 0)).all(axis=-1)
    larger = np.asarray(Image.fromarray(mask).resize(green.shape[::-1], Image.Resampling.NEAREST))
    from scipy.ndimage import distance_transform_edt

    distance = np.where(larger, distance_transform_edt(larger), distance_transform_edt(~larger))
    # Two pixels of outline, two pixels of the mask's own error at a factor of 3.4.
    assert distance[green].max() < 12
    assert green.sum() > 2 * np.pi * 70 * 3.4
    write_png(tmp_path / "qc" / "a.png", picture)
    with Image.open(tmp_path / "qc" / "a.png") as image:
        assert image.info == {}
        np.testing.assert_array_equal(np.asarray(image), picture)
    assert [path.name for path in (tmp_path / "qc").iterdir()] == ["a.png"]


def test_no_tissue_and_no_tiles_are_errors_with_a_reason(tmp_path, rng):
    blank = write_tiff(tmp_path / "blank.tif", glass(rng, 600, 600))
    with open_slide(blank) as slide:
        tissue = find_tissue(read_overview(slide))
        with pytest.raises(InputError, match="no tissue was found .*; look at the QC picture"):
            require_tissue(tissue, tile_grid(slide, tissue), slide.label)
        assert tissue_qc(slide, tissue).focus_median is None
    small = np.zeros((1500, 1500), bool)
    small[500:1000, 500:1000] = True
    with open_slide(write_tiff(tmp_path / "small.tif", stained(rng, small))) as slide:
        tissue = find_tissue(read_overview(slide))
        assert tissue.area_mm2 > 0
        with pytest.raises(InputError, match="no tile holds enough tissue .found 0.06"):
            require_tissue(tissue, tile_grid(slide, tissue, size=1500, min_tissue=0.5), slide.label)


def test_the_real_slide(tmp_path):
    with open_slide(real_svs()) as slide:
        tissue = find_tissue(read_overview(slide))
        qc = tissue_qc(slide, tissue)
    # Looked at: a strip of skin through the middle, about a third of the picture, sharp, no ink.
    assert 0.5 < qc.tissue_mm2 < 0.65
    assert tissue.mask[140, 60]
    assert not tissue.mask[:, 125:].any()
    assert qc.focus_median > 500
    assert qc.pen_share < 0.002
    assert isinstance(real_svs(), Path)
