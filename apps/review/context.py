"""Who looks at what: the runs under review, the person at the screen, and signed addresses of pictures."""
import os
from pathlib import Path

import streamlit as st

from medseq.inference.review_key import audit_key
from medseq.inference.review_runs import Runs, Study


@st.cache_resource
def runs() -> Runs:
    folders = [Path(p) for p in os.environ["MEDSEQ_REVIEW"].split(":")]
    return Runs(folders, audit_key(folders[0]).secret)


def is_signed_in() -> bool:
    return True


def reviewer() -> str:
    return "local"


def role() -> str:
    return "admin"


def is_blinded() -> bool:
    study = runs().study
    return study is not None and study.blinded


def urls(item):
    return {k: f"/api/{k}/{item.token}?t=0" for k in ("info", "slice", "value", "roi")}


def opened(item):
    if st.session_state.get("open") != item.token:
        st.session_state.open = item.token
        record(item, "open")


def record(item, kind, **values):
    return runs().record(item.token, reviewer(), kind, role=role(), **values)


def open_item(token):
    st.switch_page("pages/item.py", query_params={"item": token})


def broken_outputs(item):
    return []


def reason_words(code):
    return code
