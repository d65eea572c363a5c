"""Planes on the screen: never flipped, true to scale, measured in mm of the patient; linked where that is right."""

import io

import numpy as np
import pytest
from PIL import Image

from medseq.errors import InputError
from medseq.inference.review_cache import ByteCache
from medseq.inference.review_geometry import Geometry, letters, require_plane
from medseq.inference.review_layer import Layer
from medseq.inference.review_picture import diverging, grey, presets, screen_size, spread
from medseq.inference.review_volume import SeriesView
from medseq.io.volume import Volume, VolumeHeader, slice_affines
from tests.io.synthetic import AXIAL, CORONAL, OBLIQUE, SAGITTAL

ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": SAGITTAL,
    "coronal": CORONAL,
    "oblique": OBLIQUE,
    "columns to the right": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "tilted": (1.0, 0.0, 0.0, 0.0, 0.98480775, 0.17364818),
}


def affine_of(orientation, spacing=(2.5, 0.75, 0.5), *, reverse=False, shear=0.0):
    """RAS affine of DICOM direction cosines; slices along the normal, or sheared as behind a tilted gantry."""
    columns, rows = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(columns, rows) * (-1 if reverse else 1)
    out = np.eye(4)
    out[:3, 0], out[:3, 1], out[:3, 2] = columns * spacing[2], rows * spacing[1], normal * spacing[0] + rows * shear
    out[:3, 3] = (-10.0, -20.0, 30.0)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ out


def view_of(array, affine=None, *, cache=None, whole_bytes=None, units="1", **layers):
    """A view whose ``after`` is the array; other layers as they are given."""
    cache = cache or ByteCache(1 << 28, lambda value: value.nbytes)
    volumes = {"after": Volume.from_array(np.asarray(array, np.float32), affine=affine, units=units), **layers}
    made = {role: Layer(role, volume, cache, role, whole_bytes) for role, volume in volumes.items()}
    return SeriesView(made, {}, {})


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def direction(text):
    """The direction in RAS that a letter at an edge names."""
    return {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}[text[0]]


# --- orientation


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("plane", ["stack", "axial", "coronal", "sagittal"])
def test_a_landmark_stands_where_the_letters_say(orientation, reverse, plane, rng):
    affine = affine_of(ORIENTATIONS[orientation], reverse=reverse, shear=0.4 if orientation == "tilted" else 0.0)
    shape = (6, 9, 11)
    array = np.zeros(shape, np.float32)
    mark = tuple(int(rng.integers(0, n)) for n in shape)
    array[mark] = 1.0
    view = view_of(array, affine)
    layout = view.master.layout(plane)
    index, row, col = (round(v) for v in layout.place(mark))
    shown = view.layers["after"].picture(plane, index)
    assert np.argwhere(shown == 1.0).tolist() == [[row, col]]
    # Where it stands, in mm by the affine, is where the screen's own matrix puts it.
    s, r, c = mark
    place = (affine @ (c, r, s, 1.0))[:3]
    assert np.allclose(view.master.geometry.mm(layout.voxel(index, row, col)), place)
    assert np.allclose((view.master.geometry.screen_affine(plane) @ (col, row, index, 1.0))[:3], place)
    # Towards an edge of the screen, the patient's coordinate named by its letter grows; the dominant one, at least.
    matrix = view.master.geometry.screen_affine(plane)
    for edge, step in (
        ("left", -matrix[:3, 0]),
        ("right", matrix[:3, 0]),
        ("top", -matrix[:3, 1]),
        ("bottom", matrix[:3, 1]),
    ):
        unit = step / np.linalg.norm(step)
        assert unit @ direction(layout.letters[edge]) > 0.57, (edge, layout.letters)  # 1/sqrt(3): the largest of three


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal", "columns to the right", "prone"])
def test_the_radiological_convention(orientation):
    view = view_of(np.zeros((4, 5, 6)), affine_of(ORIENTATIONS[orientation]))
    found = {plane: view.master.layout(plane).letters for plane in ("axial", "coronal", "sagittal")}
    # The patient's right is on the left of the screen; a sagittal plane looks to the left of the screen.
    assert found == {
        "axial": {"left": "R", "right": "L", "top": "A", "bottom": "P"},
        "coronal": {"left": "R", "right": "L", "top": "H", "bottom": "F"},
        "sagittal": {"left": "A", "right": "P", "top": "H", "bottom": "F"},
    }


def test_letters_of_leaning_directions():
    assert letters(np.array([0.0, 1.0, 0.0])) == "A"
    assert letters(np.array([-1.0, 0.0, 0.0])) == "L"
    # 10 degrees do not change the name of a side, 30 degrees do.
    assert letters(np.array([-np.cos(0.17), 0.0, np.sin(0.17)])) == "L"
    assert letters(np.array([-np.cos(0.52), 0.0, np.sin(0.52)])) == "LH"
    assert letters(np.array([-0.6, -0.5, -0.62])) == "FLP"


def test_the_stack_keeps_the_numbers_of_the_slices(rng):
    for reverse in (False, True):
        array = rng.normal(size=(5, 4, 6)).astype(np.float32)
        view = view_of(array, affine_of(AXIAL, reverse=reverse))
        for k in range(5):
            assert sorted(view.layers["after"].picture("stack", k).ravel()) == sorted(array[k].ravel())


def test_slices_of_the_planes_run_from_the_feet_the_back_and_the_right(rng):
    for orientation in ORIENTATIONS.values():
        view = view_of(np.zeros((5, 6, 7)), affine_of(orientation))
        for plane, axis, sign in (("axial", 2, 1), ("coronal", 1, 1), ("sagittal", 0, -1)):
            geometry, count = view.master.geometry, view.master.layout(plane).shape[0]
            first, last = (geometry.mm(view.master.layout(plane).voxel(k, 0, 0)) for k in (0, count - 1))
            assert sign * (last - first)[axis] > 0
            positions = [geometry.position_mm(plane, k) for k in range(count)]
            assert np.allclose(np.abs(np.diff(positions)), view.master.layout(plane).step_mm)


def test_an_unknown_plane_is_refused():
    assert require_plane("axial") == "axial"
    with pytest.raises(InputError, match="no such plane"):
        require_plane("../axial")


# --- scale and grey values


def test_pictures_have_square_pixels():
    view = view_of(np.zeros((10, 40, 60)), affine_of(AXIAL, (5.0, 0.75, 0.5)))
    info = view.info()["planes"]
    assert (info["axial"]["height"], info["axial"]["width"]) == (60, 60)  # 40 x 0.75 mm and 60 x 0.5 mm, 0.5 mm a pixel
    assert (info["coronal"]["height"], info["coronal"]["width"]) == (100, 60)  # 10 x 5 mm
    for plane in ("axial", "coronal", "sagittal"):
        assert pixels(view.slice("after", plane, 0, 0, 1)).shape == (info[plane]["height"], info[plane]["width"])
    assert screen_size((100, 100_000), 1.0, 1.0) == (2, 2048)


def test_a_window_maps_black_and_white(rng):
    array = rng.uniform(-1000, 1000, (3, 8, 9)).astype(np.float32)
    array[0, 0, :3] = (-160.0, 40.0, 240.0)
    shown = pixels(view_of(array).slice("after", "stack", 0, -160.0, 240.0))
    want = np.clip(np.round((view_of(array).layers["after"].picture("stack", 0) + 160) * 255 / 400), 0, 255)
    assert np.array_equal(shown, want)
    with pytest.raises(InputError, match="no width"):
        view_of(array).slice("after", "stack", 0, 10.0, 10.0)
    with pytest.raises(InputError, match="no width"):
        view_of(array).slice("after", "stack", 0, 10.0, -10.0)


def test_padding_is_black_and_has_no_value():
    array = np.full((1, 6, 6), 100.0, np.float32)
    mask = np.ones(array.shape, bool)
    mask[0, 0] = False
    header = Volume.from_array(array, units="HU", affine=np.diag([-1.0, -1.0, 1.0, 1.0])).header
    view = SeriesView(
        {"after": Layer("after", Volume(header, array, mask), ByteCache(1 << 20, lambda a: a.nbytes), "k")}, {}, {}
    )
    shown = pixels(view.slice("after", "stack", 0, 0.0, 200.0))
    assert (shown[0] == 0).all()
    assert (shown[1:] == 128).all()
    assert view.value("stack", 0, 2.5, 0.5)["after"] is None
    assert view.roi("after", "stack", 0, (0, 0, 6, 6))["n"] == 30


def test_presets_are_on_the_number_keys():
    found = presets("HU", (-160, 240), (-1000, 2000))
    assert [preset.key for preset in found] == list("123456789")
    by_name = {preset.name: (preset.low, preset.high) for preset in found}
    assert by_name["brain"] == (0.0, 80.0)
    assert by_name["lung"] == (-1350.0, 150.0)
    assert by_name["full range"] == (-1000, 2000)
    assert [preset.key for preset in presets("1", (0, 10), (0, 20))] == ["1", "2", "3", "9"]
    assert all(preset.high > preset.low for units in ("HU", "SUVbw", "1") for preset in presets(units, (0, 1), (0, 2)))


def test_a_difference_is_dark_at_zero_and_tells_its_sign():
    shown = diverging(np.array([[-50.0, 0.0, 50.0, np.nan]]), -50.0, 50.0).astype(int)
    below, zero, above, nothing = shown[0]
    assert below[2] > below[0]
    assert above[0] > above[2]
    assert zero.max() < 30
    assert (nothing == zero).all()
    alpha = spread(np.array([[0.0, 0.5, 1.0]]), 0.0, 1.0)[0, :, 3]
    assert alpha[0] == 0
    assert alpha[0] < alpha[1] < alpha[2] == 255
    assert grey(np.array([[np.nan, np.inf, -np.inf]]), 0, 1).tolist() == [[0, 255, 0]]


# --- before and after


def test_the_difference_is_after_minus_before_in_native_units(rng):
    before = rng.normal(0, 100, (4, 7, 8)).astype(np.float32)
    after = before + rng.normal(0, 5, before.shape).astype(np.float32)
    affine = affine_of(AXIAL)
    view = view_of(after, affine, units="HU", before=Volume.from_array(before, affine=affine, units="HU"))
    assert view.roles == ["before", "after", "difference"]
    assert view.info()["difference"] == {"low": -50.0, "high": 50.0}
    layout = view.master.layout("coronal")
    x, y, index = 3.5, 2.5, 4
    s, r, c = (round(v) for v in layout.voxel(index, y - 0.5, x - 0.5))
    found = view.value("coronal", index, x, y)
    assert found["before"] == pytest.approx(float(before[s, r, c]))
    assert found["after"] == pytest.approx(float(after[s, r, c]))
    assert found["difference"] == pytest.approx(float(after[s, r, c]) - float(before[s, r, c]))
    stats = view.roi("difference", "coronal", index, (0, 0, 8, 4))
    # float32 subtraction of numbers near 100: their last digit is 1e-5.
    assert stats["mean"] == pytest.approx(float((after - before)[:, layout_row(layout, index)].mean()), abs=1e-4)
    # One window for both, so that they can be compared.
    assert view.info()["window"]["name"] == "soft tissue"


def layout_row(layout, index):
    return round(layout.voxel(index, 0, 0)[layout.axes[0]])


def test_a_finer_result_lies_over_its_source(rng):
    before = rng.uniform(0, 1, (3, 8, 8)).astype(np.float32)
    coarse = affine_of(AXIAL, (3.0, 2.0, 2.0))
    fine = coarse @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    after = before.repeat(2, axis=1).repeat(2, axis=2)
    view = view_of(after, fine, before=Volume.from_array(before, affine=coarse))
    assert view.link_refused is None
    for plane in ("stack", "coronal", "sagittal"):
        index = view.master.layout(plane).shape[0] - 1
        difference = view.roi("difference", plane, index, (0, 0, *view.master.layout(plane).shape[:0:-1]))
        assert (difference["min"], difference["max"]) == (0.0, 0.0)
        shape = pixels(view.slice("before", plane, index)).shape
        assert shape == pixels(view.slice("after", plane, index)).shape
    found = view.value("coronal", 5, 7.3, 1.4)
    assert found["before"] == found["after"]


def header_with_frame(array, affine, frame):
    volume = Volume.from_array(array, affine=affine)
    h = volume.header
    header = VolumeHeader(h.shape, h.dtype, h.affine, h.slice_affines, "CT", "HU", frame_of_reference=frame)
    return Volume(header, array)


def test_series_of_different_frames_of_reference_are_not_linked(rng):
    array = rng.normal(size=(3, 6, 6)).astype(np.float32)
    affine = affine_of(AXIAL)
    cache = ByteCache(1 << 20, lambda a: a.nbytes)

    def made(first, second):
        volumes = {"before": header_with_frame(array, affine, first), "after": header_with_frame(array, affine, second)}
        return SeriesView({role: Layer(role, volume, cache, role) for role, volume in volumes.items()}, {}, {})

    view = made("1.2.3", "1.2.4")
    info = view.info()
    assert not info["linked"]
    assert "another frame of reference" in info["link_refused"]
    assert "1.2.3" not in str(info)
    assert "difference" not in view.roles
    assert set(info["layers"]) == {"before", "after"}
    with pytest.raises(InputError, match="no such picture"):
        view.slice("difference", "stack", 0)
    # Each can still be looked at for itself.
    assert pixels(view.slice("before", "stack", 0)).shape == (9, 6)
    for same in (("1.2.3", "1.2.3"), (None, "1.2.3"), (None, None)):
        assert made(*same).link_refused is None


def test_volumes_of_other_places_are_not_linked(rng):
    array = rng.normal(size=(3, 6, 6)).astype(np.float32)
    affine = affine_of(AXIAL)
    away = affine.copy()
    away[:3, 3] += (0.0, 9.0, 0.0)
    view = view_of(array, affine, before=Volume.from_array(array, affine=away))
    assert "another place (9.0 mm apart)" in view.link_refused
    near = affine.copy()
    near[:3, 3] += (0.0, 0.2, 0.0)  # as files round their positions
    assert view_of(array, affine, before=Volume.from_array(array, affine=near)).link_refused is None


# --- measuring


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_distances_are_millimetres_of_the_patient(orientation, rng):
    affine = affine_of(ORIENTATIONS[orientation], (3.5, 0.9, 0.6), shear=0.8 if orientation == "tilted" else 0.0)
    view = view_of(np.zeros((12, 14, 16)), affine)
    for plane in ("stack", "axial", "coronal", "sagittal"):
        layout = view.master.layout(plane)
        index = int(rng.integers(0, layout.shape[0]))
        points = [tuple(rng.uniform(0, n) for n in (layout.shape[2], layout.shape[1])) for _ in range(2)]
        voxels = [np.array(layout.voxel(index, y - 0.5, x - 0.5)) for x, y in points]
        # The oracle: both ends through the affine by hand.
        ends = [(affine @ (c, r, s, 1.0))[:3] for s, r, c in voxels]
        want = float(np.linalg.norm(ends[0] - ends[1]))
        assert view.distance_mm(plane, index, *points) == pytest.approx(want, rel=1e-9)


def test_a_distance_along_a_sheared_stack_is_longer_than_its_slices_are_apart():
    # Gantry tilt: going ten slices up also goes ten shears along.
    affine = affine_of(AXIAL, (2.0, 1.0, 1.0), shear=1.0)
    view = view_of(np.zeros((11, 8, 8)), affine)
    layout = view.master.layout("sagittal")
    up = view.distance_mm("sagittal", 3, (4.0, 0.5), (4.0, 10.5))
    assert up == pytest.approx(10 * np.sqrt(2.0**2 + 1.0**2))
    assert layout.step_mm == pytest.approx(1.0)


def test_uneven_slices_are_measured_where_they_are(rng):
    positions = np.array([0.0, 2.0, 7.0, 8.0])
    affines = slice_affines(affine_of(AXIAL), 4)
    affines[:, :3, 3] = affines[0, :3, 3] + positions[:, None] * affines[0, :3, 2]
    array = rng.normal(size=(4, 6, 6)).astype(np.float32)
    h = Volume.from_array(array).header
    header = VolumeHeader(h.shape, h.dtype, None, affines, "CT", "HU")
    view = SeriesView(
        {"after": Layer("after", Volume(header, array), ByteCache(1 << 20, lambda a: a.nbytes), "k")}, {}, {}
    )
    assert not view.info()["even"]
    layout = view.master.layout("coronal")
    centres = [(3.0, layout.place((k, 0, 0))[1] + 0.5) for k in range(4)]
    for a in range(4):
        for b in range(4):
            want = abs(positions[a] - positions[b])
            assert view.distance_mm("coronal", 2, centres[a], centres[b]) == pytest.approx(want, abs=1e-9)
    with pytest.raises(InputError, match="unevenly spaced"):
        view.nifti("after")


def test_regions_count_the_voxels_whose_centres_they_hold(rng):
    array = rng.normal(40, 10, (3, 20, 30)).astype(np.float32)
    view = view_of(array, np.diag([-0.5, -0.75, 2.0, 1.0]), units="HU")
    found = view.roi("after", "stack", 1, (4.2, 3.0, 11.6, 9.0))
    # Centres stand at halves: columns 4 to 11 lie within 4.2 and 11.6.
    chosen = array[1, 3:9, 4:12].astype(float)
    assert found["n"] == chosen.size == 48
    assert found["mean"] == pytest.approx(chosen.mean())
    assert found["sd"] == pytest.approx(chosen.std(ddof=1))
    assert (found["min"], found["max"]) == (chosen.min(), chosen.max())
    assert found["area_mm2"] == pytest.approx(48 * 0.5 * 0.75)
    turned = view.roi("after", "stack", 1, (11.6, 9.0, 4.2, 3.0))
    assert turned == found
    y, x = np.mgrid[:20, :30] + 0.5
    inside = ((x - 15) / 8) ** 2 + ((y - 10) / 5) ** 2 <= 1
    ellipse = view.roi("after", "stack", 1, (7, 5, 23, 15), "ellipse")
    assert ellipse["n"] == inside.sum()
    assert ellipse["mean"] == pytest.approx(array[1][inside].mean(), rel=1e-6)  # float32 against float64 sums
    for box in ((4.0, 3.0, 4.2, 3.2), (-9.0, -9.0, -5.0, -5.0)):
        with pytest.raises(InputError, match="holds no voxel"):
            view.roi("after", "stack", 1, box)
    with pytest.raises(InputError, match="no such region"):
        view.roi("after", "stack", 1, (0, 0, 9, 9), "star")


def test_values_outside_and_slices_that_are_none(rng):
    view = view_of(rng.normal(size=(3, 6, 6)).astype(np.float32))
    assert view.value("stack", 0, -3.0, 2.0)["after"] is None
    for index in (-1, 3, 10**9):
        with pytest.raises(InputError, match="no such slice"):
            view.value("stack", index, 1.0, 1.0)
        with pytest.raises(InputError, match="no such slice"):
            view.slice("after", "stack", index)
    with pytest.raises(InputError, match="no such picture"):
        view.slice("before", "stack", 0)


# --- unusual volumes


def test_time_points_are_chosen_and_a_volume_without_time_goes_with_all(rng):
    after = rng.normal(size=(3, 5, 6, 4)).astype(np.float32)
    before = rng.normal(size=(3, 5, 6)).astype(np.float32)
    view = view_of(
        after, np.diag([-1.0, -1.0, 1.0, 1.0]), before=Volume.from_array(before, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    )
    assert view.info()["frames"] == 4
    for frame in range(4):
        for plane in ("stack", "coronal"):
            found = view.value(plane, 1, 2.5, 1.5, frame)
            s, r, c = found["voxel"]
            assert found["after"] == pytest.approx(float(after[s, r, c, frame]))
            assert found["before"] == pytest.approx(float(before[s, r, c]))
    with pytest.raises(InputError, match="no such time point"):
        view.slice("after", "stack", 0, frame=4)


def test_a_single_slice_has_three_planes_too(rng):
    view = view_of(rng.normal(size=(1, 9, 7)).astype(np.float32), affine_of(AXIAL, (5.0, 1.0, 1.0)))
    info = view.info()["planes"]
    assert [info[plane]["count"] for plane in ("stack", "axial", "coronal", "sagittal")] == [1, 1, 9, 7]
    for plane in ("stack", "axial", "coronal", "sagittal"):
        assert pixels(view.slice("after", plane, 0)).shape == (info[plane]["height"], info[plane]["width"])


class Counting:
    """A reader of a volume that is never whole in memory: 2 000 slices whose values tell where they are."""

    def __init__(self, shape):
        affine = np.diag([-0.7, -0.7, 1.0, 1.0])
        self.header = VolumeHeader(shape, np.dtype("i2"), affine, slice_affines(affine, shape[0]), "CT", "HU")
        self.most = self.reads = 0

    def read(self, lo, hi):
        self.most, self.reads = max(self.most, hi - lo), self.reads + hi - lo
        rows, cols = np.mgrid[: self.header.shape[1], : self.header.shape[2]]
        return np.stack([(k + rows * 0.5 + cols * 0.25).astype(np.float32) for k in range(lo, hi)])

    def valid(self, lo, hi):
        return None


def test_two_thousand_slices_are_looked_at_one_by_one_and_across_in_bounded_memory():
    reader = Counting((2000, 64, 64))
    cache = ByteCache(4 << 20, lambda a: a.nbytes)
    whole = 2 << 20  # the volume has 33 MB: blocks of 4 x 4 pixels are kept
    layer = Layer("after", reader, cache, "k", whole)
    assert layer.reduced == 4
    view = SeriesView({"after": layer}, {}, {})
    assert view.info()["reduced"] == 4
    reader.reads = 0
    view.slice("after", "stack", 1234)
    assert reader.reads <= 1
    assert reader.most == 1
    picture = layer.picture("coronal", 20)
    assert picture.shape == (2000, 16)
    assert cache.bytes <= cache.max_bytes
    # Exact where a number is told: a value, and a region across the stack.
    assert view.value("coronal", 20, 10.5, 500.5)["after"] == pytest.approx(
        expected_value(view, "coronal", 20, 10.5, 500.5)
    )
    found = view.roi("after", "coronal", 20, (10.0, 500.0, 11.0, 501.0))
    assert found["mean"] == pytest.approx(expected_value(view, "coronal", 20, 10.5, 500.5))


def expected_value(view, plane, index, x, y):
    s, r, c = (round(v) for v in view.master.layout(plane).voxel(index, y - 0.5, x - 0.5))
    return s + r * 0.5 + c * 0.25


def test_a_small_cache_makes_smaller_volumes_and_not_the_same_one_over_and_over():
    reader = Counting((40, 64, 64))
    layer = Layer("after", reader, ByteCache(600_000, lambda a: a.nbytes), "k")
    assert layer.reduced == 2
    layer.picture("coronal", 3)
    reads = reader.reads
    for index in range(20):
        layer.picture("sagittal", index)
    assert reader.reads == reads


def test_reduced_planes_differ_from_the_volume_by_no_more_than_a_block():
    reader = Counting((40, 64, 64))
    layer = Layer("after", reader, ByteCache(1 << 24, lambda a: a.nbytes), "k", 100_000)
    assert layer.reduced > 1
    f = layer.reduced
    for plane in ("coronal", "sagittal"):
        layout = layer.layout(plane)
        small, exact = layer.picture(plane, 30), layer.values(plane, 30)
        assert exact.shape == layout.shape[1:]
        grown = small.repeat(f, axis=1)[:, : exact.shape[1]] if small.shape[0] == exact.shape[0] else small
        # Values grow by 0.5 and 0.25 a pixel: the mean of a block is off by less than its extent.
        assert np.abs(grown - exact).max() <= 0.75 * f


# --- NIfTI for 3-D viewers, the cache


def test_nifti_carries_voxels_and_affine_and_nothing_else(rng):
    import nibabel

    array = rng.integers(-1000, 1000, (4, 5, 6)).astype(np.float32)
    affine = affine_of(OBLIQUE)
    image = nibabel.Nifti1Image.from_bytes(view_of(array, affine).nifti("after"))
    assert np.array_equal(np.asarray(image.dataobj).T, array)
    assert image.get_data_dtype() == np.int16
    assert np.allclose(image.affine, affine, atol=1e-4)  # float32 in the header, positions of some ten mm
    header = image.header
    assert not bytes(header["descrip"]).strip(b"\0") + bytes(header["aux_file"]).strip(b"\0")
    halves = nibabel.Nifti1Image.from_bytes(view_of(array / 2, affine).nifti("after"))
    assert halves.get_data_dtype() == np.float32
    with pytest.raises(InputError, match="no such volume"):
        view_of(array, affine).nifti("before")


def test_the_cache_is_bounded_and_makes_a_value_once(rng):
    import threading

    cache = ByteCache(1000, lambda value: len(value))
    made = []

    def make(name, size):
        made.append(name)
        return bytes(size)

    for name in "abc":
        cache.get(name, lambda name=name: make(name, 400))
    assert cache.bytes == 800
    cache.get("b", lambda: make("b", 400))
    cache.get("a", lambda: make("a", 400))  # let go when c came
    assert made == ["a", "b", "c", "a"]
    cache.get("huge", lambda: make("huge", 5000))
    assert cache.bytes <= 1000
    gate, count = threading.Event(), []

    def slow():
        count.append(1)
        gate.wait(5)
        return b"x"

    threads = [threading.Thread(target=cache.get, args=("slow", slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(count) == 1
    with pytest.raises(ZeroDivisionError):
        cache.get("broken", lambda: 1 / 0)
    assert cache.get("broken", lambda: b"mended") == b"mended"


def test_an_item_without_any_volume_says_why():
    with pytest.raises(InputError, match="no picture.*gone"):
        SeriesView({}, {"after": "gone"}, {})


def test_geometry_of_a_header_is_what_the_layer_has():
    header = Volume.from_array(np.zeros((2, 3, 4)), affine=affine_of(AXIAL)).header
    assert Geometry(header).spacing == pytest.approx((2.5, 0.75, 0.5))
