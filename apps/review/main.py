"""The pages of the review and what all of them share: theme, banner, sign-in, navigation. Streamlit runs this file."""

import streamlit as st

import context
from look import banner, page_style

st.set_page_config(page_title="medseq review", layout="wide", initial_sidebar_state="collapsed")
page_style()
banner()

if not context.is_signed_in():
    pages = [st.Page("pages/login.py", title="Sign in", url_path="login")]
else:
    pages = [
        st.Page("pages/worklist.py", title="Worklist", default=True),
        st.Page("pages/item.py", title="Case", url_path="item"),
        st.Page("pages/study.py", title="Reader study", url_path="study"),
        st.Page("pages/adjudication.py", title="Adjudication", url_path="adjudication"),
        st.Page("pages/run.py", title="Run", url_path="run"),
        st.Page("pages/audit.py", title="Audit and export", url_path="audit"),
    ]
st.navigation(pages, position="top").run()
