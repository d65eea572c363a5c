"""What every page looks like: the banner, the little style sheet, words for states, empty and broken pages."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from medseq.errors import MedseqError

__all__ = ["DECISIONS", "STATES", "TASKS", "TONES", "again", "banner", "empty", "in_words", "page_style", "problem"]

_STYLE = Path(__file__).resolve().parent / "static" / "page.css"

TASKS = {"restore": "Restoration", "recon": "Reconstruction", "mil": "Slide"}
STATES = {"queued": "waiting", "running": "in work", "done": "done", "failed": "failed", "skipped": "not an input"}
DECISIONS = {
    "unreviewed": "to review",
    "accept": "accepted",
    "reject": "rejected",
    "second-look": "second look",
    "disagreement": "disagreement",
}
# Colours repeat what the words say; nobody has to tell them apart.
TONES = {
    "unreviewed": "quiet",
    "accept": "good",
    "reject": "bad",
    "second-look": "warn",
    "disagreement": "warn",
    "done": "quiet",
    "failed": "bad",
    "running": "warn",
    "queued": "quiet",
    "skipped": "quiet",
}


def page_style() -> None:
    """Put in the style sheet."""
    st.html(f"<style>{_STYLE.read_text(encoding='utf-8')}</style>")


def banner() -> None:
    """Say on every page what this is not for."""
    st.html('<div class="banner" role="note">Research use only. Not for diagnosis.</div>')


def again() -> None:
    """Run this part of the page again, or all of it where it did not run alone (a click that came with another one)."""
    try:
        st.rerun(scope="fragment")
    except StreamlitAPIException:
        st.rerun()


def empty(what: str, todo: str) -> None:
    """A page with nothing on it says what to do."""
    st.subheader(what)
    st.write(todo)


def in_words(part: Callable[..., None]) -> Callable[..., None]:
    """A part of a page whose errors are shown where it stands; the rest of the page goes on."""

    @wraps(part)
    def shown(*args: Any) -> None:
        try:
            part(*args)
        except MedseqError as error:
            problem(error)

    return shown


def problem(error: Exception) -> None:
    """An error in words, as the library wrote it."""
    st.error(str(error), icon=":material/error:")
