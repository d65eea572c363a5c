"""Sessions, signed addresses, limits, headers, configuration: what opens, and everything that does not."""

import json

import pytest

from medseq.errors import InputError, ManifestError
from medseq.inference.review_access import Access, AccessLog, Refused, SlidingLimit, security_headers
from medseq.inference.review_config import (
    AuthConfig,
    ReviewConfig,
    is_loopback,
    load_auth,
    read_config,
    require_address,
)

SECRET = b"a secret of the tests"
TOKEN, OTHER = "a" * 24, "b" * 24


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def access(clock):
    return Access(SECRET, idle_s=1800, longest_s=7200, address_s=900, clock=clock)


def test_an_address_opens_its_item_in_its_browser(access):
    cookie = access.new_cookie()
    access.sign_in(cookie, "ann", "adjudicator")
    session = access.check(access.ticket(cookie, TOKEN), cookie, TOKEN)
    assert (session.user, session.role) == ("ann", "adjudicator")
    address = access.address(f"/api/slice/{TOKEN}", cookie, TOKEN, plane="axial", index=3, lo=None)
    assert address.startswith(f"/api/slice/{TOKEN}?plane=axial&index=3&t=")
    assert "ann" not in address
    assert cookie not in address


def test_everything_else_is_refused(access, clock):
    cookie, stranger, nobody = (access.new_cookie() for _ in range(3))
    access.sign_in(cookie, "ann")
    access.sign_in(stranger, "bob")
    ticket = access.ticket(cookie, TOKEN)
    expiry, _, code = ticket.partition(".")
    later = f"{int(expiry, 16) + 900:x}"
    wrong = [
        (None, cookie, TOKEN),  # unsigned
        ("", cookie, TOKEN),
        ("x", cookie, TOKEN),
        (f"zz.{code}", cookie, TOKEN),
        (f"{later}.{code}", cookie, TOKEN),  # a longer life
        (f"{expiry}.{code[:-1]}0" if code[-1] != "0" else f"{expiry}.{code[:-1]}1", cookie, TOKEN),  # forged
        (f"{expiry}.{'é' * 64}", cookie, TOKEN),
        (f"{'f' * 400}.{code}", cookie, TOKEN),
        (ticket, cookie, OTHER),  # another item
        (ticket, stranger, TOKEN),  # another user's browser
        (ticket, nobody, TOKEN),  # not signed in
        (ticket, None, TOKEN),
        (Access(b"another secret, longer", clock=clock).ticket(cookie, TOKEN), cookie, TOKEN),
    ]
    for values in wrong:
        with pytest.raises(Refused, match="not allowed"):
            access.check(*values)
    assert access.check(ticket, cookie, TOKEN).user == "ann"


def test_addresses_expire_and_are_the_same_for_a_while(access, clock):
    cookie = access.new_cookie()
    access.sign_in(cookie, "ann")
    clock.now = 900 * 1000.0
    first = access.ticket(cookie, TOKEN)
    clock.now += 449
    # Within half a life the address stays, so that a browser finds the picture in its cache.
    assert access.ticket(cookie, TOKEN) == first
    clock.now += 2
    assert access.ticket(cookie, TOKEN) != first
    clock.now += 448
    assert access.check(first, cookie, TOKEN)
    clock.now += 2
    with pytest.raises(Refused):
        access.check(first, cookie, TOKEN)
    # A new one lives for half of it at least.
    fresh = access.ticket(cookie, TOKEN)
    clock.now += 449
    assert access.check(fresh, cookie, TOKEN)


def test_sessions_end_unused_after_their_longest_and_by_signing_out(access, clock):
    cookie = access.new_cookie()
    access.sign_in(cookie, "ann")
    for _ in range(3):
        clock.now += 1700
        assert access.session(cookie).user == "ann"
    clock.now += 1801
    assert access.session(cookie) is None
    began = access.sign_in(cookie, "ann").began
    for _ in range(4):
        clock.now += 1700
        access.sign_in(cookie, "ann")  # a page that runs again
    assert access.session(cookie).began == began
    clock.now += 401
    assert access.session(cookie) is None, "two hours are the longest"
    access.sign_in(cookie, "ann")
    ticket = access.ticket(cookie, TOKEN)
    access.sign_out(cookie)
    with pytest.raises(Refused):
        access.check(ticket, cookie, TOKEN)
    # Another user in the same browser begins anew.
    access.sign_in(cookie, "ann")
    clock.now += 60
    assert access.sign_in(cookie, "bob").began == clock.now


@pytest.mark.parametrize(
    ("cookie", "user", "role"), [("short", "ann", "admin"), ("c" * 32, "", "admin"), ("c" * 32, "ann", "root")]
)
def test_a_session_needs_a_cookie_a_user_and_a_role(access, cookie, user, role):
    with pytest.raises(InputError, match="needs a cookie"):
        access.sign_in(cookie, user, role)


def test_tries_are_limited_by_address_and_time(clock):
    limit = SlidingLimit(3, 60, clock)
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b")
    clock.now += 59
    assert not limit.allows("a")
    clock.now += 1
    assert limit.allows("a")


def test_the_access_log_is_of_its_own_for_its_owner_and_without_repeats(tmp_path):
    path = tmp_path / "access.jsonl"
    log = AccessLog(path)
    log.write("ann", "open", TOKEN)
    for _ in range(3):
        log.write("ann", "picture", TOKEN, once_s=60)
    log.write("bob", "picture", TOKEN, once_s=60)
    with path.open("ab") as stream:
        stream.write(b"torn li")
    found = log.lines()
    assert [(line["user"], line["action"], line["item"]) for line in found] == [
        ("ann", "open", TOKEN),
        ("ann", "picture", TOKEN),
        ("bob", "picture", TOKEN),
    ]
    assert path.stat().st_mode & 0o077 == 0
    assert json.loads(path.read_text().splitlines()[0])["ts_utc"].endswith("Z")
    AccessLog(None).write("ann", "open")
    assert AccessLog(None).lines() == []


def test_headers_let_nothing_in_from_elsewhere():
    headers = security_headers(https=True, sign_in_host="https://sign-in.example")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["object-src"] == "'none'"
    assert policy["form-action"] == "'self' https://sign-in.example"
    hosts = " ".join(value for name, value in policy.items() if name != "form-action")
    assert "http" not in hosts
    assert "*" not in hosts
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Strict-Transport-Security" in headers
    assert "Strict-Transport-Security" not in security_headers()


# --- configuration

AUTH = """
[auth]
redirect_uri = "https://review.example/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
client_id = "medseq"
client_secret = "very secret"
server_metadata_url = "https://sign-in.example/.well-known/openid-configuration"
"""


def auth_file(tmp_path, text):
    path = tmp_path / "auth.toml"
    path.write_text(text)
    return path


def test_roles_come_from_a_claim_and_the_highest_counts(tmp_path):
    text = (
        AUTH + '[medseq]\nrole_claim = "groups"\nroles = {readers = "reviewer", heads = "adjudicator", it = "admin"}\n'
    )
    config = load_auth(auth_file(tmp_path, text))
    assert config.role_of({"groups": ["readers", "heads", "golf"]}) == "adjudicator"
    assert config.role_of({"groups": "it"}) == "admin"
    assert config.role_of({"groups": []}) is None
    assert config.role_of({}) is None
    assert config.user_of({"email": "ann@example.org", "sub": "7"}) == "ann@example.org"
    assert config.user_of({"sub": "7"}) == "7"
    assert "very secret" not in repr(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[auth", "no TOML"),
        ("[auth]\nclient_id = 'x'", "not complete.*redirect_uri"),
        (AUTH.replace("0123456789abcdef0123456789abcdef", "short"), "cookie secret is too short"),
        (AUTH + "[other]\n", "unknown tables"),
        (AUTH + "[medseq]\nrole_clam = 'x'\n", "not understood"),
        (AUTH + "[medseq]\nroles = {a = 'king'}\n", "no such role"),
        (AUTH + "[medseq]\ndefault_role = 'king'\n", "no such role"),
    ],
)
def test_a_sign_in_file_that_is_wrong_is_refused_in_words(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        load_auth(auth_file(tmp_path, text))


def test_only_this_machine_connects_without_sign_in(tmp_path):
    for address in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        require_address(address, None)
    for address in ("0.0.0.0", "::", "192.168.1.5", "review.example", ""):
        assert not is_loopback(address)
        with pytest.raises(InputError, match="only where people sign in"):
            require_address(address, None)
        require_address(address, AuthConfig(auth={}))


def test_the_configuration_goes_through_a_file_and_back(tmp_path, monkeypatch):
    config = ReviewConfig(folders=(tmp_path,), port=9000, auth=AuthConfig(auth={"client_secret": "s"}))
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert read_config(str(path)) == config
    monkeypatch.setenv("MEDSEQ_REVIEW_CONFIG", str(path))
    assert read_config().auth.auth["client_secret"] == "s"
    path.write_text(ReviewConfig(once=True).model_dump_json())
    assert read_config().once
    # Its secrets are not left lying about.
    assert not path.exists()
    path.write_text('{"ports": 1}')
    with pytest.raises(ManifestError, match="cannot be read.*medseq review"):
        read_config()
    monkeypatch.delenv("MEDSEQ_REVIEW_CONFIG")
    assert read_config().folders == ()
