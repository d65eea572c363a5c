"""The worklist: every case of the runs under review, found, sorted and opened."""

from typing import Any

import context
import streamlit as st
from components import worklist_table
from look import DECISIONS, STATES, TASKS, again, empty, in_words, problem
from worklist_rows import columns, row

from medseq.errors import MedseqError

PAGE = 50


def _filters(runs: Any) -> dict[str, Any]:
    """The row of fields above the table; what they ask for, in the words of `Runs.page`."""
    blinded = context.is_blinded()
    search, task, decision, state, whose, source = st.columns([2.2, 1, 1, 1, 1, 1.2], vertical_alignment="bottom")
    words: dict[str, Any] = {
        "search": search.text_input("Search", key="search", placeholder="case, model, flag, reason"),
        "task": task.selectbox("Task", [None, *TASKS], format_func=lambda v: TASKS.get(v, "all"), key="task"),
        "decision": decision.selectbox(
            "Review", [None, *DECISIONS], format_func=lambda v: DECISIONS.get(v, "all"), key="decision"
        ),
        "state": state.selectbox("Run state", [None, *STATES], format_func=lambda v: STATES.get(v, "all"), key="state"),
    }
    me = context.reviewer()
    names = {None: "anyone", me: "me", "": "nobody"}
    words["assignee"] = whose.selectbox("Assigned to", list(names), format_func=names.get, key="assignee")
    infos = {info.number: info for info in runs.runs()}
    if len(infos) > 1 and not blinded:
        name = {None: "all"} | {number: info.name for number, info in infos.items()}
        words["run"] = source.selectbox("Run", list(name), format_func=name.get, key="run")
    return words


def _progress(runs: Any) -> str:
    done = runs.counts("status", context.reviewer())
    decided = sum(number for status, number in done.items() if status in ("accept", "reject", "second-look"))
    total = sum(done.values())
    return f"You have decided {decided} of {total} finished cases."


def _messages(runs: Any) -> bool:
    """What is wrong with a run, and whether one is going on."""
    for info in runs.runs():
        if info.message:
            st.warning(f"{info.name}: {info.message}")
    return any(info.live for info in runs.runs())


@in_words
def _table(words: dict[str, Any]) -> None:
    runs = context.runs()
    live = _messages(runs)
    sort = st.session_state.get("sort") or ("study" if runs.study else "found")
    # A filter that changes starts on the first page again.
    if st.session_state.get("asked") != words:
        st.session_state.update(asked=words, page=0)
    page = st.session_state.get("page", 0)
    items, total = runs.page(**words, sort=sort, offset=page * PAGE, limit=PAGE, reviewer=context.reviewer())
    if not total:
        if any(value not in (None, "") for value in words.values()):
            empty("No case fits these filters", "Clear the search or choose 'all' in the fields above.")
        else:
            empty("No case yet", "Start a run on the page 'Run', or open another output folder with medseq review.")
        return
    first = page * PAGE + 1
    caption = f"Cases {first}-{first + len(items) - 1} of {total:,}. {_progress(runs)}"
    if live:
        caption += " A run is going on; new results appear by themselves."
    blinded = context.is_blinded()
    data = {
        "caption": caption,
        "columns": columns(blinded),
        "sort": sort,
        "rows": [row(item, blinded) for item in items],
    }
    chosen = worklist_table(data, key="worklist")
    if chosen.sort:
        st.session_state.update(sort=chosen.sort, page=0)
        again()
    if chosen.open:
        st.session_state.order = {**words, "sort": sort, "reviewer": context.reviewer()}
        st.switch_page("pages/item.py", query_params={"item": chosen.open})
    if total > PAGE:
        _turn(page, -(-total // PAGE))


def _turn(page: int, pages: int) -> None:
    back, where, forth, _ = st.columns([1, 1, 1, 6], vertical_alignment="center")
    if back.button("Previous page", disabled=page == 0):
        st.session_state.page = page - 1
        again()
    where.write(f"Page {page + 1} of {pages}")
    if forth.button("Next page", disabled=page + 1 >= pages):
        st.session_state.page = page + 1
        again()


try:
    asked = _filters(context.runs())
    # A run that goes on is looked at again and again; otherwise the page rests.
    live_now = any(info.live for info in context.runs().runs())
    st.fragment(_table, run_every=4 if live_now else None)(asked)
except MedseqError as error:
    problem(error)
