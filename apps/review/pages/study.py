"""A blinded reader study: what it hides, how far this reader is, and the way to the next case."""

import context
import streamlit as st
from look import empty, problem

from medseq.errors import MedseqError


def _page() -> None:
    runs = context.runs()
    if runs.study is None:
        empty(
            "No reader study is running",
            "Start the review with a name for the study: `medseq review OUT --study NAME`. Cases then come in an order"
            " of their own for every reader, without the names of methods and without other readers' decisions.",
        )
        return
    st.subheader(f"Reader study: {runs.study.name}")
    st.write(
        "Cases come in an order that was drawn for you. Methods, key numbers and other readers' decisions are hidden."
        " The time that you spend on a case is recorded."
    )
    counts = runs.counts("status", context.reviewer())
    total = sum(counts.values())
    left = counts.get("unreviewed", 0)
    st.progress((total - left) / total if total else 1.0, text=f"{total - left} of {total} cases read")
    if not left:
        st.success("You have read all cases. Thank you. You may still change a decision from the worklist.")
        return
    order = {"sort": "study", "reviewer": context.reviewer(), "decision": "unreviewed"}
    items, _ = runs.page(**order, limit=1)
    words = "Begin" if left == total else "Continue"
    if st.button(words, type="primary", shortcut="n"):
        st.session_state.order = {"sort": "study", "reviewer": context.reviewer()}
        context.open_item(items[0].token)


try:
    _page()
except MedseqError as error:
    problem(error)
