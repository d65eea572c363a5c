"""The review application: Streamlit pages with routes for pictures beside them. Start it by ``medseq review OUT``.

The pages (``main.py``) run as scripts; the routes (``routes.py``) answer for single pictures and tiles, outside of any
script, and check every address themselves.
"""

import sys
from pathlib import Path

import streamlit as st

from medseq.inference.review_service import service

_HERE = Path(__file__).resolve().parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

from routes import middleware, routes  # noqa: E402  (found once its folder is on the path)

_config = service().config
service().start_pushing()
app = st.App(
    _HERE / "main.py",
    routes=routes(),
    middleware=middleware(),
    secrets={"auth": dict(_config.auth.auth)} if _config.auth else None,
)
