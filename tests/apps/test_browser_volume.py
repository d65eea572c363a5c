"""Volumes in a real browser: from the worklist to a decision that is there after a reload, by mouse and by keyboard."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from medseq.inference.review import ReviewStore
from tests.apps import made_runs
from tests.apps.conftest import KEY, start, stop
from tests.apps.screenshots import same_as_committed

pytestmark = pytest.mark.browser


def open_case(page, number: int) -> None:
    """Open a row of the worklist, from 1, and wait for its pictures."""
    page.locator(f".worklist tbody tr:nth-child({number})").click()
    settled(page)


def settled(page) -> None:
    """Every pane shows the picture of its view."""
    page.locator(".pane").first.wait_for()
    panes = page.locator(".pane")
    for k in range(panes.count()):
        page.locator(".pane[data-shown]").nth(k).wait_for()
    page.wait_for_timeout(400)


def pane(page, series: str, plane: str = "stack"):
    return page.locator(f".pane[data-series={series}][data-plane={plane}]")


def pixels(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def events(run, kind: str) -> list:
    with ReviewStore(run / "review.sqlite", KEY.encode(), read_only=True) as store:
        return [record.event for record in store.records() if record.event.kind == kind]


def choose(page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option).click()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server over runs that these tests decide about."""
    folder = tmp_path_factory.mktemp("decide")
    made_runs.ct_run(folder, items=2)
    server = start(folder, "--user", "anna")
    yield server
    stop(server)


def test_the_port_answers_and_the_first_page_is_usable(own, new_page):
    begun = time.monotonic()
    page = new_page(own.url)
    page.locator(".worklist tbody tr").first.wait_for()
    usable = time.monotonic() - begun
    # The claims are 6 and 2 seconds on two quiet cores (benchmarks/bench_review.py); here others work beside.
    assert own.answered_s < 30
    assert usable < 30


def test_worklist_window_swipe_reject_reload(own, new_page):
    page = new_page(own.url)
    rows = page.locator(".worklist tbody tr")
    rows.first.wait_for()
    same_as_committed(page, "worklist")
    # Without a mouse: arrows walk through the rows, Enter opens.
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    settled(page)
    same_as_committed(page, "ct-side-by-side")
    page.keyboard.press("5")
    page.locator(".pane[data-window='-500,1300']").first.wait_for()
    assert "bone" in pane(page, "after").inner_text()
    assert "L 400 W 1,800 HU" in pane(page, "after").inner_text()
    box = pane(page, "after").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 160, steps=4)
    page.mouse.up()
    # Right widens, up raises the level; no preset has this window.
    page.locator(".pane[data-window='-500,1300']").first.wait_for(state="detached")
    text = pane(page, "after").inner_text()
    assert "bone" not in text
    assert "L 400 W 1,800 HU" not in text
    # Keys work after a click anywhere on the page.
    page.locator(".case b").click()
    page.keyboard.press("s")
    page.locator(".panes[data-layout=swipe]").wait_for()
    settled(page)
    assert "Before | After" in pane(page, "after").inner_text()
    page.keyboard.press("x")
    page.get_by_text("Choose a reason first").wait_for()
    assert events(own.folder / "out" / "ct", "decide") == []
    choose(page, "Reason", "a structure that was not there before")
    page.locator(".case b").click()
    page.keyboard.press("m")
    page.keyboard.type("swds 1 <i>ridge</i>")
    page.keyboard.press("Control+Enter")
    # What is typed is a comment, not keys of the viewer.
    assert page.locator(".panes[data-layout=swipe]").count() == 1
    page.locator(".case b").click()
    page.keyboard.press("x")
    page.get_by_text("You rejected this case").wait_for()
    [event] = events(own.folder / "out" / "ct", "decide")
    assert (event.reviewer, event.decision, event.reason_code) == ("anna", "reject", "invented")
    assert event.comment == "swds 1 <i>ridge</i>"
    assert event.view["layout"] == "swipe"
    assert event.view["window"][1] - event.view["window"][0] > 1800
    page.reload()
    page.get_by_text("You rejected this case").wait_for()
    # The view as well: same layout, same window.
    page.locator(".panes[data-layout=swipe]").wait_for()
    settled(page)
    assert text.split("\n")[-2] in pane(page, "after").inner_text()
    page.keyboard.press("z")
    page.get_by_text("Not decided yet").wait_for()


def test_left_is_left_in_every_plane(server, new_page):
    page = new_page(server.url)
    open_case(page, 1)
    page.get_by_role("button", name="Three planes").click()
    settled(page)
    letters = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
    # The marker lies to the left and in front; in every plane that shows it, on this side of the middle.
    bright = {"axial": ("right", "top"), "sagittal": ("left", None), "coronal": ("right", None)}
    geometry = {"axial": (0.725, 0.3), "coronal": (0.725, 0.5), "sagittal": (0.3, 0.5)}
    # To the marker's place in all planes: a click on it in the axial one.
    box = pane(page, "after", "axial").bounding_box()
    canvas = pixels(pane(page, "after", "axial"))
    rows, cols = np.nonzero((canvas.min(axis=2) > 230) & (np.ptp(canvas, axis=2) < 8))
    inside = (rows > 60) & (rows < box["height"] - 60) & (cols > 60) & (cols < box["width"] - 60)
    page.mouse.click(box["x"] + np.median(cols[inside]), box["y"] + np.median(rows[inside]))
    settled(page)
    for plane, expected in letters.items():
        shown = pane(page, "after", plane)
        found = "".join(shown.locator(f".letter.{side}").inner_text() for side in ("left", "right", "top", "bottom"))
        assert found == expected, plane
        picture = pixels(shown)
        white = (picture.min(axis=2) > 230) & (np.ptp(picture, axis=2) < 8)
        margin = 60
        white[:margin], white[-margin:], white[:, :margin], white[:, -margin:] = False, False, False, False
        row, col = (np.median(axis) for axis in np.nonzero(white))
        across, down = bright[plane]
        assert (col > picture.shape[1] / 2) == (across == "right"), (plane, geometry[plane])
        if down:
            assert row < picture.shape[0] / 2
    same_as_committed(page, "three-planes")


def test_distance_and_region_are_those_of_the_data(server, new_page):
    page = new_page(server.url)
    open_case(page, 1)
    shown = pane(page, "after")
    box = shown.bounding_box()
    # 64 rows of 1.5 mm fill the height: so many screen pixels a millimetre.
    per_mm = min(
        box["height"] / (made_runs.SIDE * made_runs.ROW_MM), box["width"] / (made_runs.SIDE * made_runs.COL_MM)
    )
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(tool: str, dx: float, dy: float) -> None:
        page.get_by_role("button", name=tool, exact=True).click()
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + dx, middle[1] + dy, steps=3)
        page.mouse.up()

    drag("Distance", 30 * per_mm, 0)
    drag("Distance", 0, 30 * per_mm)
    lengths = [float(each.split()[0]) for each in shown.locator("text.label").all_text_contents()]
    # Half a screen pixel at either end.
    assert lengths == pytest.approx([30.0, 30.0], abs=1.5 / per_mm)
    page.keyboard.press("Escape")
    shown.locator("text.label").first.wait_for(state="detached")
    drag("Region", 8 * per_mm, 9 * per_mm)
    label = shown.locator("text.label")
    label.wait_for()
    said = label.text_content()
    assert "HU" in said
    mean = float(said.split("mean ")[1].split(" ")[0].replace("−", "-"))
    # Water with noise of 40 HU that was smoothed: the mean of about 50 voxels.
    assert mean == pytest.approx(made_runs.WATER, abs=15)
    page.mouse.move(middle[0] + 10, middle[1] + 10)
    page.get_by_text("Slice 13/24").first.wait_for()
    shown.locator(".bottom-left", has_text="HU").wait_for()


def test_slices_zoom_and_pan_go_together_and_by_keys(server, new_page):
    page = new_page(server.url)
    open_case(page, 1)
    before, after = pane(page, "before"), pane(page, "after")
    assert "Slice 13/24" in before.inner_text()
    page.locator(".case b").click()
    for key in ("ArrowDown", "ArrowDown", "PageDown", "+"):
        page.keyboard.press(key)
    page.locator(".pane[data-shown='23']").nth(1).wait_for()
    for shown in (before, after):
        assert "Slice 24/24" in shown.inner_text()
        assert "Zoom 125 %" in shown.inner_text()
    page.mouse.move(*(after.bounding_box()[side] + 100 for side in ("x", "y")))
    page.mouse.wheel(0, -120)
    page.locator(".pane[data-shown='22']").nth(1).wait_for()
    page.keyboard.press("0")
    before.locator(".bottom-right", has_text="Zoom 100 %").wait_for()
    page.keyboard.press("d")
    page.locator(".panes[data-layout=difference]").wait_for()
    settled(page)
    assert "−50" in pane(page, "difference").locator(".legend").inner_text()
    page.keyboard.press("d")
    page.locator(".panes[data-layout=pair]").wait_for()


def test_uncertainty_and_free_planes(server, new_page):
    page = new_page(server.url)
    open_case(page, 3)
    plain = pixels(pane(page, "after"))
    page.keyboard.press("u")
    pane(page, "after").locator(".legend").wait_for()
    page.wait_for_timeout(1000)
    coloured = pixels(pane(page, "after"))
    assert np.ptp(plain[100:-100, 100:-100], axis=2).max() < 40
    assert (np.ptp(coloured[100:-100, 100:-100], axis=2) > 60).any()
    page.get_by_text("Free planes, 3-D").click()
    page.locator(".free .stage[data-ready=true]").wait_for(timeout=120_000)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (2560, 1440)])
def test_nothing_overlaps_and_everything_fits(server, new_page, width, height):
    page = new_page(server.url, width, height)
    open_case(page, 1)
    texts = page.locator(".pane :is(.letter, .top-left, .top-right, .bottom-left, .bottom-right)")
    boxes = [texts.nth(k).bounding_box() for k in range(texts.count())]
    assert len(boxes) == 16
    for k, a in enumerate(boxes):
        assert a["width"] > 0
        assert a["height"] > 0
        assert a["x"] >= 0
        assert a["y"] >= 0
        assert a["x"] + a["width"] <= width
        assert a["y"] + a["height"] <= height
        for b in boxes[k + 1 :]:
            apart = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
            assert apart or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"], (a, b)
    for locator in (page.locator(".banner"), page.locator(".viewer"), page.get_by_role("button", name="Next")):
        box = locator.bounding_box()
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_finding_is_marked_and_stays(own, new_page):
    page = new_page(own.url)
    open_case(page, 2)
    shown = pane(page, "after")
    box = shown.bounding_box()
    page.get_by_role("button", name="Box", exact=True).click()
    page.mouse.move(box["x"] + 150, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 210, box["y"] + 260, steps=3)
    page.mouse.up()
    shown.locator(".mark.stored").wait_for()
    # Without a mouse: a point at the crosshair, which Alt and the arrows move by a pixel.
    page.get_by_role("button", name="Point", exact=True).click()
    page.locator(".case b").click()
    page.keyboard.press("Alt+ArrowRight")
    page.keyboard.press("Enter")
    shown.locator(".mark.point.stored").wait_for()
    marks = [event.geometry[0] for event in events(own.folder / "out" / "ct", "annotate")]
    assert [(mark["kind"], mark["plane"], mark["slice"], mark["series"]) for mark in marks] == [
        ("box", "stack", 12, "after"),
        ("point", "stack", 12, "after"),
    ]
    [[left, top], [right, bottom]] = marks[0]["corners"]
    scale = box["height"] / made_runs.SIDE / made_runs.ROW_MM
    # Pixels of the image: columns are 1 mm, rows 1.5 mm.
    assert right - left == pytest.approx(60 / scale / made_runs.COL_MM, abs=0.5)
    assert bottom - top == pytest.approx(60 / scale / made_runs.ROW_MM, abs=0.5)
    page.reload()
    settled(page)
    assert pane(page, "after").locator(".mark.stored").count() == 2
    page.keyboard.press("ArrowDown")
    pane(page, "after").locator(".mark.stored").first.wait_for(state="detached")


def test_volumes_in_different_places_are_not_linked(tmp_path, new_page):
    made_runs.mr_run(tmp_path, moved_mm=25.0)
    server = start(tmp_path, "--user", "anna")
    try:
        page = new_page(server.url)
        open_case(page, 1)
        page.locator(".notes", has_text="cannot be linked").wait_for()
        assert page.get_by_role("button", name="Swipe").count() == 0
        assert page.get_by_role("button", name="Difference").count() == 0
        pane(page, "after").click(position={"x": 100, "y": 100})
        page.keyboard.press("ArrowDown")
        pane(page, "after").get_by_text("Slice 14/24").wait_for()
        assert "Slice 13/24" in pane(page, "before").inner_text()
    finally:
        stop(server)
