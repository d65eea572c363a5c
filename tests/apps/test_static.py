"""What the pages are made of: themes that can be read, code of others with its licence, nothing from elsewhere."""

import re
import tomllib

import numpy as np
import pytest
from PIL import Image

from tests.apps.conftest import APP
from tests.apps.screenshots import ALLOWED, COMMITTED, VISIBLE, difference

STATIC = APP / "static"
OWN = sorted(path for path in STATIC.rglob("*") if path.suffix in (".js", ".css") and "vendor" not in path.parts)
# WCAG 2.2: 1.4.3 text, 1.4.11 parts of the interface.
TEXT, PART = 4.5, 3.0


def luminance(colour: str) -> float:
    """WCAG relative luminance of ``#rrggbb``."""
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_knows_the_extremes():
    # Both values stand in WCAG: 21 is the largest; #767676 on white is the best-known border of 4.5.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", ["dark", "light"])
def test_themes_can_be_read(name):
    theme = tomllib.loads((APP / "themes" / f"{name}.toml").read_text())["theme"]
    grounds = (theme["backgroundColor"], theme["secondaryBackgroundColor"])
    for ground in grounds:
        for colour in ("textColor", "linkColor", "greenColor", "redColor", "orangeColor"):
            assert contrast(theme[colour], ground) >= TEXT, (colour, ground)
        assert contrast(theme["primaryColor"], ground) >= PART
    assert {face["weight"] for face in theme["fontFaces"]} == {400, 600}
    for face in theme["fontFaces"]:
        assert (STATIC / face["url"].lstrip("/")).is_file()


def test_the_viewer_and_the_banner_can_be_read():
    css = (STATIC / "viewer" / "viewer.css").read_text()
    named = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", css))
    for ground in (named["ground"], "#20262c", "#000000"):
        assert contrast(named["ink"], ground) >= TEXT
        assert contrast(named["quiet"], ground) >= TEXT
    assert contrast(named["ink"], named["on"]) >= TEXT
    letter = re.search(r"\.letter \{[^}]*color: (#[0-9a-f]{6})", css)[1]
    assert contrast(letter, "#000000") >= TEXT
    banner = re.search(
        r"\.banner \{[^}]*background: (#[0-9a-f]{6}); color: (#[0-9a-f]{6})", (STATIC / "page.css").read_text()
    )
    assert contrast(banner[1], banner[2]) >= TEXT


def test_code_of_others_comes_with_its_licence():
    folders = [path for path in (STATIC / "vendor").iterdir() if path.is_dir()]
    table = (STATIC / "vendor" / "README.md").read_text()
    assert {path.name for path in folders} == {"openseadragon", "niivue", "img-comparison-slider", "inter"}
    for folder in folders:
        assert len((folder / "LICENSE").read_text()) > 500
        assert re.search(rf"\| `{folder.name}` \| [^|]+ \| \d+\.\d+\.\d+ \|", table)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_own_scripts_ask_nothing_of_elsewhere_and_write_no_markup(path):
    text = path.read_text()
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    # Comments and names go in as text only.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert text.count("\n") < 400


def test_every_imported_script_is_there():
    for path in OWN:
        for target in re.findall(r"(?:from|import\()\s*'(\.[^']+)'", path.read_text()):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_a_mirrored_picture_is_no_screenshot_of_the_same_page():
    name = COMMITTED / "ct-side-by-side.png"
    picture = np.asarray(Image.open(name).convert("RGB"))
    assert (difference(picture, picture) > VISIBLE).mean() == 0
    assert (difference(picture, picture[:, ::-1]) > VISIBLE).mean() > ALLOWED
    # A missing row of buttons is small, and still seen.
    without = picture.copy()
    without[95:160, :965] = picture[97, 20]
    assert (difference(picture, without) > VISIBLE).mean() > ALLOWED / 3
