"""Screenshots against the committed ones: what differs by more than an eye forgives, as a share of the picture."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import rgb2lab

COMMITTED = Path(__file__).with_name("screenshots")
BUILT = Path(__file__).resolve().parents[2] / "build" / "screenshots"
# Letters are drawn a little differently by every version of a font library: blocks of 4 pixels are compared.
BLOCK = 4
VISIBLE = 6.0
ALLOWED = 0.03


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of two RGB pictures in CIELAB (CIE 1976), by blocks."""
    return np.linalg.norm(rgb2lab(_blocks(a)) - rgb2lab(_blocks(b)), axis=-1)


def _blocks(picture: np.ndarray) -> np.ndarray:
    rows, cols = (side // BLOCK * BLOCK for side in picture.shape[:2])
    shaped = picture[:rows, :cols].reshape(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK, 3)
    return shaped.mean(axis=(1, 3)) / 255


def same_as_committed(page, name: str, masks: tuple[str, ...] = ()) -> None:
    """Keep a screenshot under build/screenshots and compare it; MEDSEQ_ACCEPT_SCREENSHOTS=1 commits to a new look."""
    BUILT.mkdir(parents=True, exist_ok=True)
    taken, known = BUILT / f"{name}.png", COMMITTED / f"{name}.png"
    page.screenshot(
        path=taken,
        mask=[page.locator(mask) for mask in masks],
        mask_color="#808080",
        animations="disabled",
        timeout=120_000,
    )
    if os.environ.get("MEDSEQ_ACCEPT_SCREENSHOTS") == "1":
        COMMITTED.mkdir(exist_ok=True)
        Image.open(taken).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(known, optimize=True)
    assert known.exists(), f"look at {taken}; if it is right, run again with MEDSEQ_ACCEPT_SCREENSHOTS=1"
    now, then = (np.asarray(Image.open(path).convert("RGB")) for path in (taken, known))
    assert now.shape == then.shape, f"{name}: {now.shape} is not the size of {then.shape}"
    apart = difference(now, then)
    share = float((apart > VISIBLE).mean())
    if share > ALLOWED:
        spread = np.clip(apart / 50 * 255, 0, 255).astype(np.uint8).repeat(BLOCK, 0).repeat(BLOCK, 1)
        rows = min(spread.shape[0], now.shape[0])
        triptych = np.concatenate([then[:rows], now[:rows], np.dstack([spread] * 3)[:rows]], axis=1)
        Image.fromarray(triptych).save(BUILT / f"{name}.triptych.png")
    assert share <= ALLOWED, f"{name}: {100 * share:.1f} % differs from the committed one, see build/screenshots"
