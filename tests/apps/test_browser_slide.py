"""Slides and reconstructions in a real browser: deep zoom, attention, jumps, scale; mask, coils, swipe."""

import pytest

from tests.apps.screenshots import same_as_committed

pytestmark = pytest.mark.browser
RECON, SLIDE = 4, 5


def open_slide(page):
    page.locator(f".worklist tbody tr:nth-child({SLIDE})").click()
    stage = page.locator(".slide .stage[data-open=true]")
    stage.wait_for()
    page.locator(".slide .stage[data-overlay]").wait_for()
    page.locator(".slide .stage[data-loaded=true]").wait_for()
    pictures = page.locator(".strip img")
    for k in range(pictures.count()):
        assert pictures.nth(k).evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    page.wait_for_timeout(500)
    return stage


def zoom_of(stage) -> float:
    return float(stage.get_attribute("data-zoom"))


def micrometres(page) -> float:
    number, unit = page.locator(".scale span").inner_text().split(" ")[:2]
    return float(number) * (1000 if unit.startswith("mm") else 1)


def test_zoom_attention_jump_and_scale(server, new_page):
    page = new_page(server.url)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    stage = open_slide(page)
    same_as_committed(page, "slide")
    # The bar is as long as it says: pixels on the screen times the size of one of them, 0.499 um on level 0.
    bar = page.locator(".scale div").bounding_box()["width"]
    assert bar / zoom_of(stage) * 0.499 == pytest.approx(micrometres(page), rel=0.02)
    before = zoom_of(stage)
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(900)
    # One step of the wheel is a factor of 1.2.
    assert zoom_of(stage) > 1.15 * before
    assert any("_files/" in url for url in asked)
    # A jump shows the patch, three times its size in view.
    page.locator(".strip button").nth(2).click()
    page.locator(".outline").wait_for()
    page.wait_for_timeout(900)
    outline = page.locator(".outline").bounding_box()
    assert outline["height"] == pytest.approx(box["height"] / 3, rel=0.05)
    assert outline["y"] + outline["height"] / 2 == pytest.approx(box["y"] + box["height"] / 2, abs=box["height"] * 0.03)
    # Attention off and on by key, and a higher percentile asks for another picture.
    button = page.get_by_role("button", name="Attention U")
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("u")
    assert button.get_attribute("aria-pressed") == "false"
    page.keyboard.press("u")
    page.get_by_label("Above percentile").fill("90")
    page.locator(".slide .stage[data-overlay='90']").wait_for()
    assert any("threshold=0.9" in url for url in asked)
    page.reload()
    page.locator(".slide .stage[data-overlay='90']").wait_for()


def test_a_reconstruction_shows_how_it_came_about(server, new_page):
    page = new_page(server.url)
    page.locator(f".worklist tbody tr:nth-child({RECON})").click()
    page.get_by_text("Acquisition").click()
    page.locator("img-comparison-slider").wait_for()
    words = page.locator(".recon").inner_text()
    for part in (
        "Sampling mask",
        "log magnitude",
        "Coil images",
        "Coil maps",
        "Reference",
        "SSIM",
        "2.1-fold",
        "4 coils",
    ):
        assert part in words
    pictures = page.locator(".recon img")
    for k in range(pictures.count()):
        pictures.nth(k).scroll_into_view_if_needed()
        assert pictures.nth(k).evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    first = page.locator(".recon .sheet img").nth(2).get_attribute("src")
    page.get_by_role("button", name="Next slice").click()
    page.get_by_text("Slice 2/2").wait_for()
    assert page.locator(".recon .sheet img").nth(2).get_attribute("src") != first
    page.get_by_text("Slice 2/2").click()
    same_as_committed(page, "acquisition")
