"""Several people: two readers at once, adjudication, sign-in by a service, roles, the end of a session."""

import re
import sqlite3
import urllib.error
import urllib.request

import pytest

from medseq.inference.review import ReviewStore
from tests.apps import made_runs
from tests.apps.conftest import KEY, free_port, start, stop
from tests.apps.issuer import Issuer
from tests.apps.test_browser_volume import open_case

pytestmark = pytest.mark.browser


@pytest.fixture
def issuer():
    found = Issuer()
    yield found
    found.close()


@pytest.fixture
def signed(issuer, tmp_path):
    """A review where people sign in."""
    made_runs.ct_run(tmp_path, items=1)
    port = free_port()
    settings = tmp_path / "auth.toml"
    settings.write_text(issuer.settings(f"http://127.0.0.1:{port}"))
    server = start(tmp_path, "--auth", str(settings), port=port)
    yield server
    stop(server)


def sign_in(new_page, url: str, who: str):
    page = new_page(url)
    page.get_by_role("button", name="Sign in").click()
    page.locator(f"#{who}").click()
    return page


def test_two_browsers_sign_in_decide_at_once_and_an_adjudicator_settles(signed, new_page):
    anna = sign_in(new_page, signed.url, "anna")
    boris = sign_in(new_page, signed.url, "boris")
    for page in (anna, boris):
        page.locator(".worklist tbody tr").first.wait_for()
        open_case(page, 1)
    anna.keyboard.press("a")
    boris.get_by_role("combobox", name="Reason").click()
    boris.get_by_role("option", name="a structure is gone").click()
    boris.locator(".case b").click()
    boris.keyboard.press("x")
    anna.get_by_text("You accepted this case").wait_for()
    boris.get_by_text("You rejected this case").wait_for()
    with ReviewStore(signed.folder / "out" / "ct" / "review.sqlite", KEY.encode(), read_only=True) as store:
        decided = {
            (record.event.reviewer, record.event.decision)
            for record in store.records()
            if record.event.kind == "decide"
        }
        assert store.verify().ok
    assert decided == {("anna@example.org", "accept"), ("boris@example.org", "reject")}
    # A reviewer settles nothing; an adjudicator does.
    anna.get_by_role("link", name="Adjudication").click()
    anna.get_by_text("Only adjudicators settle disagreements").wait_for()
    boris.get_by_role("link", name="Adjudication").click()
    boris.get_by_text("1 to settle").wait_for()
    boris.get_by_role("button", name="Accept").click()
    boris.get_by_text("Nothing to settle").wait_for()


def test_pictures_belong_to_the_session_that_was_given_them(signed, new_page):
    anna = sign_in(new_page, signed.url, "anna")
    anna.locator(".worklist tbody tr").first.wait_for()
    with anna.expect_request(re.compile("/api/slice/")) as asked:
        open_case(anna, 1)
    address = asked.value.url
    assert anna.request.get(address).status == 200
    # The same address elsewhere: without a session, and in the session of another reader.
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(address)
    boris = sign_in(new_page, signed.url, "boris")
    boris.locator(".worklist tbody tr").first.wait_for()
    assert boris.request.get(address).status == 403
    assert "example.org" not in address


def test_an_account_without_a_role_sees_nothing(signed, new_page):
    carla = sign_in(new_page, signed.url, "carla")
    carla.get_by_text("Your account has no role in this review").wait_for()
    assert carla.locator(".worklist").count() == 0


def test_two_servers_over_one_run_lose_nothing(tmp_path, new_page):
    made_runs.ct_run(tmp_path, items=1)
    servers = [
        start(tmp_path, "--user", name, "--access-log", str(tmp_path / f"{name}.jsonl")) for name in ("anna", "boris")
    ]
    try:
        pages = [new_page(server.url) for server in servers]
        for page in pages:
            open_case(page, 1)
        for _ in range(3):
            for page in pages:
                page.keyboard.press("a")
            for page in pages:
                page.get_by_text("You accepted this case").wait_for()
                page.keyboard.press("z")
            for page in pages:
                page.get_by_text("Not decided yet").wait_for()
    finally:
        for server in servers:
            stop(server)
    with ReviewStore(tmp_path / "out" / "ct" / "review.sqlite", KEY.encode(), read_only=True) as store:
        kinds = [(record.event.reviewer, record.event.kind) for record in store.records()]
        assert store.verify().ok
    for name in ("anna", "boris"):
        assert kinds.count((name, "decide")) == 3
        assert kinds.count((name, "undo")) == 3
    with sqlite3.connect(tmp_path / "out" / "ct" / "run.sqlite") as ledger:
        assert ledger.execute("SELECT state FROM item").fetchall() == [("done",)]
