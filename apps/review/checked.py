"""What all routes share: the check of the address, the words of a query, errors in words."""

import json
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medseq.errors import MedseqError, OutputError, RetryableError
from medseq.inference.review_access import COOKIE, Refused
from medseq.inference.review_service import Service, service

__all__ = ["FACTS", "PICTURE", "BadQuery", "answer_json", "four", "needed", "number", "route", "whole"]

# Pixels stay in the reader's browser for a moment, so that scrolling back is quick; never in a shared cache.
PICTURE = {"Cache-Control": "private, max-age=300"}
FACTS = {"Cache-Control": "no-store"}

Answer = Callable[[Service, str, Request], Response]


class BadQuery(Exception):
    """A word in an address that makes no sense."""


def route(path: str, answer: Answer) -> Route:
    """A route whose address is checked before `answer` runs, in a thread: the pages go on meanwhile.

    Args:
        path: With ``{token}``, the item.
        answer: Gets the service, the token and the request.
    """

    async def endpoint(request: Request) -> Response:
        token = str(request.path_params["token"])
        try:
            session = service().access.check(request.query_params.get("t"), request.cookies.get(COOKIE), token)
            # What is not logged is not shown.
            service().log.write(session.user, "picture", token, once_s=300.0)
            response = await anyio.to_thread.run_sync(answer, service(), token, request)
        except Refused as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status, headers=FACTS)
        except BadQuery as error:
            return JSONResponse({"error": str(error)}, 422, headers=FACTS)
        except LookupError:
            return JSONResponse({"error": "not found"}, 404, headers=FACTS)
        except (RetryableError, OutputError) as error:
            return JSONResponse({"error": str(error)}, 503, headers={**FACTS, "Retry-After": "2"})
        except MedseqError as error:
            return JSONResponse({"error": str(error)}, 404, headers=FACTS)
        return response

    return Route(path, endpoint, methods=["GET"])


def number(request: Request, name: str) -> float | None:
    """A number of the query; None if it is not there.

    Raises:
        BadQuery: No number, or one that nothing has.
    """
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise BadQuery(f"{name} is no number") from None
    if not abs(value) < 1e9:
        raise BadQuery(f"{name} is out of range")
    return value


def needed(request: Request, name: str) -> float:
    """A number that must be there."""
    value = number(request, name)
    if value is None:
        raise BadQuery(f"{name} is missing")
    return value


def four(request: Request, name: str) -> tuple[float, float, float, float]:
    """Four numbers with commas between them."""
    try:
        a, b, c, d = (float(text) for text in request.query_params.get(name, "").split(","))
    except ValueError:
        raise BadQuery(f"{name} wants four numbers") from None
    if not all(abs(value) < 1e9 for value in (a, b, c, d)):
        raise BadQuery(f"{name} is out of range")
    return a, b, c, d


def whole(request: Request, name: str) -> int:
    """A whole number from 0; 0 if it is not there."""
    value = number(request, name) or 0.0
    if value != int(value) or value < 0:
        raise BadQuery(f"{name} is no whole number")
    return int(value)


def answer_json(content: Any) -> Response:
    """Plain data, never kept by a cache."""
    return Response(json.dumps(content, allow_nan=False), media_type="application/json", headers=FACTS)
