"""A run that is started on the page: over a folder and over an upload, watched to its end, and reviewed."""

import re

import pytest

from medseq.inference.ledger import Ledger
from tests.apps import made_runs
from tests.apps.conftest import start, stop
from tests.apps.test_browser_volume import open_case

pytestmark = pytest.mark.browser
PATIENCE_MS = 180_000


@pytest.fixture
def workplace(tmp_path):
    """A review that may read the inputs of its run, with a place for runs of its own."""
    made_runs.ct_run(tmp_path, items=1)
    work = tmp_path / "work"
    work.mkdir()
    server = start(tmp_path, "--user", "anna", "--workspace", str(work), "--root", str(tmp_path / "input"))
    yield server, work
    stop(server)


def test_a_folder_and_an_upload_are_run_and_reviewed(workplace, new_page):
    server, work = workplace
    page = new_page(server.url)
    page.get_by_role("link", name="Run").click()
    page.get_by_role("button", name="Start").click()
    page.get_by_text(re.compile("started .* by anna: finished")).wait_for(timeout=PATIENCE_MS)
    # One plane of the series, as a file of its own.
    [image, *_] = sorted((server.folder / "input").rglob("*.dcm"))
    page.get_by_role("radio", name="An upload").click()
    page.locator("input[type=file]").set_input_files(image)
    page.get_by_role("button", name="Start").click()
    finished = page.get_by_text(re.compile("started .* by anna: finished"))
    finished.nth(1).wait_for(timeout=PATIENCE_MS)
    ledgers = sorted(work.rglob("run.sqlite"))
    assert len(ledgers) == 2
    for path in ledgers:
        with Ledger(path) as ledger:
            assert [item.state for item in ledger.items()] == ["done"]
    page.get_by_role("button", name="Review").first.click()
    page.locator(".worklist tbody tr").nth(1).wait_for()
    open_case(page, 1)
    page.keyboard.press("a")
    page.get_by_text("You accepted this case").wait_for()
