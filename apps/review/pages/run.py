"""Start a run over a folder or an upload, watch it, stop it."""

from pathlib import Path
from typing import Any

import context
import streamlit as st
from look import STATES, again, empty, in_words, problem

from medseq.errors import MedseqError

_ENDED = {
    "done": "finished",
    "failed": "failed",
    "cancelled": "stopped",
    "interrupted": "interrupted; start it again, what is done stays done",
}
_FILES = ["zip", "tar", "tgz", "gz", "nii", "dcm", "h5", "svs", "tif", "tiff"]


def _folder(jobs: Any) -> Path | None:
    """A folder below one that the server may read, chosen level by level."""
    if not jobs.roots:
        st.write("This server may read no folder. Upload a file, or start the review with `--root FOLDER`.")
        return None
    names = [root.name for root in jobs.roots]
    number = st.selectbox("Folder", range(len(names)), format_func=names.__getitem__, key="root")
    way = [str(number)]
    while below := jobs.folders(way):
        inside = st.selectbox(
            f"In {names[number] if len(way) == 1 else way[-1]}",
            [None, *below],
            format_func=lambda v: v or "everything here",
            key=f"in-{'-'.join(way)}",
        )
        if inside is None:
            break
        way.append(inside)
    return jobs.resolve(way)


def _begin(jobs: Any) -> None:
    st.subheader("Start a run")
    bundle = st.selectbox("Model", jobs.bundles(), key="bundle")
    where = st.segmented_control("Images", ["A folder", "An upload"], default="A folder", key="where")
    upload, place = None, None
    if where == "An upload":
        upload = st.file_uploader("File", type=_FILES, key="upload", help="An archive of images, or one file.")
    else:
        place = _folder(jobs)
    spread = st.checkbox("Also a map of uncertainty (takes eight times as long)", key="spread")
    ready = place is not None or upload is not None
    if st.button("Start", type="primary", disabled=not ready):
        source = place or jobs.save_upload(upload.name, upload, context.reviewer())
        jobs.start(bundle, source, context.reviewer(), ["--uncertainty"] if spread else [])
        st.rerun()


@st.fragment(run_every=2)
@in_words
def _watch(jobs: Any) -> None:
    st.subheader("Runs started here")
    found = jobs.list()
    if not found:
        st.write("None yet. A run that you start shows here with its progress; you can leave this page meanwhile.")
    for job in found:
        _job(jobs, job)


def _job(jobs: Any, job: Any) -> None:
    with st.container(border=True):
        progress = jobs.progress(job.job_id)
        counts = ", ".join(f"{number} {STATES[state]}" for state, number in progress.counts.items() if number)
        words, act = st.columns([4, 1], vertical_alignment="center")
        state = "in work" if job.state == "running" else _ENDED[job.state]
        words.text(f"{job.bundle}, started {job.created_utc[11:16]} UTC by {job.user}: {state}")
        words.progress(progress.share, text=counts or "looking for images")
        if job.message:
            st.error(job.message)
        if job.state == "running":
            if act.button("Stop", key=f"stop-{job.job_id}", width="stretch"):
                jobs.cancel(job.job_id)
                again()
        elif job.state == "done" and act.button("Review", key=f"show-{job.job_id}", width="stretch"):
            context.runs().add(jobs.out(job.job_id))
            st.switch_page("pages/worklist.py")


def _page() -> None:
    jobs = context.known().jobs
    if jobs is None:
        empty(
            "Runs cannot be started from here",
            "Start the review with a place for them: `medseq review OUT --workspace FOLDER --root IMAGES`.",
        )
        return
    left, right = st.columns(2, gap="large")
    with left:
        try:
            _begin(jobs)
        except MedseqError as error:
            problem(error)
    with right:
        _watch(jobs)


try:
    _page()
except MedseqError as error:
    problem(error)
