"""The pages of the review and what all of them share: theme, banner, sign-in, navigation. Streamlit runs this file."""

import context
import streamlit as st
from look import banner, empty, page_style

st.set_page_config(page_title="medseq review", layout="wide", initial_sidebar_state="collapsed")
page_style()
banner()

if context.session() is None:
    pages = [st.Page("pages/login.py", title="Sign in")]
elif context.known().runs is None and not context.known().config.roots:
    empty("Nothing is under review", "Start the review with the output folder of a run: `medseq review OUT`.")
    st.stop()
else:
    pages = [
        st.Page("pages/worklist.py", title="Worklist", default=True),
        st.Page("pages/item.py", title="Case", url_path="item"),
        st.Page("pages/study.py", title="Reader study", url_path="study"),
        st.Page("pages/adjudication.py", title="Adjudication", url_path="adjudication"),
        st.Page("pages/run.py", title="Run", url_path="run"),
        st.Page("pages/audit.py", title="Audit and export", url_path="audit"),
    ]
    if context.known().config.auth is not None:
        pages.append(st.Page(context.sign_out, title="Sign out", url_path="sign-out"))
st.navigation(pages, position="top").run()
