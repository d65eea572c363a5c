"""Who may see what: sessions, roles, signed addresses, limits on sign-in, headers. Plain values; no web framework.

Pages check the sign-in themselves; pictures are fetched by addresses outside of them. So every such address carries a
signature (`Access.address`), bound to one item, one browser session and a time. The session is a random cookie that
the server hands out with the page; its owner, role and last use are kept in memory. An address says nothing about
its user, and is worth nothing in another browser.

Reference:
    RFC 2104 (HMAC); OWASP Session Management and Content Security Policy cheat sheets.
"""

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlencode

from medseq.errors import InputError
from medseq.io.atomic import written

__all__ = ["COOKIE", "Access", "AccessLog", "Refused", "Role", "Session", "SlidingLimit", "security_headers"]

COOKIE = "medseq_session"
Role = Literal["reviewer", "adjudicator", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
_MAX_SESSIONS = 10_000


class Refused(Exception):
    """An address that is not served; `status` is 403 or 404, and the text tells nothing about what exists."""

    def __init__(self, status: int = 403) -> None:
        super().__init__("not allowed" if status == 403 else "not found")
        self.status = status


@dataclass(frozen=True)
class Session:
    """A browser that is signed in.

    Attributes:
        user: Name of the sign-in.
        role: ``reviewer``, ``adjudicator`` (may settle disagreements) or ``admin`` (may also assign and export).
        began: Seconds since 1970.
        used: Of the last request.
    """

    user: str
    role: Role
    began: float
    used: float


class Access:
    """Sessions and signatures of one server process.

    Args:
        secret: For signatures; at least 16 bytes.
        idle_s: A session ends when it was not used for so long.
        longest_s: It ends after so long in any case.
        address_s: How long an address is valid.
        clock: Seconds since 1970; tests replace it.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        idle_s: float = 1800.0,
        longest_s: float = 12 * 3600.0,
        address_s: float = 900.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if len(secret) < 16:
            raise InputError("the secret is too short", found=f"{len(secret)} bytes", wanted="at least 16")
        self._secret, self._idle, self._longest, self._address = secret, idle_s, longest_s, address_s
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    @staticmethod
    def new_cookie() -> str:
        """A value for the cookie that nobody can guess."""
        return secrets.token_urlsafe(32)

    def sign_in(self, cookie: str, user: str, role: Role = "reviewer") -> Session:
        """Bind a browser to a user; the same user again keeps the session's beginning.

        Raises:
            InputError: No cookie, no user, or an unknown role.
        """
        if len(cookie) < 16 or not user or role not in ROLES:
            raise InputError("a session needs a cookie, a user and a role", found=role, wanted=", ".join(ROLES))
        now = self._clock()
        with self._lock:
            known = self._alive(cookie, now)
            began = known.began if known is not None and known.user == user else now
            session = Session(user, role, began, now)
            self._sessions[_name(cookie)] = session
            self._sessions.move_to_end(_name(cookie))
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return session

    def session(self, cookie: str | None) -> Session | None:
        """The session of a cookie, used now; None if there is none or it has ended."""
        if not cookie:
            return None
        now = self._clock()
        with self._lock:
            session = self._alive(cookie, now)
            if session is not None:
                session = replace(session, used=now)
                self._sessions[_name(cookie)] = session
        return session

    def sign_out(self, cookie: str) -> None:
        """End a session: its addresses stop working at once."""
        with self._lock:
            self._sessions.pop(_name(cookie), None)

    def ticket(self, cookie: str, token: str) -> str:
        """The value of ``t`` in addresses of an item.

        It changes only every half of its life, so that a browser finds in its cache what it fetched a moment ago.
        """
        half = self._address / 2
        expiry = int((self._clock() // half + 2) * half)
        return f"{expiry:x}.{self._code(cookie, token, expiry)}"

    def address(self, path: str, cookie: str, token: str, **query: object) -> str:
        """An address with its signature: ``/api/slice/<token>?…&t=…``."""
        words = {key: value for key, value in query.items() if value is not None}
        return f"{path}?{urlencode({**words, 't': self.ticket(cookie, token)})}"

    def check(self, ticket: str | None, cookie: str | None, token: str) -> Session:
        """The session of a signed address.

        Raises:
            Refused: Unsigned, forged, expired, of another item or another browser, or after the session's end.
        """
        expiry, _, code = (ticket or "").partition(".")
        try:
            until = int(expiry, 16) if len(expiry) <= 12 else 0
        except ValueError:
            until = 0
        genuine = hmac.compare_digest(code.encode(), self._code(cookie or "", token, until).encode())
        session = self.session(cookie)
        if not genuine or self._clock() >= until or session is None:
            raise Refused(403)
        return session

    def _code(self, cookie: str, token: str, expiry: int) -> str:
        text = "\n".join([_name(cookie), token, str(expiry)])
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def _alive(self, cookie: str, now: float) -> Session | None:
        session = self._sessions.get(_name(cookie))
        if session is None:
            return None
        if now - session.used > self._idle or now - session.began > self._longest:
            del self._sessions[_name(cookie)]
            return None
        return session


class SlidingLimit:
    """At most so many tries within a time, for each address that tries.

    Args:
        tries: How many.
        window_s: In how many seconds.
        clock: Seconds; tests replace it.
    """

    def __init__(self, tries: int = 10, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._tries, self._window, self._clock = tries, window_s, clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, who: str) -> bool:
        """Count a try; False if it is one too many."""
        now = self._clock()
        with self._lock:
            seen = self._seen.setdefault(who, deque())
            self._seen.move_to_end(who)
            while seen and now - seen[0] >= self._window:
                seen.popleft()
            if len(seen) >= self._tries:
                return False
            seen.append(now)
            while len(self._seen) > _MAX_SESSIONS:
                self._seen.popitem(last=False)
        return True


class AccessLog:
    """Who opened what and when, one JSON object a line; apart from the decisions. No names of patients, no paths.

    Args:
        path: The file; readable by its owner only. None logs nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._last: dict[tuple[str, str, str], float] = {}

    def write(self, user: str, action: str, token: str = "", *, once_s: float = 0.0) -> None:
        """Add a line.

        Args:
            user: Who.
            action: What, a stable word: ``open``, ``picture``, ``export``, ``sign-in`` …
            token: Of the item.
            once_s: Not again for the same user, action and item within so many seconds.
        """
        if self._path is None:
            return
        now = time.monotonic()
        with self._lock:
            key = (user, action, token)
            if once_s and now - self._last.get(key, -once_s) < once_s:
                return
            if once_s:
                if len(self._last) > 100_000:
                    self._last.clear()
                self._last[key] = now
            when = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = json.dumps({"ts_utc": when, "user": user, "action": action, "item": token})
            with written("the access log"):
                handle = os.open(self._path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
                try:
                    os.write(handle, line.encode() + b"\n")
                finally:
                    os.close(handle)

    def lines(self, last: int = 1000) -> list[dict[str, Any]]:
        """The last lines, oldest first; broken ones are left out."""
        if self._path is None or not self._path.exists():
            return []
        found: deque[dict[str, Any]] = deque(maxlen=last)
        with self._path.open("rb") as stream:
            for line in stream:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return list(found)


def security_headers(*, https: bool = False, sign_in_host: str | None = None) -> dict[str, str]:
    """Headers of every answer: nothing from elsewhere, in no frame, no guessing of types, no referrer.

    Args:
        https: The server is reached by TLS.
        sign_in_host: Origin of the sign-in service that forms may go to.
    """
    policy = {
        "default-src": "'self'",
        # The page's own start script stands in its HTML; components are loaded as blobs; viewers compile WebAssembly.
        "script-src": "'self' 'unsafe-inline' 'wasm-unsafe-eval' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self' blob: data:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'" + (f" {sign_in_host}" if sign_in_host else ""),
        "frame-src": "'self' blob:",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    }
    if https:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    return headers


def _name(cookie: str) -> str:
    """What a session goes by in memory: the cookie itself is not kept."""
    return hashlib.sha256(cookie.encode()).hexdigest()
