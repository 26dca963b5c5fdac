"""Requests and answers of the API: JSON bodies with a bound, where a request comes from, the fields
of a route, and refusals."""

import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import parse_qs

import trio
from starlette.requests import Request
from starlette.responses import Response

from fusejournal.console.routes import ApiRoute
from fusejournal.disk.files import UNREADABLE_JSON

_BODY_BYTES_MAX: Final = 64 << 10
_BODY_SECONDS = 10.0
"""The time that a body may take, for strangers send some, too."""


class RefusedRequestError(Exception):
    """A request that goes no further: *status*, and *words* for people."""

    def __init__(self, status: int, words: str) -> None:
        self.status = status
        super().__init__(words)


def json_answer(value: Any, status: int = 200) -> Response:
    """Returns *value* as an answer."""
    # In ASCII: a name that is no UTF-8 carries its bytes as lone surrogates, as escapes.
    return Response(json.dumps(value).encode(), status, media_type="application/json")


def error_answer(status: int, words: str) -> Response:
    """Returns a refusal as an answer."""
    return json_answer({"error": words}, status)


def host_of(request: Request) -> str:
    """Returns the address that a request came from."""
    return str(request.client.host) if request.client is not None else "?"


def check_origin(request: Request) -> None:
    """Raises RefusedRequestError for a request that another site's page sent."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if site != "same-origin" or not is_own:
        raise RefusedRequestError(403, "the request comes from another site")
    check_json(request)


def check_json(request: Request) -> None:
    """Raises RefusedRequestError for a change that is not asked for in JSON."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise RefusedRequestError(415, "send it with Content-Type: application/json")


async def body_of(request: Request) -> dict[str, Any]:
    """Returns the JSON object that a request brings. Cancelling leaves what has not come unread.
    Raises RefusedRequestError."""
    too_long = RefusedRequestError(413, f"more than {_BODY_BYTES_MAX} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > _BODY_BYTES_MAX:
        raise too_long
    content = b""
    try:
        with trio.fail_after(_BODY_SECONDS):
            async with aclosing(request.stream()) as parts:
                async for part in parts:
                    content += part
                    if len(content) > _BODY_BYTES_MAX:
                        raise too_long
    except trio.TooSlowError:
        words = f"the request's body was not there within {_BODY_SECONDS:g} s"
        raise RefusedRequestError(408, words) from None
    try:
        body = json.loads(content or b"{}")
    except UNREADABLE_JSON:
        raise RefusedRequestError(400, "no JSON") from None
    if not isinstance(body, dict):
        raise RefusedRequestError(400, "no JSON object")
    return body


def query_fields(route: ApiRoute, request: Request) -> dict[str, Any]:
    """Returns the fields of a GET: only those that the route has."""
    fields: dict[str, Any] = {}
    # Bytes that are no UTF-8 stay what they are, as in all names.
    query = parse_qs(request.scope["query_string"].decode("latin-1"), errors="surrogateescape")
    for parameter in route.parameters:
        values = query.get(parameter.name)
        if values:
            fields[parameter.name] = values if parameter.kind == "array" else values[-1]
    return {**fields, **path_fields(request)}


def path_fields(request: Request) -> dict[str, Any]:
    """Returns the fields that a request's path has, but for the agent."""
    found: Mapping[str, str] = request.path_params
    return {name: value for name, value in found.items() if name != "agent"}


def where_of(request: Request) -> dict[str, Any]:
    """Returns what a request's path names, for the audit."""
    return {f"in_{name}": value for name, value in request.path_params.items()}


def without_secrets(route: ApiRoute, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a request brings, for the audit: a secret is not in it, only that one came."""
    secret = {one.name for one in route.parameters if one.is_secret}
    return {name: "(secret)" if name in secret else value for name, value in body.items()}
