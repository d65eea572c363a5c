"""Routes beside the pages: slices, values, tiles. Every address is checked; what is refused tells nothing.

    GET /api/info/{token}                            what can be shown, JSON (`SeriesView.info`)
    GET /api/slice/{token}?role&plane&index&lo&hi&frame         PNG (`SeriesView.slice`)
    GET /api/value/{token}?plane&index&x&y&frame                JSON (`SeriesView.value`)
    GET /api/distance/{token}?plane&index&line=x0,y0,x1,y1         JSON {"mm": …}
    GET /api/roi/{token}?role&plane&index&box=x0,y0,x1,y1&shape    JSON (`SeriesView.roi`)
    GET /vendor/…, /assets/…                         static/vendor/ and static/ beside this file

All of ``/api`` needs ``t`` from `Service.address` and the session's cookie. 403: not allowed; 404: no such item, with
``{"error": …}`` in words where the reader may know them; 422: a number that makes no sense.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medseq.errors import MedseqError, RetryableError
from medseq.inference.review_access import COOKIE, Access, Refused, security_headers
from medseq.inference.review_service import Service, service

__all__ = ["middleware", "routes"]

_STATIC = Path(__file__).resolve().parent / "static"
# Pixels stay in the reader's browser for a moment, so that scrolling back is quick; never in a shared cache.
_PICTURE = {"Cache-Control": "private, max-age=300"}
_FACTS = {"Cache-Control": "no-store"}

Answer = Callable[[Service, str, Request], Response]


def routes() -> list[Route | Mount]:
    """Everything besides the pages."""
    found: list[Route | Mount] = [
        _route("/api/info/{token}", _info),
        _route("/api/slice/{token}", _slice),
        _route("/api/value/{token}", _value),
        _route("/api/distance/{token}", _distance),
        _route("/api/roi/{token}", _roi),
    ]
    for address, folder in (("/vendor", _STATIC / "vendor"), ("/assets", _STATIC)):
        if folder.is_dir():
            found.append(Mount(address, StaticFiles(directory=folder)))
    return found


def middleware() -> list[Middleware]:
    """Headers on every answer, the session's cookie with every page, a limit on tries to sign in."""
    return [Middleware(Guard)]


# --- answers


def _info(known: Service, token: str, request: Request) -> Response:
    return _json(known.series(token).info())


def _slice(known: Service, token: str, request: Request) -> Response:
    query = request.query_params
    picture = known.series(token).slice(
        query.get("role", "after"),
        query.get("plane", "stack"),
        _whole(request, "index"),
        _number(request, "lo"),
        _number(request, "hi"),
        _whole(request, "frame"),
    )
    return Response(picture, media_type="image/png", headers=_PICTURE)


def _value(known: Service, token: str, request: Request) -> Response:
    plane, index = request.query_params.get("plane", "stack"), _whole(request, "index")
    x, y = _needed(request, "x"), _needed(request, "y")
    return _json(known.series(token).value(plane, index, x, y, _whole(request, "frame")))


def _distance(known: Service, token: str, request: Request) -> Response:
    plane, index = request.query_params.get("plane", "stack"), _whole(request, "index")
    x0, y0, x1, y1 = _four(request, "line")
    return _json({"mm": known.series(token).distance_mm(plane, index, (x0, y0), (x1, y1))})


def _roi(known: Service, token: str, request: Request) -> Response:
    query = request.query_params
    plane, index = query.get("plane", "stack"), _whole(request, "index")
    box = _four(request, "box")
    view, role, shape = known.series(token), query.get("role", "after"), query.get("shape", "box")
    return _json(view.roi(role, plane, index, box, shape, _whole(request, "frame")))


# --- what all answers share


def _route(path: str, answer: Answer) -> Route:
    async def endpoint(request: Request) -> Response:
        token = str(request.path_params["token"])
        try:
            session = service().access.check(request.query_params.get("t"), request.cookies.get(COOKIE), token)
            # Files are read and pictures made in a thread: the pages go on meanwhile.
            response = await anyio.to_thread.run_sync(answer, service(), token, request)
        except Refused as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status, headers=_FACTS)
        except _BadQuery as error:
            return JSONResponse({"error": str(error)}, 422, headers=_FACTS)
        except LookupError:
            return JSONResponse({"error": "not found"}, 404, headers=_FACTS)
        except RetryableError as error:
            return JSONResponse({"error": str(error)}, 503, headers={**_FACTS, "Retry-After": "2"})
        except MedseqError as error:
            return JSONResponse({"error": str(error)}, 404, headers=_FACTS)
        service().log.write(session.user, "picture", token, once_s=300.0)
        return response

    return Route(path, endpoint, methods=["GET"])


class _BadQuery(Exception):
    """A number in an address that makes no sense."""


def _number(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise _BadQuery(f"{name} is no number") from None
    if not abs(value) < 1e9:
        raise _BadQuery(f"{name} is out of range")
    return value


def _needed(request: Request, name: str) -> float:
    value = _number(request, name)
    if value is None:
        raise _BadQuery(f"{name} is missing")
    return value


def _four(request: Request, name: str) -> tuple[float, float, float, float]:
    try:
        a, b, c, d = (float(text) for text in request.query_params.get(name, "").split(","))
    except ValueError:
        raise _BadQuery(f"{name} wants four numbers") from None
    if not all(abs(value) < 1e9 for value in (a, b, c, d)):
        raise _BadQuery(f"{name} is out of range")
    return a, b, c, d


def _whole(request: Request, name: str) -> int:
    value = _number(request, name) or 0.0
    if value != int(value) or value < 0:
        raise _BadQuery(f"{name} is no whole number")
    return int(value)


def _json(content: Any) -> Response:
    return Response(json.dumps(content, allow_nan=False), media_type="application/json", headers=_FACTS)


class Guard:
    """ASGI middleware around pages and routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        config = service().config
        auth = config.auth.auth if config.auth else {}
        host = "/".join(str(auth.get("server_metadata_url", "")).split("/")[:3]) or None
        self._headers, self._secure = security_headers(https=config.https, sign_in_host=host), config.https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer for one that comes too often."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = (scope.get("client") or ("unknown", 0))[0]
        if _signs_in(scope["path"]) and not service().sign_ins.allows(client):
            response = JSONResponse({"error": "too many tries; wait a minute"}, 429, headers={"Retry-After": "60"})
            await response(scope, receive, self._with_headers(scope, send))
            return
        await self._app(scope, receive, self._with_headers(scope, send))

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        has_cookie = COOKIE in Request(scope).cookies

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if not has_cookie and headers.get("content-type", "").startswith("text/html"):
                    secure = "; Secure" if self._secure else ""
                    headers.append(
                        "set-cookie", f"{COOKIE}={Access.new_cookie()}; Path=/; HttpOnly; SameSite=Lax{secure}"
                    )
            await send(message)

        return sent


def _signs_in(path: str) -> bool:
    return path.rstrip("/").endswith(("/auth/login", "/oauth2callback"))
