"""Adjudication: cases about which readers disagree or want a second look, and the word that settles them."""

from typing import Any

import context
import streamlit as st
from look import DECISIONS, TASKS, empty, problem

from medseq.errors import MedseqError
from medseq.inference.review_words import REASONS, reason_words

_MAY = ("adjudicator", "admin")


def _verdicts(state: Any) -> None:
    rows = [
        {
            "Reader": verdict.reviewer,
            "Decision": DECISIONS[verdict.decision] + (" (result changed since)" if verdict.stale else ""),
            "Reason": reason_words(verdict.reason_code),
            "Score": "" if verdict.score is None else str(verdict.score),
            "Comment": verdict.comment or "",
        }
        for verdict in state.verdicts.values()
    ]
    # Comments go in as text: a table cell renders no markup.
    st.dataframe(rows, hide_index=True, width="stretch")


def _case(item: Any) -> None:
    state = context.runs().state(item.token)
    with st.container(border=True):
        facts = " · ".join(word for word in (TASKS[item.task], item.modality, item.method, item.key_text) if word)
        st.text(f"{item.label}   {facts}")
        _verdicts(state)
        look, accept, reject, reason, comment = st.columns([1, 1, 1, 2, 3], vertical_alignment="bottom")
        if look.button("Look", key=f"look-{item.token}", width="stretch"):
            st.session_state.order = {"decision": item.status, "reviewer": context.reviewer()}
            context.open_item(item.token)
        reasons = REASONS[item.task]
        why = reason.selectbox(
            "Reason", [None, *reasons], format_func=lambda code: reasons.get(code, "none"), key=f"why-{item.token}"
        )
        words = comment.text_input("Comment", key=f"words-{item.token}", max_chars=2000)
        for column, decision, label in ((accept, "accept", "Accept"), (reject, "reject", "Reject")):
            if column.button(label, key=f"{decision}-{item.token}", width="stretch"):
                _settle(item, decision, why, words)


def _settle(item: Any, decision: str, why: str | None, words: str) -> None:
    if decision == "reject" and why is None:
        st.warning("Choose a reason, then reject again.")
        return
    context.decide(item, "adjudicate", decision=decision, reason_code=why, comment=words.strip() or None)
    st.rerun()


def _page() -> None:
    if context.role() not in _MAY:
        empty("Only adjudicators settle disagreements", "Ask whoever runs this review if you should be one.")
        return
    runs = context.runs()
    if context.is_blinded():
        empty("Readers are still blinded", "Adjudication opens when the review is started without --study.")
        return
    items = [
        item
        for status in ("disagreement", "second-look")
        for item in runs.page(decision=status, limit=100, reviewer=context.reviewer())[0]
    ]
    if not items:
        empty("Nothing to settle", "Cases come here when two readers disagree, or one asks for a second look.")
        return
    st.subheader(f"{len(items)} to settle")
    for item in items:
        _case(item)


try:
    _page()
except MedseqError as error:
    problem(error)
