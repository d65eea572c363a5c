"""Sign in, where a sign-in service is configured."""

import context
import streamlit as st
from look import empty


def _sign_in() -> None:
    st.title("Sign in")
    st.write("This review keeps a record of who decided what. Sign in with your account.")
    auth = context.known().config.auth
    if auth is not None and st.user.to_dict().get("is_logged_in"):
        if auth.role_of(dict(st.user)) is None:
            st.error("Your account has no role in this review. Ask whoever runs it, then sign in again.")
        else:
            st.info("Your session has ended because it was not used for a while. Your decisions are kept.")
    if st.button("Sign in", type="primary"):
        st.login()


if context.known().config.auth is None:
    empty("This browser refused a cookie", "The review needs one cookie of its own. Allow it for this page and reload.")
else:
    _sign_in()
