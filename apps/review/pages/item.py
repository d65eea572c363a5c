"""One case: its pictures on the left, what the reader decides on the right."""

from html import escape
from typing import Any

import context
import streamlit as st
from case_header import header
from components import free_planes, reconstruction, slide_viewer, volume_viewer
from look import again, empty, in_words, problem
from panel import panel

from medseq.errors import MedseqError

_VIEWS = {
    "planes": "Planes",
    "recon": "Acquisition",
    "free": "Free planes, 3-D",
    "slide": "Slide",
    "quality": "Tissue",
}


_TISSUE = {
    "tissue_mm2": "Tissue, mm²",
    "tissue_share": "Share of the slide that is tissue",
    "focus_median": "Focus (hundreds: sharp, below 20: blurred)",
    "blurred_share": "Share of the tissue that is blurred",
    "pen_share": "Share under ink (orange)",
    "fold_share": "Share in folds (blue)",
    "unreadable_share": "Share that cannot be read",
}


def _views(item: Any) -> list[str]:
    if item.task == "mil":
        return ["slide", "quality"]
    views = ["planes"]
    if item.task == "recon":
        views.append("recon")
    return [*views, "free"]


# Signed addresses expire; new ones come before.
@st.fragment(run_every=300)
@in_words
def _volume(item: Any) -> None:
    urls = {kind: context.address(kind, item) for kind in ("info", "slice", "value", "roi")}
    marks = context.runs().state(item.token).annotations
    data = {"item": item.token, "urls": urls, "marks": [dict(mark) for mark in marks]}
    result = volume_viewer(data, key=f"volume-{item.token}")
    st.session_state.view = result.view
    if result.mark:
        context.record(item, "annotate", geometry=[dict(result.mark)], view=result.view)
        again()


@st.fragment(run_every=300)
@in_words
def _slide(item: Any) -> None:
    urls = {kind: context.address(kind, item) for kind in ("slide-info", "overlay", "patch", "stored")}
    urls["dzi"] = context.address("slide", item).replace(item.token, f"{item.token}.dzi", 1)
    result = slide_viewer({"item": item.token, "label": item.label, "urls": urls}, key=f"slide-{item.token}")
    st.session_state.view = result.view


def _quality(item: Any) -> None:
    """Which tissue was found, and what may disturb the model."""
    try:
        numbers = context.known().slide(item.token).quality()[1]
    except MedseqError as error:
        problem(error)
        return
    st.html(f'<img class="quality" alt="Tissue, ink and folds" src="{context.address("quality", item)}">')
    known = {words: numbers[name] for name, words in _TISSUE.items() if numbers.get(name) is not None}
    facts = "".join(f"<dt>{escape(words)}</dt><dd>{value:.3g}</dd>" for words, value in known.items())
    st.html(f'<dl class="facts">{facts}</dl>')


def _pictures(item: Any, view: str | None) -> None:
    if item.state != "done":
        empty(
            "No result to look at",
            item.reason or "The run has not come to this case yet. This page shows it when it is done.",
        )
    elif view == "slide":
        _slide(item)
    elif view == "recon":
        urls = {kind: context.address(kind, item) for kind in ("recon", "recon-info", "info")}
        reconstruction({"item": item.token, "urls": urls}, key=f"recon-{item.token}")
    elif view == "free":
        urls = {kind: context.address(kind, item) for kind in ("info", "nifti")}
        free_planes({"item": item.token, "urls": urls}, key=f"free-{item.token}")
    elif view == "quality":
        _quality(item)
    else:
        _volume(item)


def _page() -> None:
    token = st.query_params.get("item")
    if not token:
        empty(
            "No case is open", "Open one from the worklist: click a row, or walk with the arrow keys and press Enter."
        )
        return
    runs = context.runs()
    item = runs.item(token, context.reviewer())
    context.opened(item)
    view = header(item, {name: _VIEWS[name] for name in _views(item)})
    with st.container(key="case"):
        pictures, side = st.columns([3.3, 1], gap="small")
    with pictures:
        _pictures(item, view)
    with side:
        panel(item)


try:
    _page()
except MedseqError as error:
    problem(error)
