"""Routes of slides and reconstructions; see ``routes.py`` for the list and for what they share."""

from typing import Any

from checked import FACTS, PICTURE, BadQuery, answer_json, number, route, whole
from starlette.requests import Request
from starlette.responses import Response

from medseq.inference.review_service import Service

__all__ = ["recon_routes", "slide_routes"]


def slide_routes() -> list[Any]:
    """Deep zoom, attention, patches."""
    return [
        route("/api/slide/{token}.dzi", _descriptor),
        route("/api/slide/{token}_files/{level:int}/{tile}.jpeg", _tile),
        route("/api/slide-info/{token}", _info),
        route("/api/overlay/{token}", _overlay),
        route("/api/patches/{token}", _patches),
        route("/api/patch/{token}", _patch),
        route("/api/thumbnail/{token}", _thumbnail),
        route("/api/quality/{token}", _quality),
        route("/api/quality-info/{token}", _quality_info),
        route("/api/stored/{token}", _stored),
    ]


def recon_routes() -> list[Any]:
    """Raw data."""
    return [
        route("/api/recon-info/{token}", _recon_info),
        route("/api/recon/{token}/{picture}", _recon),
    ]


def _descriptor(known: Service, token: str, request: Request) -> Response:
    zoom = known.slide(token).zoom
    if zoom is None:
        raise LookupError("no slide")
    return Response(zoom.descriptor(), media_type="application/xml", headers=FACTS)


def _tile(known: Service, token: str, request: Request) -> Response:
    col, _, row = str(request.path_params["tile"]).partition("_")
    if not (col.isdecimal() and row.isdecimal() and len(col) < 8 and len(row) < 8):
        raise BadQuery("a tile is named by column and row")
    picture = known.slide(token).tile(int(request.path_params["level"]), int(col), int(row))
    return Response(picture, media_type="image/jpeg", headers=PICTURE)


def _info(known: Service, token: str, request: Request) -> Response:
    return answer_json(known.slide(token).info(whole(request, "top") or 12))


def _overlay(known: Service, token: str, request: Request) -> Response:
    view = known.slide(token)
    method = request.query_params.get("method") or (view.methods[0] if view.methods else "attention")
    threshold, opacity = number(request, "threshold"), number(request, "opacity")
    picture = view.overlay(method, threshold or 0.0, 1.0 if opacity is None else opacity)
    return Response(picture, media_type="image/png", headers=PICTURE)


def _patches(known: Service, token: str, request: Request) -> Response:
    view = known.slide(token)
    method = request.query_params.get("method") or (view.methods[0] if view.methods else "attention")
    return answer_json(view.top(method, whole(request, "count") or 12))


def _patch(known: Service, token: str, request: Request) -> Response:
    picture = known.slide(token).patch(whole(request, "index"), whole(request, "side") or 192)
    return Response(picture, media_type="image/jpeg", headers=PICTURE)


def _thumbnail(known: Service, token: str, request: Request) -> Response:
    picture = known.slide(token).thumbnail(whole(request, "side") or 512)
    return Response(picture, media_type="image/jpeg", headers=PICTURE)


def _quality(known: Service, token: str, request: Request) -> Response:
    return Response(known.slide(token).quality()[0], media_type="image/png", headers=PICTURE)


def _quality_info(known: Service, token: str, request: Request) -> Response:
    return answer_json(known.slide(token).quality()[1])


def _stored(known: Service, token: str, request: Request) -> Response:
    picture = known.slide(token).stored(request.query_params.get("name", "overlay"))
    return Response(picture, media_type="image/png", headers=PICTURE)


def _recon_info(known: Service, token: str, request: Request) -> Response:
    return answer_json(known.recon(token).info(whole(request, "index")))


def _recon(known: Service, token: str, request: Request) -> Response:
    name, of = str(request.path_params["picture"]), request.query_params.get("of", "result")
    picture = known.recon(token).picture(name, whole(request, "index"), of)
    return Response(picture, media_type="image/png", headers=PICTURE)
