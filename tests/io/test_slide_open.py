"""Slides are opened whatever their layout, and give the pixels that are in the file."""

import tracemalloc
import zlib

import numpy as np
import openslide
import pytest
import tifffile
from PIL import ImageCms

from medseq.errors import BackendError, FormatError, InputError
from medseq.io.slide import Slide
from medseq.io.slide_find import find_slides, slide_name
from medseq.io.slide_open import open_slide
from tests.io.slide_synthetic import break_tile, real_svs, smooth, write_dicom, write_svs, write_tiff

LAYOUTS = {
    "tiles": {},
    "strips": {"tile": None, "rowsperstrip": 40},
    "one strip": {"tile": None},
    "zlib strips": {"tile": None, "rowsperstrip": 33, "compression": "zlib", "predictor": True},
    "lzw tiles": {"compression": "lzw"},
    "big tiff": {"compression": "zstd"},
}


def test_the_real_slide_is_what_openslide_reads():
    path = real_svs()
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        assert isinstance(slide, Slide)
        assert (slide.format, slide.dims, slide.levels) == ("aperio", ((2220, 2967),), 1)
        assert (slide.mpp, slide.mpp_source, slide.objective_power) == ((0.499, 0.499), "file", 20)
        assert slide.icc == "absent"
        wanted = np.asarray(reference.read_region((700, 900), 0, (300, 200)))
        np.testing.assert_array_equal(slide.region(700, 900, 0, 300, 200), wanted[..., :3])
        assert slide.label.startswith("file-")


def test_label_and_macro_are_never_touched(monkeypatch):
    def refuse(self):
        raise AssertionError("an associated image was asked for")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    with open_slide(real_svs()) as slide:
        assert slide.region(0, 0, 0, 64, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_tiff_gives_the_stored_pixels(tmp_path, rng, name):
    image = rng.integers(0, 256, (301, 223, 3), dtype=np.uint8)
    path = write_tiff(tmp_path / "a.tif", image, **LAYOUTS[name])
    with open_slide(path) as slide:
        assert (slide.format, slide.dims, slide.mpp, slide.mpp_source) == ("tiff", ((223, 301),), (0.5, 0.5), "file")
        np.testing.assert_array_equal(slide.region(0, 0, 0, 223, 301), image)
        np.testing.assert_array_equal(slide.region(101, 77, 0, 90, 120), image[77:197, 101:191])


def test_separate_planes_grey_sixteen_bits_and_inverted_grey(tmp_path, rng):
    image = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    cases = {
        "planes": (image.transpose(2, 0, 1), {"planarconfig": "separate"}, image),
        "grey": (image[..., 0], {"photometric": "minisblack"}, grey),
        "inverted": (255 - image[..., 0], {"photometric": "miniswhite"}, grey),
        "sixteen": (image.astype(np.uint16) * 257, {}, image),
        "alpha": (np.dstack([image, image[..., :1]]), {"extrasamples": ["unassalpha"]}, image),
    }
    for name, (stored, words, wanted) in cases.items():
        path = write_tiff(tmp_path / f"{name}.tif", stored, **words)
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.region(0, 0, 0, 70, 90), wanted, err_msg=name)


def test_outside_of_the_slide_it_is_white(tmp_path, rng):
    image = rng.integers(0, 200, (90, 70, 3), dtype=np.uint8)
    for path in (write_tiff(tmp_path / "a.tif", image), write_svs(tmp_path / "a.svs", image, factors=())):
        with open_slide(path) as slide:
            region = slide.region(-10, -20, 0, 100, 150)
            inside = slide.region(0, 0, 0, 70, 90)
        np.testing.assert_array_equal(region[20:110, 10:80], inside)
        region[20:110, 10:80] = 255
        assert (region == 255).all()


@pytest.mark.parametrize("nested", [False, True], ids=["pages", "sub-images"])
def test_levels_are_found_and_a_label_page_is_not_one(tmp_path, rng, nested):
    image = smooth(rng, 512, 768)
    path = write_tiff(tmp_path / "a.tif", image, factors=(2, 4), nested=nested)
    tifffile.imwrite(path, smooth(rng, 90, 100), append=True, photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert slide.dims == ((768, 512), (384, 256), (192, 128))
        assert slide.downsamples == (1.0, 2.0, 4.0)
        wanted = tifffile.imread(path, series=0, level=1) if nested else tifffile.imread(path, key=1)
        np.testing.assert_array_equal(slide.region(100, 40, 1, 60, 50), wanted[20:70, 50:110])


def test_a_vendors_pyramid_is_read_by_openslide(tmp_path, rng):
    path = write_svs(tmp_path / "a.svs", smooth(rng, 600, 900), mpp=0.25, factors=(4,))
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        assert (slide.format, slide.dims, slide.mpp) == ("aperio", ((900, 600), (225, 150)), (0.25, 0.25))
        wanted = np.asarray(reference.read_region((400, 200), 1, (50, 60)))[..., :3]
        np.testing.assert_array_equal(slide.region(400, 200, 1, 50, 60), wanted)
        # The levels show the same: noise of JPEG and its halved colours, against 60 grey values for other places.
        fine = slide.region(400, 200, 0, 200, 240)[2::4, 2::4]
        assert np.abs(fine.astype(int) - wanted).mean() < 8


def test_jpeg_tiles_have_the_colours_that_were_stored(tmp_path, rng):
    # tifffile writes RGB as YCbCr inside JPEG: a reader that forgets to convert is off by tens of grey values.
    image = smooth(rng, 300, 260)
    with open_slide(write_tiff(tmp_path / "a.tif", image, compression="jpeg")) as slide:
        assert np.abs(slide.region(0, 0, 0, 260, 300).astype(int) - image).mean() < 6


RGB_CHANNEL = '<Channel ID="c" SamplesPerPixel="3"/>'


def ome(size, unit=None, channels=RGB_CHANNEL, sizes='SizeC="3" SizeZ="1" SizeT="1"'):
    spacing = f'PhysicalSizeX="{size}" PhysicalSizeY="{size}"'
    spacing += "" if unit is None else f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    pixels = f'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="300" SizeY="200" {sizes} {spacing}'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels {pixels}>{channels}<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    ).encode()


@pytest.mark.parametrize(
    ("size", "unit", "mpp"), [(0.25, None, 0.25), (0.4, "µm", 0.4), (325, "nm", 0.325), (0.0005, "mm", 0.5)]
)
def test_ome_tiff_says_its_resolution_in_many_units(tmp_path, rng, size, unit, mpp):
    image = smooth(rng, 200, 300)
    path = write_tiff(tmp_path / "a.ome.tif", image, 3.0, description=ome(size, unit), factors=(2,), nested=True)
    with open_slide(path) as slide:
        assert (slide.format, slide.levels, slide.mpp_source) == ("ome-tiff", 2, "file")
        assert slide.mpp == pytest.approx((mpp, mpp))
        np.testing.assert_array_equal(slide.region(0, 0, 0, 300, 200), image)


def test_fluorescence_is_refused(tmp_path, rng):
    words = {"description": ome(0.5, sizes='SizeC="4" SizeZ="1" SizeT="1"', channels='<Channel ID="c"/>')}
    path = write_tiff(
        tmp_path / "a.ome.tif", rng.integers(0, 9, (200, 300), dtype=np.uint8), photometric="minisblack", **words
    )
    with pytest.raises(FormatError, match=r"not a brightfield slide \(found 4 channels"):
        open_slide(path)
    floats = write_tiff(tmp_path / "b.tif", rng.random((64, 64, 3), dtype=np.float32))
    with pytest.raises(FormatError, match="not a brightfield slide .found 3 samples of float32"):
        open_slide(floats)


@pytest.mark.parametrize("unknown", [None, 25_400 / 72], ids=["nothing", "72 dpi"])
def test_a_slide_without_resolution_says_how_to_supply_it(tmp_path, rng, unknown):
    image = smooth(rng, 128, 128)
    plain = write_tiff(tmp_path / "a.tif", image, unknown)
    for path in (plain, write_svs(tmp_path / "a.svs", image, None)):
        with open_slide(path) as slide:
            assert (slide.mpp, slide.mpp_source) == (None, None)
            with pytest.raises(InputError, match="does not say how large a pixel is; pass --mpp"):
                slide.require_mpp()
        with open_slide(path, mpp=0.4) as slide:
            assert (slide.require_mpp(), slide.mpp_source) == ((0.4, 0.4), "user")
    with open_slide(tmp_path / "a.svs") as slide, pytest.raises(InputError, match="objective was 20x: 0.5 is usual"):
        slide.require_mpp()


def test_the_user_knows_better_but_not_anything(tmp_path, rng):
    path = write_tiff(tmp_path / "a.tif", smooth(rng, 64, 64), 0.5)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.25, 0.25), "user")
    for wrong in (0, -1, 500, float("nan")):
        with pytest.raises(InputError, match="no resolution of a microscope"):
            open_slide(path, mpp=wrong)
    with open_slide(path, mpp=(0.5, 0.6)) as slide, pytest.raises(InputError, match="pixels are not square"):
        slide.require_mpp()


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's blue: after it, red and blue have changed places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for start in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        name = bytes(profile[start : start + 4])
        profile[start : start + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    return bytes(profile)


def test_the_colour_profile_is_applied_unless_told_not_to(tmp_path, rng):
    image = smooth(rng, 96, 96)
    tag = lambda profile: [(34675, 7, len(profile), profile, True)]  # noqa: E731
    path = write_tiff(tmp_path / "a.tif", image, extratags=tag(swapped_profile()))
    with open_slide(path) as slide:
        assert slide.icc == "applied"
        # Fixed-point colour management: two grey values.
        assert np.abs(slide.region(0, 0, 0, 96, 96)[..., ::-1].astype(int) - image).max() <= 2
    with open_slide(path, icc=False) as slide:
        assert slide.icc == "off"
        np.testing.assert_array_equal(slide.region(0, 0, 0, 96, 96), image)
    with open_slide(write_tiff(tmp_path / "b.tif", image, extratags=tag(b"x" * 200))) as slide:
        assert slide.icc == "unreadable"
        np.testing.assert_array_equal(slide.region(0, 0, 0, 96, 96), image)


def test_one_broken_tile_does_not_break_the_others(tmp_path, rng):
    image = smooth(rng, 512, 512)
    for path in (
        write_tiff(tmp_path / "a.tif", image, compression="jpeg", tile=(256, 256)),
        write_svs(tmp_path / "a.svs", image),
    ):
        with open_slide(path) as slide:
            good = slide.region(256, 256, 0, 256, 256)
        break_tile(path, 0)
        with open_slide(path) as slide:
            for _ in range(2):
                with pytest.raises(FormatError, match="a part of the slide cannot be read"):
                    slide.region(0, 0, 0, 100, 100)
                # OpenSlide answers nothing after an error: the file must have been opened again.
                np.testing.assert_array_equal(slide.region(256, 256, 0, 256, 256), good)


def test_what_is_no_slide_is_refused_without_its_name(tmp_path, rng):
    image = smooth(rng, 256, 256)
    whole = write_tiff(tmp_path / "ANNA_SMITH.tif", image).read_bytes()
    svs = write_svs(tmp_path / "ANNA_SMITH.svs", image).read_bytes()
    for name, content in {
        "a.tif": b"",
        "b.svs": b"hello" * 99,
        "c.tif": whole[:60],
        "d.svs": svs[:200],
        "e.mrxs": b"\0",
    }.items():
        path = tmp_path / f"ANNA_SMITH_{name}"
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            open_slide(path)
        assert "ANNA" not in str(caught.value)
        assert caught.value.__cause__ is None
    for path in (tmp_path, tmp_path / "ANNA_SMITH_none.svs"):
        with pytest.raises(InputError, match="not a slide") as refused:
            open_slide(path)
        assert "ANNA" not in str(refused.value)


def test_a_truncated_file_gives_what_is_there(tmp_path, rng):
    image = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    # The directory stands first, as in files that are written while scanning.
    path = write_tiff(tmp_path / "a.tif", image, compression="zlib", tile=(256, 256))
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size * 5 // 8)
    with open_slide(path) as slide:
        assert slide.missing_share == 0.5
        np.testing.assert_array_equal(slide.region(0, 0, 0, 256, 256), image[:256, :256])
        with pytest.raises(FormatError, match="a part of the slide cannot be read"):
            slide.region(256, 256, 0, 10, 10)


def test_regions_that_make_no_sense_are_refused(tmp_path, rng):
    with open_slide(write_tiff(tmp_path / "a.tif", smooth(rng, 64, 64))) as slide:
        for level, width in ((1, 5), (-1, 5)):
            with pytest.raises(InputError, match="no such level"):
                slide.region(0, 0, level, width, 5)
        for width in (0, -4, 1 << 24):
            with pytest.raises(InputError, match="no such region"):
                slide.region(0, 0, 0, width, 5)


def test_a_slide_of_ten_gigapixels_costs_what_is_looked_at(tmp_path, rng):
    tile = rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    side, here = 100_000, 4321
    pieces = (zlib.compress(tile.tobytes()) if number == here else b"" for number in range(98 * 98))
    path = tmp_path / "huge.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            pieces,
            shape=(side, side, 3),
            dtype="u1",
            tile=(1024, 1024),
            photometric="rgb",
            compression="zlib",
            metadata=None,
        )
    row, col = divmod(here, 98)
    tracemalloc.start()
    with open_slide(path, mpp=0.25) as slide:
        assert slide.dims == ((side, side),)
        np.testing.assert_array_equal(slide.region(col * 1024, row * 1024, 0, 1024, 1024), tile)
        assert (slide.region(99_900, 99_900, 0, 300, 300) == 255).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The piece, its copies, and the lists of 9604 pieces; the image would take 30 GB.
    assert peak < 40e6


def test_a_flat_file_in_one_strip_is_not_read_as_a_whole(tmp_path):
    # 12 GB with a hole: only the pages that are looked at exist.
    path = tmp_path / "flat.tif"
    pixels = tifffile.memmap(
        path, shape=(50_000, 80_000, 3), dtype="u1", photometric="rgb", bigtiff=True, metadata=None
    )
    pixels[40_000:40_050, 70_000:70_060] = 77
    pixels.flush()
    tracemalloc.start()
    with open_slide(path, mpp=0.25) as slide:
        region = slide.region(69_990, 39_990, 0, 100, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (region[10:60, 10:70] == 77).all()
    assert region.sum() == 77 * 50 * 60 * 3
    assert peak < 2e6


def test_a_dicom_slide_is_found_once_and_read(tmp_path, rng):
    # Made here, with pydicom: no scanner's file is in any package.
    image = smooth(rng, 500, 700)
    path = write_dicom(tmp_path / "case-9" / "0001.dcm", image)
    (tmp_path / "case-9" / "0002.dcm").write_bytes(b"no DICOM")
    assert find_slides(tmp_path) == [path]
    assert slide_name(path) == "case-9"
    with open_slide(path) as slide:
        assert (slide.format, slide.dims, slide.mpp, slide.objective_power) == ("dicom", ((700, 500),), (0.5, 0.5), 20)
        region = slide.region(100, 50, 0, 400, 400)
    # JPEG of smooth colours with halved chroma.
    assert np.abs(region.astype(int) - image[50:450, 100:500]).mean() < 4


def test_missing_libraries_are_named(monkeypatch, tmp_path, rng):
    from medseq.io import slide_openslide

    def missing():
        raise BackendError("OpenSlide is not installed")

    plain, svs = write_tiff(tmp_path / "a.tif", smooth(rng, 64, 64)), write_svs(tmp_path / "a.svs", smooth(rng, 64, 64))
    monkeypatch.setattr(slide_openslide, "_openslide", missing)
    with open_slide(plain) as slide:
        assert slide.format == "tiff"
    with pytest.raises(BackendError, match="OpenSlide is not installed"):
        open_slide(svs)


def test_slides_of_a_folder(tmp_path, rng):
    for name in ("b.svs", "a.tif", "sub/c.NDPI", ".hidden.svs", ".cache/d.svs", "notes.txt", "e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_slides(tmp_path)]
    assert found == ["a.tif", "b.svs", "sub/c.NDPI"]
    assert find_slides(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert slide_name(tmp_path / "sub" / "c.NDPI") == "c"
    with pytest.raises(InputError, match="no such file or folder"):
        find_slides(tmp_path / "none")
