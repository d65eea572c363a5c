"""Who is at the screen and what is under review: the pages' way to `medseq.inference.review_service`.

Pages run as scripts, and parts of them run alone (fragments): so every change asks for the session again.
"""

import time
from typing import Any

import streamlit as st

from medseq.errors import InputError
from medseq.inference.review_access import COOKIE, Session
from medseq.inference.review_runs import Runs, WorkItem
from medseq.inference.review_service import Service, service

__all__ = [
    "address",
    "broken_outputs",
    "cookie",
    "decide",
    "is_blinded",
    "open_item",
    "opened",
    "record",
    "reviewer",
    "role",
    "runs",
    "session",
    "sign_out",
    "undo",
]

# A sign-in this old opens no new session: whoever was away signs in again.
_FRESH_S = 120.0
_PROBLEMS = {"missing": "deleted", "changed": "changed", "unreadable": "not readable"}


def known() -> Service:
    """The service of this process."""
    return service()


def cookie() -> str:
    """The browser's session cookie; empty where there is none."""
    return str(st.context.cookies.get(COOKIE, ""))


def session() -> Session | None:
    """The session of this browser, begun if the person may; None if they must sign in."""
    found = known().access.session(cookie())
    if found is not None:
        return found
    auth = known().config.auth
    if not cookie():
        return None
    if auth is None:
        return known().access.sign_in(cookie(), known().config.user, "admin")
    if not st.user.to_dict().get("is_logged_in"):
        return None
    claims = dict(st.user)
    user, held = auth.user_of(claims), auth.role_of(claims)
    if not user or held is None or time.time() - float(claims.get("iat", 0)) > _FRESH_S:
        return None
    known().log.write(user, "sign-in", "")
    return known().access.sign_in(cookie(), user, held)  # type: ignore[arg-type]


def sign_out() -> None:
    """End the session here and of the sign-in."""
    known().access.sign_out(cookie())
    st.logout()


def reviewer() -> str:
    """Name of the person, as decisions carry it.

    Raises:
        InputError: The session has ended.
    """
    return _present().user


def role() -> str:
    """``reviewer``, ``adjudicator`` or ``admin``."""
    return _present().role


def runs() -> Runs:
    """The runs under review."""
    return known().require_runs()


def is_blinded() -> bool:
    """Whether methods and other readers' decisions are hidden."""
    study = runs().study
    return study is not None and study.blinded


def address(kind: str, item: WorkItem, **query: object) -> str:
    """A signed address of the pictures of an item."""
    return known().address(kind, item.token, cookie(), **query)


def record(item: WorkItem, kind: str, **values: Any) -> int | None:
    """Record an event of this person about an item."""
    return runs().record(item.token, reviewer(), kind, role=role(), **values)


def decide(item: WorkItem, kind: str = "decide", **values: Any) -> None:
    """Record a decision of this person; what is accepted may go to the archive."""
    known().decide(item.token, reviewer(), kind, role=role(), **values)


def undo(item: WorkItem) -> int | None:
    """Take back this person's last act on an item; None if there is none."""
    return known().undo(item.token, reviewer(), role())


def opened(item: WorkItem) -> None:
    """Note which case is open, so that the time spent on it is known."""
    before = st.session_state.get("open")
    if before == item.token:
        return
    st.session_state.open = item.token
    if not runs().run_of(item.token).writable:
        return
    if before is not None:
        closing = runs().item(before)
        record(closing, "close")
    record(item, "open")
    known().log.write(reviewer(), "open", item.token)


def open_item(token: str) -> None:
    """Go to another case."""
    st.switch_page("pages/item.py", query_params={"item": token})


def broken_outputs(item: WorkItem) -> list[str]:
    """Outputs that are not what the run wrote, in words."""
    found: dict[str, int] = {}
    for output in runs().outputs(item.token):
        if output.problem is not None:
            words = f"{output.role} was {_PROBLEMS.get(output.problem, output.problem)} since the run"
            found[words] = found.get(words, 0) + 1
    return [words if number == 1 else f"{words} ({number} files)" for words, number in found.items()]


def _present() -> Session:
    found = session()
    if found is None:
        raise InputError("your session has ended", found="no use for a while", remedy="reload the page and sign in")
    return found
