"""The first page: a list of what is under review. Placeholder of the pages."""

import streamlit as st

from medseq.inference.review_access import COOKIE
from medseq.inference.review_service import service

st.set_page_config(page_title="medseq review", layout="wide")
st.warning("Research use only. Not for diagnosis.")
known = service()
if known.runs is None:
    st.info("Nothing is under review. Start with: medseq review OUT")
    st.stop()
cookie = st.context.cookies.get(COOKIE, "")
if cookie and known.config.auth is None:
    known.access.sign_in(cookie, known.config.user, "admin")
rows, total = known.runs.page()
st.write(f"{total} items")
for row in rows:
    st.write(row.label, row.task, row.state, row.key_text or "", row.status)
    if cookie and row.state == "done" and row.task != "mil":
        st.html(f'<img src="{known.address("slice", row.token, cookie, role="after")}" width="256">')
