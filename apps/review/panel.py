"""Beside the pictures: the decision, why, a score, a comment; what the run noted and what others decided."""

from html import escape
from typing import Any

import context
import streamlit as st
from look import DECISIONS, again, in_words

from medseq.errors import MedseqError
from medseq.inference.review_words import REASONS, reason_words

__all__ = ["panel"]

_SAID = {"accept": "accepted", "reject": "rejected", "second-look": "marked for a second look"}
_SCORES = {1: "1", 2: "2", 3: "3", 4: "4", 5: "5"}


@st.fragment
@in_words
def panel(item: Any) -> None:
    """The panel of a case."""
    runs = context.runs()
    state = runs.state(item.token)
    mine = state.verdicts.get(context.reviewer())
    _standing(mine)
    if not runs.run_of(item.token).writable:
        st.error("Decisions cannot be recorded here: the review store of this run is not writable.")
    else:
        _decide(item, mine)
        _assign(item, state)
    _turn(item)
    if not context.is_blinded():
        _others(item, state)
        _run_notes(item)


def _standing(mine: Any) -> None:
    if mine is None:
        st.markdown("**Not decided yet**")
        return
    colour = {"accept": "green", "reject": "red", "second-look": "orange"}[mine.decision]
    why = f", {reason_words(mine.reason_code)}" if mine.reason_code else ""
    st.markdown(f":{colour}[**You {_SAID[mine.decision]} this case**]{why} ({mine.ts_utc[11:16]} UTC)")


def _decide(item: Any, mine: Any) -> None:
    key = item.token
    reasons = REASONS[item.task]
    left, right = st.columns(2)
    pressed = None
    if left.button("Accept", shortcut="a", width="stretch", key=f"accept-{key}"):
        pressed = "accept"
    if right.button("Reject", shortcut="x", width="stretch", key=f"reject-{key}"):
        pressed = "reject"
    if left.button("Look again", shortcut="l", width="stretch", key=f"look-{key}"):
        pressed = "second-look"
    undo = right.button("Undo", shortcut="z", width="stretch", key=f"undo-{key}")
    with st.container(key="reason"):
        reason = st.selectbox(
            "Reason (W)",
            list(reasons),
            format_func=reasons.get,
            index=list(reasons).index(mine.reason_code) if mine and mine.reason_code in reasons else None,
            placeholder="Choose why",
            key=f"reason-{key}",
        )
    score = st.segmented_control(
        "Quality, 1 poor to 5 excellent", list(_SCORES), default=mine.score if mine else None, key=f"score-{key}"
    )
    with st.container(key="comment"):
        comment = st.text_area(
            "Comment (M)", value=(mine.comment or "") if mine else "", height=80, max_chars=2000, key=f"comment-{key}"
        )
    if undo:
        _undo(item)
    elif pressed == "reject" and reason is None:
        st.warning("Choose a reason first (W), then press X again.")
    elif pressed:
        _record(item, pressed, reason, score, comment)


def _record(item: Any, decision: str, reason: str | None, score: int | None, comment: str) -> None:
    try:
        context.decide(
            item,
            decision=decision,
            reason_code=reason if decision != "accept" else None,
            score=score,
            comment=comment.strip() or None,
            view=st.session_state.get("view"),
        )
    except MedseqError as error:
        st.error(f"Not recorded. {error}")
        return
    if context.runs().study and (token := _neighbours(item)[1]):
        context.open_item(token)
    again()


def _undo(item: Any) -> None:
    if context.undo(item) is None:
        st.info("There is nothing of yours to take back.")
        return
    # The fields show again what was stored before.
    for name in ("reason", "score", "comment"):
        st.session_state.pop(f"{name}-{item.token}", None)
    again()


def _neighbours(item: Any) -> tuple[str | None, str | None]:
    words = st.session_state.get("order") or {"reviewer": context.reviewer()}
    return context.runs().neighbours(item.token, **words)


def _assign(item: Any, state: Any) -> None:
    mine = state.assignee == context.reviewer()
    words, act = st.columns(2, vertical_alignment="center")
    words.text(f"Assigned to {'you' if mine else state.assignee}" if state.assignee else "Assigned to nobody")
    if act.button("Give back" if mine else "Take over", width="stretch", key=f"assign-{item.token}"):
        context.record(item, "assign", decision="" if mine else context.reviewer())
        again()


def _turn(item: Any) -> None:
    before, after = _neighbours(item)
    left, right = st.columns(2)
    if left.button("Previous", shortcut="p", width="stretch", disabled=before is None, key="previous"):
        context.open_item(before)
    if right.button("Next", shortcut="n", width="stretch", disabled=after is None, key="next"):
        context.open_item(after)


def _others(item: Any, state: Any) -> None:
    others = [verdict for name, verdict in state.verdicts.items() if name != context.reviewer()]
    for verdict in [*others, *([state.adjudication] if state.adjudication else [])]:
        label = "Adjudication" if verdict is state.adjudication else verdict.reviewer
        st.text(f"{label}: {DECISIONS[verdict.decision]}" + (f" - {verdict.comment}" if verdict.comment else ""))


def _scores(item: Any) -> None:
    """Probabilities of the classes, and how far they may be trusted."""
    view = context.known().slide(item.token)
    classes, probabilities = view.scores.get("classes"), view.scores.get("probabilities")
    if classes and probabilities:
        pairs = sorted(zip(probabilities, classes, strict=True), reverse=True)
        rows = "".join(f"<dt>{probability:.2f}</dt><dd>{escape(str(name))}</dd>" for probability, name in pairs)
        st.html(f'<dl class="facts" aria-label="Class probabilities">{rows}</dl>')
    temperature = view.scores.get("temperature")
    st.caption(
        "The probabilities are not calibrated: 0.60 need not mean 60 of 100."
        if temperature is None
        else f"Probabilities calibrated on other slides (temperature {temperature:.2f})."
    )


def _run_notes(item: Any) -> None:
    if item.task == "mil" and item.state == "done":
        _scores(item)
    for flag in item.flags:
        show = {"fail": st.error, "warn": st.warning}.get(flag["level"], st.info)
        show(flag["message"])
    with st.expander("Numbers of the run"):
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{value:.4g}</dd>" for name, value in item.metrics.items())
        st.html(f'<dl class="facts">{rows}</dl>')
