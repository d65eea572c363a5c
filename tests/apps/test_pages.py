"""Every page without a browser: what it says, what its buttons record, and what it says when there is nothing."""

import shutil
import time

import pytest

from medseq.inference.review_service import service
from tests.apps import made_runs


def words(test) -> str:
    """Everything a page says."""
    kinds = ("markdown", "text", "caption", "subheader", "title", "error", "warning", "info", "success")
    found = [str(element.value) for kind in kinds for element in getattr(test, kind)]
    return "\n".join([*found, *(str(element.proto) for element in test.get("html"))])


def progress(test) -> str:
    return " ".join(each.proto.text for each in test.get("progress"))


def tokens() -> dict[str, str]:
    """Token of a finished case by task."""
    return {item.task: item.token for item in reversed(service().runs.page(reviewer="anna")[0])}


def button(test, label: str):
    [found] = [each for each in test.button if each.label == label]
    return found


def wait_for(condition, seconds=60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return bool(condition())


@pytest.fixture
def own(tmp_path):
    """A run of this test, for decisions."""
    return made_runs.ct_run(tmp_path / "own", items=2)


def test_the_worklist_counts_and_filters(pages):
    test = pages()
    assert not test.exception
    assert "Research use only. Not for diagnosis." in words(test)
    assert {box.label for box in test.selectbox} == {"Task", "Review", "Run state", "Assigned to", "Run"}
    test.text_input(key="search").set_value("no such case").run()
    assert "No case fits these filters" in words(test)


def test_a_case_is_needed(pages):
    test = pages("pages/item.py")
    assert "No case is open" in words(test)
    assert not test.exception


@pytest.mark.parametrize("task", ["restore", "recon", "mil"])
def test_every_kind_of_case_opens(pages, task):
    pages()
    test = pages("pages/item.py", {"item": tokens()[task]})
    assert not test.exception
    assert not test.error
    assert "Not decided yet" in words(test)
    assert {each.label for each in test.button} == {
        "Accept",
        "Reject",
        "Look again",
        "Undo",
        "Take over",
        "Previous",
        "Next",
    }
    if task == "mil":
        assert "malignant" in words(test)
        assert "not calibrated" in words(test)


def test_a_rejection_needs_a_reason_and_can_be_taken_back(pages, own):
    pages(folders=[str(own)])
    token = service().runs.page()[0][0].token
    test = pages("pages/item.py", {"item": token}, folders=[str(own)])
    button(test, "Reject").click().run()
    assert "Choose a reason first" in words(test)
    assert service().runs.state(token).status == "unreviewed"
    test.selectbox(key=f"reason-{token}").select("invented").run()
    test.text_area(key=f"comment-{token}").set_value("<b>a ridge</b> at the left").run()
    button(test, "Reject").click().run()
    verdict = service().runs.state(token).verdicts["anna"]
    assert (verdict.decision, verdict.reason_code, verdict.comment) == (
        "reject",
        "invented",
        "<b>a ridge</b> at the left",
    )
    assert "You rejected this case" in words(test)
    button(test, "Undo").click().run()
    assert service().runs.state(token).status == "unreviewed"
    assert "Not decided yet" in words(test)


def test_a_case_is_taken_over_and_given_back(pages, own):
    pages(folders=[str(own)])
    token = service().runs.page()[0][0].token
    test = pages("pages/item.py", {"item": token}, folders=[str(own)])
    button(test, "Take over").click().run()
    assert service().runs.state(token).assignee == "anna"
    assert "Assigned to you" in words(test)
    button(test, "Give back").click().run()
    assert service().runs.state(token).assignee is None


def test_opening_and_leaving_a_case_is_recorded(pages, own):
    pages(folders=[str(own)])
    first, second = (item.token for item in service().runs.page()[0])
    test = pages("pages/item.py", {"item": first}, folders=[str(own)])
    button(test, "Next").click().run()
    kinds = [(record.event.kind, record.event.item_id) for record in service().runs.store(first).records()]
    ids = [service().runs.item(token).item_id for token in (first, second)]
    assert kinds == [("open", ids[0]), ("close", ids[0]), ("open", ids[1])]


def test_a_changed_result_is_told_in_red(pages, own):
    pages(folders=[str(own)])
    token = service().runs.page()[0][0].token
    [result, *_] = service().runs.outputs(token)
    result.path.write_bytes(result.path.read_bytes()[:-2] + b"xx")
    test = pages("pages/item.py", {"item": token}, folders=[str(own)])
    assert any("result was changed since the run" in error.value for error in test.error)
    result.path.unlink()
    test = pages("pages/item.py", {"item": token}, folders=[str(own)])
    assert any("result was deleted since the run" in error.value for error in test.error)


def test_a_damaged_ledger_is_told_and_left_alone(pages, own, made, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(made / "out" / "mr", broken)
    (broken / "run.sqlite").write_bytes(b"not a database" * 100)
    test = pages(folders=[str(own), str(broken)])
    assert not test.exception
    assert any("broken" in warning.value for warning in test.warning)
    assert (broken / "run.sqlite").read_bytes() == b"not a database" * 100


def test_a_reader_study_hides_methods_and_leads_through_the_cases(pages, own):
    test = pages("pages/study.py", folders=[str(own)])
    assert "No reader study is running" in words(test)
    test = pages("pages/study.py", folders=[str(own)], study="pilot")
    assert "0 of 2 cases read" in progress(test)
    token = service().runs.page(reviewer="anna")[0][0].token
    test = pages("pages/item.py", {"item": token}, folders=[str(own)], study="pilot")
    assert not test.exception
    shown = words(test)
    assert "ct-denoise" not in shown
    assert "noise -70 %" not in shown
    assert "were clipped" not in shown
    button(test, "Accept").click().run()
    test = pages("pages/study.py", folders=[str(own)], study="pilot")
    assert "1 of 2 cases read" in progress(test)


def test_adjudication_settles_a_disagreement(pages, own):
    test = pages("pages/adjudication.py", folders=[str(own)])
    assert "Nothing to settle" in words(test)
    runs = service().runs
    token = runs.page()[0][0].token
    runs.record(token, "boris", "decide", decision="accept")
    runs.record(token, "carla", "decide", decision="reject", reason_code="invented")
    test = pages("pages/adjudication.py", folders=[str(own)])
    assert "1 to settle" in words(test)
    button(test, "Reject").click().run()
    assert any("Choose a reason" in warning.value for warning in test.warning)
    button(test, "Accept").click().run()
    state = service().runs.state(token)
    assert state.status == "accept"
    assert state.adjudication.reviewer == "anna"


def test_the_record_shows_tampering_and_exports(pages, own):
    test = pages("pages/audit.py", folders=[str(own)])
    assert "Nothing is recorded yet" in words(test)
    runs = service().runs
    token = runs.page()[0][0].token
    runs.record(token, "boris", "decide", decision="accept")
    test = pages("pages/audit.py", folders=[str(own)])
    assert any("1 entries, whole" in each.value for each in test.success)
    assert len(test.get("download_button")) == 3
    import sqlite3

    with sqlite3.connect(own / "review.sqlite") as connection:
        connection.executescript("DROP TRIGGER event_never_changes; UPDATE event SET decision='reject'")
    test = pages("pages/audit.py", folders=[str(own)])
    assert any("TAMPERED WITH" in each.value for each in test.error)


def test_runs_start_only_where_there_is_a_place_for_them(pages, own, tmp_path):
    test = pages("pages/run.py", folders=[str(own)])
    assert "Runs cannot be started from here" in words(test)
    (tmp_path / "images" / "a").mkdir(parents=True)
    config = {"workspace": str(tmp_path / "work"), "roots": [str(tmp_path / "images")]}
    test = pages("pages/run.py", folders=[str(own)], **config)
    assert not test.exception
    assert "ct-denoise" in test.selectbox(key="bundle").options
    assert "None yet" in words(test)
    # Nothing to do in an empty folder: the job says so, the page goes on.
    button(test, "Start").click().run()
    assert not test.exception
    [job] = service().jobs.list()
    assert job.bundle == test.selectbox(key="bundle").value
    ended = wait_for(lambda: service().jobs.get(job.job_id).state != "running")
    assert ended
    # A folder without images is not a success.
    assert service().jobs.get(job.job_id).state == "failed"


def test_without_a_session_there_is_only_the_sign_in(pages, own, monkeypatch):
    import context

    monkeypatch.setattr(context, "session", lambda: None)
    auth = {"redirect_uri": "http://127.0.0.1:1/oauth2callback", "client_id": "c", "client_secret": "s"}
    test = pages(folders=[str(own)], auth={"auth": auth})
    assert not test.exception
    assert [each.label for each in test.button] == ["Sign in"]
    assert "ct-denoise" not in words(test)
    monkeypatch.setattr(context, "cookie", lambda: "")
    assert "refused a cookie" in words(pages(folders=[str(own)]))
