"""The record: whether it is whole, what it holds, how far readers agree, and its exports."""

from typing import Any

import context
import streamlit as st
from look import empty, problem

from medseq.errors import MedseqError
from medseq.inference.review_export import decisions_csv, mrmc_csv, readers_agree


def _chains(stores: list[Any]) -> None:
    st.subheader("The record")
    st.write(
        "Every decision is sealed to the one before it. A head noted elsewhere proves later that nothing was cut off."
    )
    for info, store in stores:
        found = store.verify()
        if found.ok:
            st.success(f"{info.name}: {found.rows} entries, whole.", icon=":material/check:")
        else:
            st.error(f"{info.name}: TAMPERED WITH. " + "; ".join(found.problems[:5]), icon=":material/error:")
        st.code(found.head, language=None, wrap_lines=True)


def _exports(stores: list[Any]) -> None:
    st.subheader("Export")
    runs = context.runs()
    one, two, three = st.columns(3)
    one.download_button("Decisions (CSV)", decisions_csv(runs), "decisions.csv", "text/csv", width="stretch")
    two.download_button("Reader x case x method (CSV)", mrmc_csv(runs), "mrmc.csv", "text/csv", width="stretch")
    for info, store in stores:
        three.download_button(
            f"Record of {info.name} (JSON)",
            store.export("json"),
            f"{info.name}.json",
            "application/json",
            key=f"json-{info.number}",
            width="stretch",
        )
    st.caption("DICOM reports and key objects: `medseq review export OUT --to sr`.")


def _agreement() -> None:
    st.subheader("Agreement of the readers")
    rows = [
        {
            "Run": name,
            "Measure": kappa.name,
            "Kappa": "every reader said the same" if kappa.value is None else f"{kappa.value:.2f}",
            "95 % interval": "" if kappa.low is None or kappa.high is None else f"{kappa.low:.2f} to {kappa.high:.2f}",
            "Cases": kappa.cases,
            "Readers": kappa.readers,
        }
        for name, kappas in readers_agree(context.runs()).items()
        for kappa in kappas
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
    else:
        st.write("Agreement shows here when two readers have decided the same cases.")


def _page() -> None:
    if context.role() == "reviewer":
        empty("Only adjudicators and admins see the whole record", "Your own decisions are on the pages of the cases.")
        return
    stores = context.runs().stores()
    if not stores:
        empty("Nothing is recorded yet", "The record begins with the first case that somebody opens.")
        return
    left, right = st.columns(2, gap="large")
    with left:
        _chains(stores)
    with right:
        _exports(stores)
        _agreement()


try:
    _page()
except MedseqError as error:
    problem(error)
