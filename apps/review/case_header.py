"""The line above a case: what it is, how the run judged it, and the choice of views."""

from html import escape
from typing import Any

import context
import streamlit as st
from look import TASKS

__all__ = ["header"]


def header(item: Any, views: dict[str, str]) -> str | None:
    """Show the line; the view that was chosen, if there is a choice."""
    facts = [TASKS[item.task], item.modality, item.method, item.key_text]
    if item.uncertainty is not None:
        facts.append(f"uncertainty {item.uncertainty:.3g}")
    words = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    line, choice = st.columns([3.3, 1] if len(views) < 3 else [2.2, 1], vertical_alignment="center")
    line.html(f'<div class="case"><b>{escape(item.label)}</b>{words}</div>')
    if item.stale:
        st.error("The result has changed since it was reviewed. Decide again.", icon=":material/error:")
    for output in context.broken_outputs(item):
        st.error(f"{output}. What you see may not be what the run wrote.", icon=":material/error:")
    if len(views) < 2:
        return next(iter(views), None)
    return choice.segmented_control(
        "View",
        list(views),
        format_func=views.get,
        default=next(iter(views)),
        key=f"view-{item.token}",
        label_visibility="collapsed",
    )
