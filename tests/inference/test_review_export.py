"""Exports: every event with the head of the chain, no formula for a spreadsheet, a table for ROC, DICOM reports."""

import csv
import io
import json

import numpy as np
import pydicom
import pytest

from medseq.errors import InputError
from medseq.inference.review import Event, ReviewStore
from medseq.inference.review_dicom import export_reports
from medseq.inference.review_export import (
    decisions_csv,
    mrmc_csv,
    read_truth,
    readers_agree,
    safe_cell,
    seconds_on_case,
)
from medseq.inference.review_geometry import Geometry
from medseq.inference.review_runs import Runs, Study
from medseq.io.dicom import group_dicom
from medseq.io.dicom_review import ReviewNote, write_key_object, write_structured_report
from tests.inference.made_review import KEY, add_item, begin_run, small_run
from tests.io.dciodvfy import errors
from tests.io.synthetic import OBLIQUE, PATIENT_NAME, save, stack


def table(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1+2", "@SUM(A1)", "\tx", "\rx", "\n=x", "  =cmd|' /C calc'!A0", '=HYPERLINK("http://x")']
)
def test_no_cell_is_a_formula(text, tmp_path):
    assert safe_cell(text) == f"'{text}"
    with ReviewStore(tmp_path / "r.sqlite", KEY) as store:
        store.append(Event(text, "i1", "decide", decision="accept", comment=text))
        row = table(store.export("csv"))[0]
        assert row["comment"] == row["reviewer"] == f"'{text}"
        assert json.loads(store.export("json"))["events"][0]["comment"] == text


def test_numbers_and_plain_words_stay_as_they_are():
    assert [safe_cell(value) for value in (-3, 2.5, None, "a=b", "", True)] == ["-3", "2.5", "", "a=b", "", "True"]


def test_every_export_ends_with_the_head(tmp_path):
    with ReviewStore(tmp_path / "r.sqlite", KEY) as store:
        for number in range(3):
            store.append(
                Event("ann", f"i{number}", "decide", decision="reject", view={"low": -160}, geometry=[{"x": 1}])
            )
        rows = table(store.export("csv"))
        assert [row["kind"] for row in rows] == ["decide"] * 3 + ["head"]
        assert f"{rows[-1]['seq']}:{rows[-1]['mac']}" == store.head()
        assert json.loads(rows[0]["view"]) == {"low": -160}
        content = json.loads(store.export("json"))
        assert content["head"] == store.head()
        assert [event["seq"] for event in content["events"]] == [1, 2, 3]
        assert store.verify(content["head"]).ok
        with pytest.raises(InputError, match="no such export"):
            store.export("xml")


def test_time_on_a_case_ends_with_the_decision_the_next_case_or_closing(tmp_path):
    def at(second):
        return f"2026-01-01T10:{second // 60:02d}:{second % 60:02d}.000Z"

    script = [
        ("ann", "a", "open", 0),
        ("bob", "a", "open", 5),
        ("ann", "a", "decide", 30),
        ("ann", "b", "open", 40),
        ("ann", "c", "open", 60),  # b was left without a decision: 20 s
        ("ann", "c", "close", 75),
        ("ann", "a", "open", 80),  # a second visit
        ("ann", "a", "annotate", 85),
        ("ann", "a", "decide", 90),
        ("bob", "a", "decide", 3000),  # forgotten over lunch: half an hour at most
        ("cem", "a", "decide", 3001),  # never opened
        ("dee", "a", "open", 3100),
        ("dee", "a", "decide", 3050),  # a clock that was set back
    ]
    with ReviewStore(tmp_path / "r.sqlite", KEY) as store:
        for reviewer, item, kind, second in script:
            decision = "accept" if kind == "decide" else None
            store.append(Event(reviewer, item, kind, decision=decision, ts_utc=at(second)))
        assert seconds_on_case(store.records()) == {
            ("ann", "a"): 40.0,
            ("ann", "b"): 20.0,
            ("ann", "c"): 15.0,
            ("bob", "a"): 1800.0,
            ("dee", "a"): 0.0,
        }


def test_decisions_that_count_are_one_line_each(tmp_path):
    runs = Runs([small_run(tmp_path / "ct", 3)], KEY)
    tokens = [row.token for row in runs.page()[0]]
    runs.record(tokens[0], "ann", "decide", decision="accept", score=5)
    runs.record(tokens[0], "ann", "decide", decision="reject", score=2, reason_code="noise-left", comment="=bad")
    runs.record(tokens[0], "bob", "decide", decision="accept")
    runs.record(tokens[0], "cem", "adjudicate", decision="reject", role="adjudicator")
    rows = table(decisions_csv(runs))
    assert [(row["item_id"][-1], row["reviewer"], row["role"], row["decision"], row["status"]) for row in rows] == [
        ("0", "ann", "reviewer", "reject", "reject"),
        ("0", "bob", "reviewer", "accept", "reject"),
        ("0", "cem", "adjudicator", "reject", "reject"),
        ("1", "", "", "", "unreviewed"),
        ("2", "", "", "", "unreviewed"),
    ]
    assert rows[0]["reason"] == "noise left"
    assert rows[0]["comment"] == "'=bad"


def test_reader_case_method(tmp_path):
    """Two methods over the same cases, blinded: the export tells the methods, reader by reader and case by case."""
    out = [small_run(tmp_path / name, 3, name=name) for name in ("old", "new")]
    runs = Runs(out, KEY, study=Study("s1"))
    for reader in ("ann", "bob"):
        for place, row in enumerate(runs.page(reviewer=reader)[0]):
            runs.record(row.token, reader, "open")
            runs.record(row.token, reader, "decide", decision="accept" if place % 2 else "reject", score=1 + place % 5)
    rows = table(mrmc_csv(runs, {"0" * 16: 1}))
    assert len(rows) == 2 * 3 * 2
    assert {(row["reader"], row["case"], row["method"]) for row in rows} == {
        (reader, f"{case:016x}", f"{method} 1.0")
        for reader in ("ann", "bob")
        for case in range(3)
        for method in ("old", "new")
    }
    assert {row["study"] for row in rows} == {"s1"}
    assert {row["truth"] for row in rows if row["case"] == "0" * 16} == {"1"}
    assert {row["truth"] for row in rows if row["case"] != "0" * 16} == {""}
    assert all(row["accepted"] == str(int(row["decision"] == "accept")) for row in rows)
    assert all(float(row["seconds"]) >= 0 for row in rows)
    assert sorted(int(row["order"]) for row in rows if row["reader"] == "ann" and row["method"] == "new 1.0") == [
        1,
        2,
        3,
    ]


def test_truth_is_a_table_of_zeros_and_ones():
    assert read_truth("case,truth\na,1\nb,0\n") == {"a": 1, "b": 0}
    with pytest.raises(InputError, match="not a table of truths"):
        read_truth("patient,label\na,1\n")
    with pytest.raises(InputError, match="0 or 1"):
        read_truth("case,truth\na,2\n")


def test_readers_agree_on_accept_and_reject_only(tmp_path):
    runs = Runs([small_run(tmp_path / "ct", 6)], KEY)
    for number, row in enumerate(runs.page()[0]):
        runs.record(row.token, "ann", "decide", decision="accept" if number < 3 else "reject")
        runs.record(
            row.token,
            "bob",
            "decide",
            decision="second-look" if number == 0 else ("accept" if number < 3 else "reject"),
        )
    [kappa] = readers_agree(runs)["ct"]
    assert (kappa.value, kappa.cases) == (pytest.approx(1.0), 5)


# --- DICOM

NOTE = ReviewNote("ann^x", "reject", "2026-01-02T03:04:05.678Z", "7:" + "ab" * 32, 2, "noise left", "slice 3", "m 1.0")


@pytest.fixture
def series(tmp_path, rng):
    return save(stack(rng), tmp_path)


def test_a_structured_report_says_what_was_decided_about_which_images(series, tmp_path):
    path = write_structured_report(tmp_path / "sr.dcm", series, NOTE)
    report = pydicom.dcmread(path)
    text = " ".join(str(element.value) for element in report.iterall() if element.VR != "SQ")
    for word in ("Rejected by reviewer", "noise left", "slice 3", "Research use only", "Measurement Group", "m 1.0"):
        assert word in text
    images = {str(pydicom.dcmread(image, stop_before_pixels=True).SOPInstanceUID) for image in series}
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert {str(item.ReferencedSOPInstanceUID) for item in evidence} == images
    assert (report.StudyInstanceUID, str(report.PatientName)) == (
        pydicom.dcmread(series[0]).StudyInstanceUID,
        PATIENT_NAME,
    )
    assert errors(path) == set()


def test_a_key_object_is_titled_by_the_decision(series, tmp_path):
    titles = {}
    for decision in ("accept", "reject", "second-look"):
        note = ReviewNote("ann", decision, NOTE.ts_utc, NOTE.event)
        path = write_key_object(tmp_path / f"{decision}.dcm", series, note)
        titles[decision] = pydicom.dcmread(path).ConceptNameCodeSequence[0].CodeValue
        assert errors(path) == set()
    assert titles == {"accept": "113009", "reject": "113001", "second-look": "113008"}


def test_exporting_twice_writes_the_same_objects(series, tmp_path):
    for write in (write_structured_report, write_key_object):
        first = write(tmp_path / "a.dcm", series, NOTE).read_bytes()
        assert write(tmp_path / "a.dcm", series[::-1], NOTE).read_bytes() == first
        other = ReviewNote(NOTE.reviewer, NOTE.decision, NOTE.ts_utc, "8:" + "ab" * 32)
        uids = [
            pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID
            for data in (first, write(tmp_path / "b.dcm", series, other).read_bytes())
        ]
        assert uids[0] != uids[1]


def test_a_name_of_one_component_is_not_repeated_in_a_warning(tmp_path, rng, recwarn):
    images = stack(rng, slices=1)
    images[0].PatientName = "Onlyname"
    write_structured_report(tmp_path / "sr.dcm", save(images, tmp_path), NOTE)
    assert not [str(warning.message) for warning in recwarn if "Onlyname" in str(warning.message)]


def test_reports_are_of_one_study(tmp_path, rng):
    paths = save(stack(rng, slices=1), tmp_path / "a") + save(stack(rng, slices=1), tmp_path / "b")
    with pytest.raises(InputError, match="several studies"):
        write_key_object(tmp_path / "k.dcm", paths, NOTE)
    with pytest.raises(InputError, match="needs the images"):
        write_structured_report(tmp_path / "k.dcm", [], NOTE)


def test_reports_of_a_run_are_for_dicom_series_that_are_as_they_were(tmp_path, rng):
    out = tmp_path / "ct"
    with begin_run(out) as ledger:
        for number in range(3):
            item_id = f"{number:016x}"
            images = save(stack(rng, slices=2), out / item_id)
            add_item(ledger, item_id, outputs=[("result", path) for path in images])
        (out / "n.nii").write_bytes(b"x")
        add_item(ledger, "f" * 16, kind="nifti", outputs=[("result", out / "n.nii")])
    runs = Runs([out], KEY)
    tokens = [row.token for row in runs.page()[0]]
    for token in (tokens[0], tokens[1], tokens[3]):
        runs.record(token, "ann", "decide", decision="accept", score=4)
    changed = runs.outputs(tokens[1])[0].path
    changed.write_bytes(changed.read_bytes()[:-1] + bytes([changed.read_bytes()[-1] ^ 1]))
    assert export_reports(runs, tmp_path / "reports") == 1
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        f"{'0' * 16}-1-ko.dcm",
        f"{'0' * 16}-1-sr.dcm",
    ]
    assert np.all([pydicom.dcmread(path) is not None for path in (tmp_path / "reports").iterdir()])


def test_marks_are_regions_in_the_patient(tmp_path, rng):
    """A point and a box drawn on a sagittal plane, and one that makes no sense; the report tells LPS millimetres."""
    out = tmp_path / "ct"
    with begin_run(out) as ledger:
        images = save(stack(rng, orientation=OBLIQUE), out / ("a" * 16))
        add_item(ledger, "a" * 16, outputs=[("result", path) for path in images])
    runs = Runs([out], KEY)
    token = runs.page()[0][0].token
    marks = [
        {"kind": "point", "plane": "sagittal", "slice": 3, "corners": [[1.0, 2.0]]},
        {"kind": "box", "plane": "sagittal", "slice": 3, "corners": [[0.0, 1.0], [2.0, 3.0]]},
        {"kind": "box", "plane": "nowhere", "slice": 3, "corners": [[0.0, 1.0], [2.0, 3.0]]},
        {"kind": "point", "plane": "axial", "slice": "x", "corners": [[0.0, 1.0]]},
    ]
    for mark in marks:
        runs.record(token, "ann", "annotate", geometry=[mark])
    runs.record(token, "bob", "annotate", geometry=[{**marks[0], "slice": 0}])
    runs.record(token, "ann", "decide", decision="reject")
    assert export_reports(runs, tmp_path / "r") == 1
    [path] = (tmp_path / "r").glob("*-sr.dcm")
    report = pydicom.dcmread(path)
    found = graphics(report)
    [stack_] = group_dicom(images)[0]
    layout = Geometry(stack_.header).layouts["sagittal"]

    def lps(col, row):
        return Geometry(stack_.header).mm(layout.voxel(3, row, col)) * (-1, -1, 1)

    corners = [lps(0, 1), lps(2, 1), lps(2, 3), lps(0, 3), lps(0, 1)]
    assert [kind for kind, _ in found] == ["POINT", "POLYGON"]
    # Graphic data are float32: positions of some ten mm to 1e-5.
    np.testing.assert_allclose(found[0][1], lps(1, 2), atol=1e-4)
    np.testing.assert_allclose(found[1][1], np.concatenate(corners), atol=1e-4)
    assert errors(path) == set()


def graphics(dataset):
    """Kind and data of the graphics of a report, in their order."""
    found = [(dataset.GraphicType, list(dataset.GraphicData))] if "GraphicData" in dataset else []
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            found += graphics(item)
    return found
