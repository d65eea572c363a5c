"""Sign in, where a sign-in service is configured."""

import context
import streamlit as st

st.title("Sign in")
st.write("This review keeps a record of who decided what. Sign in with your account.")
auth = context.known().config.auth
if st.user.is_logged_in and auth is not None and auth.role_of(dict(st.user)) is None:
    st.error("Your account has no role in this review. Ask whoever runs it, then sign in again.")
elif st.user.is_logged_in:
    st.info("Your session has ended because it was not used for a while. Your decisions are kept.")
if st.button("Sign in", type="primary"):
    st.login()
