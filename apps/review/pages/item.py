"""One case: its pictures on the left, what the reader decides on the right."""

from typing import Any

import streamlit as st

import context
from case_header import header
from components import slide_viewer, volume_viewer
from look import empty, problem
from medseq.errors import MedseqError
from panel import panel
from recon_view import recon_view

_VIEWS = {"planes": "Planes", "recon": "Acquisition", "free": "Free planes, 3-D"}


def _views(item: Any) -> list[str]:
    if item.task == "mil":
        return []
    views = ["planes"]
    if item.task == "recon":
        views.append("recon")
    return [*views, "free"]


# Signed addresses expire; new ones come before.
@st.fragment(run_every=300)
def _volume(item: Any) -> None:
    urls = {kind: context.address(kind, item) for kind in ("info", "slice", "value", "roi")}
    marks = context.runs().state(item.token).annotations
    data = {"item": item.token, "urls": urls, "marks": [dict(mark) for mark in marks]}
    result = volume_viewer(data, key=f"volume-{item.token}")
    st.session_state.view = result.view
    if result.mark:
        context.record(item, "annotate", geometry=[dict(result.mark)], view=result.view)
        st.rerun(scope="fragment")


@st.fragment(run_every=300)
def _slide(item: Any) -> None:
    urls = {kind: context.address(kind, item) for kind in ("slide", "overlay")}
    result = slide_viewer({"item": item.token, "urls": urls}, key=f"slide-{item.token}")
    st.session_state.view = result.view


def _pictures(item: Any, view: str | None) -> None:
    if item.state != "done":
        empty("No result to look at", item.reason or "The run has not come to this case yet. This page shows it when it is done.")
    elif item.task == "mil":
        _slide(item)
    elif view == "recon":
        recon_view(item)
    elif view == "free":
        from free_view import free_view

        free_view(item)
    else:
        _volume(item)


def _page() -> None:
    token = st.query_params.get("item")
    if not token:
        empty("No case is open", "Open one from the worklist: click a row, or walk with the arrow keys and press Enter.")
        return
    runs = context.runs()
    item = runs.item(token, context.reviewer())
    context.opened(item)
    view = header(item, {name: _VIEWS[name] for name in _views(item)})
    pictures, side = st.columns([3.3, 1], gap="small")
    with pictures:
        _pictures(item, view)
    with side:
        panel(item)


try:
    _page()
except MedseqError as error:
    problem(error)
