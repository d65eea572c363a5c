"""Routes beside the pages: slices, values, tiles. Every address is checked; what is refused tells nothing.

    GET /api/info/{token}                            what can be shown, JSON (`SeriesView.info`)
    GET /api/slice/{token}?role&plane&index&lo&hi&frame         PNG (`SeriesView.slice`)
    GET /api/value/{token}?plane&index&x&y&frame                JSON (`SeriesView.value`)
    GET /api/distance/{token}?plane&index&line=x0,y0,x1,y1         JSON {"mm": …}
    GET /api/roi/{token}?role&plane&index&box=x0,y0,x1,y1&shape    JSON (`SeriesView.roi`)
    GET /api/slide/{token}.dzi                       Deep Zoom descriptor, XML
    GET /api/slide/{token}_files/{level}/{col}_{row}.jpeg          tile
    GET /api/slide-info/{token}?top                  JSON (`SlideView.info`)
    GET /api/overlay/{token}?method&threshold&opacity              RGBA PNG over the slide (`SlideView.overlay`)
    GET /api/patches/{token}?method&count            JSON, the patches with the highest values
    GET /api/patch/{token}?index&side                JPEG of one patch
    GET /api/thumbnail/{token}?side                  JPEG of the whole slide
    GET /api/quality/{token}                         PNG: tissue, ink, folds; /api/quality-info/{token}: the numbers
    GET /api/stored/{token}?name=overlay|sheet       PNG that the run wrote, also without the slide
    GET /api/recon-info/{token}?index                JSON (`ReconView.info`)
    GET /api/recon/{token}/{picture}?index&of        PNG (`ReconView.picture`)
    GET /api/nifti/{token}?role&frame                NIfTI for 3-D viewers (`SeriesView.nifti`)
    GET /vendor/…, /assets/…                         static/vendor/ and static/ beside this file

All of ``/api`` needs ``t`` from `Service.address` and the session's cookie. 403: not allowed; 404: no such item, with
``{"error": …}`` in words where the reader may know them; 422: a number that makes no sense.
"""

from pathlib import Path

from checked import PICTURE, answer_json, four, needed, number, route, whole
from slide_routes import recon_routes, slide_routes
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medseq.inference.review_access import COOKIE, Access, security_headers
from medseq.inference.review_config import host_of
from medseq.inference.review_service import Service, service

__all__ = ["middleware", "routes"]

_STATIC = Path(__file__).resolve().parent / "static"


def routes() -> list[Route | Mount]:
    """Everything besides the pages."""
    found: list[Route | Mount] = [
        route("/api/info/{token}", _info),
        route("/api/slice/{token}", _slice),
        route("/api/value/{token}", _value),
        route("/api/distance/{token}", _distance),
        route("/api/roi/{token}", _roi),
        route("/api/nifti/{token}", _nifti),
        *slide_routes(),
        *recon_routes(),
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
    return answer_json(known.series(token).info())


def _slice(known: Service, token: str, request: Request) -> Response:
    query = request.query_params
    picture = known.series(token).slice(
        query.get("role", "after"),
        query.get("plane", "stack"),
        whole(request, "index"),
        number(request, "lo"),
        number(request, "hi"),
        whole(request, "frame"),
    )
    return Response(picture, media_type="image/png", headers=PICTURE)


def _value(known: Service, token: str, request: Request) -> Response:
    plane, index = request.query_params.get("plane", "stack"), whole(request, "index")
    x, y = needed(request, "x"), needed(request, "y")
    return answer_json(known.series(token).value(plane, index, x, y, whole(request, "frame")))


def _distance(known: Service, token: str, request: Request) -> Response:
    plane, index = request.query_params.get("plane", "stack"), whole(request, "index")
    x0, y0, x1, y1 = four(request, "line")
    return answer_json({"mm": known.series(token).distance_mm(plane, index, (x0, y0), (x1, y1))})


def _roi(known: Service, token: str, request: Request) -> Response:
    query = request.query_params
    plane, index = query.get("plane", "stack"), whole(request, "index")
    box = four(request, "box")
    view, role, shape = known.series(token), query.get("role", "after"), query.get("shape", "box")
    return answer_json(view.roi(role, plane, index, box, shape, whole(request, "frame")))


def _nifti(known: Service, token: str, request: Request) -> Response:
    content = known.series(token).nifti(request.query_params.get("role", "after"), whole(request, "frame"))
    return Response(content, media_type="application/octet-stream", headers=PICTURE)


class Guard:
    """ASGI middleware around pages and routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        config = service().config
        auth = config.auth.auth if config.auth else {}
        host = "/".join(str(auth.get("server_metadata_url", "")).split("/")[:3]) or None
        self._headers, self._https = security_headers(https=config.https, sign_in_host=host), config.https
        self._hosts = config.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer for one that comes too often."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if not self._is_ours(scope):
            await _refuse(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        if _signs_in(scope["path"]) and not service().sign_ins.allows(self._client(scope)):
            response = JSONResponse({"error": "too many tries; wait a minute"}, 429, headers={"Retry-After": "60"})
            await response(scope, receive, self._with_headers(scope, send))
            return
        await self._app(scope, receive, self._with_headers(scope, send))

    def _is_ours(self, scope: Scope) -> bool:
        """Whether the request names this server: a foreign name that leads here (DNS rebinding) is turned away."""
        return host_of(Headers(scope=scope).get("host", "")) in self._hosts

    def _client(self, scope: Scope) -> str:
        """Who asks: behind a proxy, the address that the proxy saw, which it puts last."""
        seen = Headers(scope=scope).get("x-forwarded-for", "").rpartition(",")[2].strip() if self._https else ""
        return seen or (scope.get("client") or ("unknown", 0))[0]

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        has_cookie = COOKIE in Request(scope).cookies

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if not has_cookie and headers.get("content-type", "").startswith("text/html"):
                    secure = "; Secure" if self._https else ""
                    headers.append(
                        "set-cookie", f"{COOKIE}={Access.new_cookie()}; Path=/; HttpOnly; SameSite=Lax{secure}"
                    )
            await send(message)

        return sent


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    await JSONResponse({"error": "not allowed"}, 403)(scope, receive, send)


def _signs_in(path: str) -> bool:
    return path.rstrip("/").endswith(("/auth/login", "/oauth2callback"))
