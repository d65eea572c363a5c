"""The parts of the pages that are drawn by our own JavaScript: worklist, viewer of volumes, of slides, free planes.

Scripts come from this app's own address (`/assets`). A component of Streamlit runs from a text without address, so it
loads the module by an absolute one.
"""

from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["free_planes", "reconstruction", "slide_viewer", "volume_viewer", "worklist_table"]

_STATIC = Path(__file__).resolve().parent / "static"
# The module is asked for by its age: after an update no browser keeps the old one.
_LOADER = """
export default function (component) {
  const loading = import(new URL('/assets/%s?v=%d', location.href).href);
  let gone = false;
  loading.then((module) => { if (!gone) module.mount(component); });
  return () => { gone = true; loading.then((module) => module.unmount(component)); };
}
"""


def _text(*names: str) -> str:
    return "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


def _loader(module: str) -> str:
    newest = max(path.stat().st_mtime_ns for path in (_STATIC / module).parent.glob("*.js"))
    return _LOADER % (module, newest)


_volume = st.components.v2.component(
    "medseq_volume",
    html='<div class="viewer volume"></div>',
    css=_text("viewer/viewer.css"),
    js=_loader("viewer/mount.js"),
)
_slide = st.components.v2.component(
    "medseq_slide",
    html='<div class="viewer slide"></div>',
    css=_text("viewer/viewer.css", "slide/slide.css"),
    js=_loader("slide/slide.js"),
)
_recon = st.components.v2.component(
    "medseq_recon",
    html='<div class="viewer recon"></div>',
    css=_text("viewer/viewer.css", "recon/recon.css", "vendor/img-comparison-slider/styles.css"),
    js=_loader("recon/recon.js"),
)
_free = st.components.v2.component(
    "medseq_free",
    html='<div class="viewer free"></div>',
    css=_text("viewer/viewer.css", "free/free.css"),
    js=_loader("free/free.js"),
)
_table = st.components.v2.component(
    "medseq_worklist",
    html='<div class="worklist"></div>',
    css=_text("worklist/table.css"),
    js=_loader("worklist/table.js"),
)


def volume_viewer(data: dict[str, Any], key: str) -> Any:
    """Planes of a volume; the result has `view` (what is on the screen) and `mark` (a new point or box)."""
    return _volume(data=data, key=key, default={"view": None}, on_view_change=_nothing, on_mark_change=_nothing)


def slide_viewer(data: dict[str, Any], key: str) -> Any:
    """A slide with its attention; the result has `view`."""
    return _slide(data=data, key=key, default={"view": None}, on_view_change=_nothing)


def reconstruction(data: dict[str, Any], key: str) -> None:
    """Sampling, coils, zero-filled image, result and reference."""
    _recon(data=data, key=key)


def free_planes(data: dict[str, Any], key: str) -> None:
    """Planes in any place and a 3-D view, computed by the browser."""
    _free(data=data, key=key)


def worklist_table(data: dict[str, Any], key: str) -> Any:
    """The worklist; the result has `open` (a token) and `sort` (a word), each for one run of the page."""
    return _table(data=data, key=key, on_open_change=_nothing, on_sort_change=_nothing)


def _nothing() -> None:
    """A component tells its values only to those who listen."""
