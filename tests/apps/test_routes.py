"""Routes of the review: what a signed address gives, and that every other one gives nothing."""

import io
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from medseq.inference.heatmap import percentiles
from medseq.inference.review_access import COOKIE
from medseq.inference.review_config import AuthConfig, ReviewConfig
from medseq.inference.review_service import service
from medseq.io.attention_h5 import write_attention
from tests.inference.made_review import add_item, begin_run
from tests.io.slide_synthetic import smooth, write_svs
from tests.io.synthetic import FOLDER, PATIENT_ID, PLANTED, save, stack

SHAPE = (5, 6, 8)


@pytest.fixture(scope="module")
def runs_made(tmp_path_factory):
    """A run with a restored CT series, one with a slide."""
    rng, folder = np.random.default_rng(), tmp_path_factory.mktemp("routes")
    root, out = folder / "input", folder / "out"
    inputs = save(stack(rng), root / "ct")
    with begin_run(out / "ct") as ledger:
        from medseq.inference.found import item_id
        from medseq.io.dicom import group_dicom

        [found], _, _ = group_dicom(inputs)
        name = item_id("dicom", sorted(found.sop_uids))
        images = save(stack(rng), out / "ct" / name)
        # The result lies where the source lies: the same positions, another frame of reference by chance is not linked.
        add_item(ledger, name, root=root / "ct", inputs=inputs, outputs=[("result", path) for path in images])
        after = out / "ct" / "n.nii.gz"
        nib.save(nib.Nifti1Image(rng.normal(size=(8, 6, 5)).astype("f4"), np.diag([-1, -1, 2, 1.0])), after)
        add_item(ledger, "e" * 16, kind="nifti", outputs=[("result", after)])
        add_item(ledger, "f" * 16, state="failed")
    slide = write_svs(root / "wsi" / "a.svs", smooth(rng, 300, 400))
    folder = out / "wsi" / ("d" * 16)
    folder.mkdir(parents=True)
    values = rng.random(6).astype(np.float32)
    coords = np.array([(x, y) for y in (0, 64) for x in (0, 64, 128)])
    attention = write_attention(
        folder / "attention.h5", {"attention": values, "attention_percentile": percentiles(values)}, coords, {}
    )
    with begin_run(out / "wsi", name="mil", task="mil", modality=()) as ledger:
        add_item(ledger, "d" * 16, kind="slide", root=root / "wsi", inputs=[slide], outputs=[("attention", attention)])
    return out


@pytest.fixture
def client(runs_made, tmp_path, monkeypatch, repo_root):
    """A browser that is signed in as ann."""
    config = tmp_path / "config.json"
    log = tmp_path / "access.jsonl"
    config.write_text(
        ReviewConfig(folders=(runs_made / "ct", runs_made / "wsi"), user="ann", access_log=log).model_dump_json()
    )
    monkeypatch.setenv("MEDSEQ_REVIEW_CONFIG", str(config))
    monkeypatch.setenv("MEDSEQ_AUDIT_KEY", "a key of the tests, 32 bytes long")
    monkeypatch.setattr(sys, "path", [str(repo_root / "apps" / "review"), *sys.path])
    service.cache_clear()
    import routes

    page = Route("/", lambda request: HTMLResponse("<p>page</p>"))
    login = Route("/auth/login", lambda request: HTMLResponse("<p>login</p>"))
    app = Starlette(routes=[page, login, *routes.routes()], middleware=routes.middleware())
    with TestClient(app, base_url="http://127.0.0.1") as browser:
        browser.get("/")
        service().access.sign_in(browser.cookies[COOKIE], "ann")
        yield browser
    service().close()
    service.cache_clear()


def token(task="restore", place=0):
    return [row.token for row in service().runs.page(task=task)[0]][place]


def address(client, kind, name, **query):
    return service().access.address(f"/api/{kind.replace('*', name)}", client.cookies[COOKIE], name, **query)


# Every route, with words that make sense; `*` stands for the token.
GOOD = {
    "info/*": {},
    "slice/*": {"role": "after", "plane": "coronal", "index": 2, "lo": -100, "hi": 300},
    "value/*": {"plane": "axial", "index": 1, "x": 2.5, "y": 1.5},
    "distance/*": {"plane": "sagittal", "index": 1, "line": "0,0,3,4"},
    "roi/*": {"role": "after", "plane": "stack", "index": 1, "box": "0,0,5,5", "shape": "ellipse"},
    "nifti/*": {"role": "after"},
}
SLIDE = {
    "slide/*.dzi": {},
    "slide/*_files/9/0_0.jpeg": {},
    "slide-info/*": {"top": 3},
    "overlay/*": {"method": "attention", "threshold": 0.2, "opacity": 0.5},
    "patches/*": {"count": 2},
    "patch/*": {"index": 1, "side": 64},
    "thumbnail/*": {"side": 128},
    "quality/*": {},
    "quality-info/*": {},
}
EVERY = [("restore", kind) for kind in GOOD] + [("mil", kind) for kind in SLIDE]
EVERY += [("restore", "recon/*/mask"), ("restore", "recon-info/*"), ("mil", "stored/*")]


@pytest.mark.parametrize(("task", "kind"), [one for one in EVERY if "recon" not in one[1] and "stored" not in one[1]])
def test_a_signed_address_gives_the_picture(client, task, kind):
    answer = client.get(address(client, kind, token(task), **{**GOOD, **SLIDE}[kind]))
    assert answer.status_code == 200, answer.text
    kinds = {"slice": "image/png", "overlay": "image/png", "quality/": "image/png", "nifti": "application/octet-stream"}
    kinds |= {"jpeg": "image/jpeg", "patch/": "image/jpeg", "thumbnail": "image/jpeg", "dzi": "application/xml"}
    want = next((value for word, value in kinds.items() if word in kind), "application/json")
    assert answer.headers["content-type"].startswith(want)
    assert answer.headers["cache-control"] in ("private, max-age=300", "no-store")
    assert not [word for word in PLANTED if word.encode() in answer.content.lower()]
    assert FOLDER.encode() not in answer.content


def test_pictures_are_what_the_view_makes(client):
    name = token()
    png = client.get(address(client, "slice/*", name, role="after", plane="stack", index=1, lo=-100, hi=300)).content
    assert png == service().series(name).slice("after", "stack", 1, -100.0, 300.0)
    assert Image.open(io.BytesIO(png)).mode == "L"
    info = client.get(address(client, "info/*", name)).json()
    assert info["header"]["pseudonym"].startswith("P-")
    assert PATIENT_ID not in str(info)
    found = client.get(address(client, "value/*", name, plane="stack", index=2, x=2.5, y=1.5)).json()
    assert found == service().series(name).value("stack", 2, 2.5, 1.5)


# --- what is refused


@pytest.mark.parametrize(("task", "kind"), EVERY)
def test_no_route_answers_without_its_signature(client, task, kind):
    name, other = token(task), token("mil" if task == "restore" else "restore")
    words = {**GOOD, **SLIDE}.get(kind, {})
    good = address(client, kind, name, **words)
    path = good.partition("?")[0]
    ticket = good.rpartition("t=")[2]
    foreign = service().access.ticket(client.cookies[COOKIE], other)
    for wrong in (path, f"{path}?t=", f"{path}?t=x", f"{path}?t={ticket[:-2]}zz", f"{path}?t={foreign}"):
        answer = client.get(wrong)
        assert (answer.status_code, answer.json()) == (403, {"error": "not allowed"}), wrong
    assert client.post(good).status_code == 405
    # In another browser, signed in or not.
    for cookie in (None, service().access.new_cookie(), signed_in_as_bob()):
        client.cookies.clear()
        if cookie:
            client.cookies.set(COOKIE, cookie)
        answer = client.get(good)
        assert (answer.status_code, answer.json()) == (403, {"error": "not allowed"})


def signed_in_as_bob():
    cookie = service().access.new_cookie()
    service().access.sign_in(cookie, "bob")
    return cookie


def test_an_address_that_expired_or_whose_session_ended_is_refused(client, monkeypatch):
    good = address(client, "info/*", token())
    assert client.get(good).status_code == 200
    access = service().access
    now = access._clock()
    monkeypatch.setattr(access, "_clock", lambda: now + 1000)
    assert client.get(good).status_code == 403
    assert client.get(address(client, "info/*", token())).status_code == 200
    monkeypatch.setattr(access, "_clock", lambda: now + 1000 + 31 * 60)
    assert client.get(address(client, "info/*", token())).status_code == 403
    monkeypatch.undo()


@pytest.mark.parametrize(
    "path",
    [
        "/api/slice/../../etc/passwd",
        "/api/slice/..%2f..%2fetc%2fpasswd",
        "/api/slice/%2e%2e/%2e%2e/run.sqlite",
        "/api/slide/..%5c..%5cx.dzi",
        "/api/recon/../../run.sqlite/mask",
        "/vendor/../app.py",
        "/vendor/..%2f..%2fapp.py",
        "/assets/%2e%2e/routes.py",
        "/assets/..%2froutes.py",
        "/api/",
        "/api/slice/",
        "/api/output/x",
        "/run.sqlite",
        "/static/../app.py",
    ],
)
def test_a_path_that_leads_elsewhere_gives_nothing(client, path):
    answer = client.get(path + "?t=1.2")
    assert answer.status_code in (403, 404)
    assert len(answer.content) < 100
    assert b"import" not in answer.content


def test_a_signature_of_a_token_that_is_none_finds_nothing(client):
    for name in ("a" * 24, "e" * 16):
        answer = client.get(address(client, "info/*", name))
        assert answer.status_code == 404
        assert "no such item" in answer.json()["error"]


@pytest.mark.parametrize(
    ("kind", "query", "status"),
    [
        ("slice/*", {"index": "x"}, 422),
        ("slice/*", {"index": -1}, 422),
        ("slice/*", {"index": 1.5}, 422),
        ("slice/*", {"index": "nan"}, 422),
        ("slice/*", {"index": 1e30}, 422),
        ("slice/*", {"index": 99}, 404),
        ("slice/*", {"lo": 5, "hi": 5}, 404),
        ("slice/*", {"lo": "inf", "hi": 5}, 422),
        ("slice/*", {"plane": "../x"}, 404),
        ("slice/*", {"role": "<script>"}, 404),
        ("value/*", {"x": 1}, 422),
        ("roi/*", {"box": "1,2,3"}, 422),
        ("roi/*", {"box": "1,2,3,nan"}, 422),
        ("roi/*", {"box": "0,0,5,5", "shape": "star"}, 404),
        ("nifti/*", {"role": "scores"}, 404),
        ("recon/*/mask", {}, 404),
        ("slide/*.dzi", {}, 404),
    ],
)
def test_words_that_make_no_sense_are_errors_in_words(client, kind, query, status):
    answer = client.get(address(client, kind, token(), **query))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error
    assert "Traceback" not in error
    assert "/" not in error.replace("and/or", "") or "tmp" not in error


def test_tiles_that_are_none_are_not_found(client):
    for tail, status in (
        ("9/9_9.jpeg", 404),
        ("99/0_0.jpeg", 404),
        ("9/0.jpeg", 422),
        ("9/-1_0.jpeg", 422),
        ("9/0_0_0.jpeg", 422),
    ):
        assert client.get(address(client, f"slide/*_files/{tail}", token("mil"))).status_code == status


def test_an_item_without_a_picture_says_why(client):
    name = next(row.token for row in service().runs.page(state="failed")[0])
    answer = client.get(address(client, "info/*", name))
    assert answer.status_code == 404
    assert "no picture of this item" in answer.json()["error"]


def test_a_result_that_is_gone_is_said_without_its_path(client, runs_made, tmp_path):
    name, result = token(place=1), runs_made / "ct" / "n.nii.gz"
    result.rename(result.with_suffix(".away"))
    answer = client.get(address(client, "info/*", name))
    result.with_suffix(".away").rename(result)
    assert answer.status_code == 404
    assert "missing" in answer.json()["error"]
    assert str(tmp_path) not in answer.text


# --- headers, cookie, log, limit


def test_every_answer_carries_the_headers(client):
    for path in ("/", "/api/slice/x", "/nowhere", address(client, "info/*", token())):
        headers = client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"


def test_the_cookie_comes_with_the_page_and_scripts_cannot_read_it(client):
    cookie = client.cookies[COOKIE]
    assert "set-cookie" not in client.get("/").headers
    client.cookies.clear()
    fresh = client.get("/").headers["set-cookie"]
    assert "HttpOnly" in fresh
    assert "SameSite=Lax" in fresh
    assert cookie not in fresh
    # A picture hands out no session.
    client.cookies.clear()
    assert "set-cookie" not in client.get("/api/slice/x").headers


def test_the_access_log_tells_who_opened_what_once(client, tmp_path):
    for _ in range(3):
        client.get(address(client, "slice/*", token()))
    client.get("/api/slice/x")
    lines = service().log.lines()
    assert [(line["user"], line["action"], line["item"]) for line in lines] == [("ann", "picture", token())]
    text = (tmp_path / "access.jsonl").read_text()
    assert not [word for word in PLANTED if word in text.lower()]


def test_what_cannot_be_logged_is_not_shown(client, monkeypatch, tmp_path):
    monkeypatch.setattr(service().log, "_path", tmp_path)  # a folder: nothing can be written there
    answer = client.get(address(client, "slice/*", token()))
    assert answer.status_code == 503
    assert "access log" in answer.json()["error"]
    assert str(tmp_path) not in answer.text


def test_tries_to_sign_in_are_limited(client):
    found = [client.get("/auth/login").status_code for _ in range(12)]
    assert found[:10] == [200] * 10
    assert found[10:] == [429, 429]
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "0.0.0.0", "[::1", "a b"]
)
def test_a_foreign_name_that_leads_here_is_turned_away(client, host):
    for path in ("/", address(client, "info/*", token())):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code, answer.json()) == (403, {"error": "not allowed"})
        assert "set-cookie" not in answer.headers
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/_stcore/stream", headers={"host": host}):
        pass


def test_the_names_of_this_machine_are_ours(client):
    for host in ("127.0.0.1:8501", "localhost", "LOCALHOST:80", "[::1]:8501"):
        assert client.get("/", headers={"host": host}).status_code == 200
    auth = AuthConfig(auth={"redirect_uri": "https://Review.example:8443/oauth2callback"})
    config = ReviewConfig(address="0.0.0.0", auth=auth)
    assert config.hosts == {"localhost", "127.0.0.1", "::1", "review.example"}


def test_the_pages_are_not_held_up_by_a_slow_picture(client, monkeypatch):
    """Reading happens in threads: while one answer is being made, others come."""
    import threading
    import time

    view, gate = service().series(token()), threading.Event()
    original = type(view).slice

    def slow(self, *words):
        gate.wait(10)
        return original(self, *words)

    monkeypatch.setattr(type(view), "slice", slow)
    found = []
    waiting = threading.Thread(target=lambda: found.append(client.get(address(client, "slice/*", token())).status_code))
    waiting.start()
    started = time.monotonic()
    assert client.get("/").status_code == 200
    assert client.get(address(client, "info/*", token())).status_code == 200
    assert time.monotonic() - started < 8
    assert not found
    gate.set()
    waiting.join(20)
    assert found == [200]


def test_the_routes_stand_in_their_list(repo_root, monkeypatch):
    # The docstring is what the pages are written by.
    monkeypatch.syspath_prepend(str(repo_root / "apps" / "review"))
    import routes

    paths = {route.path for route in routes.routes() if route.path.startswith("/api")}
    text = Path(routes.__file__).read_text()
    for path in paths:
        word = path.replace("{level:int}", "{level}").replace("{tile}", "{col}_{row}")
        assert word in text, path
