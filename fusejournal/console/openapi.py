"""The description of the API, as OpenAPI has it, made from the table of routes.

Source: OpenAPI Specification 3.1.0."""

import re
from importlib.metadata import version
from typing import Any

from fusejournal.console.routes import ROUTES, ApiRoute, Parameter

_OWN = (
    ("GET", "/api/session", "Who is logged in, and the secret that changes need.", ()),
    ("POST", "/api/login", "Logs in.", ("name", "password")),
    ("POST", "/api/password", "Chooses a password by a one-time code.",
     ("name", "code", "password")),
    ("POST", "/api/logout", "Logs out.", ()),
    ("GET", "/api/overview", "All agents and volumes, and what is wrong.", ()),
    ("GET", "/api/events", "The overview, again whenever it changes: server-sent events.", ()),
    ("GET", "/api/metrics", "The alerts as metrics, in the text form of Prometheus.", ()),
    ("POST", "/api/channels", "Sends a message by a channel of alerts, as a try; for admins.",
     ("name",)),
    ("GET", "/api/audit", "Who did what on the page; for admins.", ()),
    ("GET", "/api/openapi.json", "This description.", ()),
)  # fmt: skip

_ALERT = (
    Parameter("key", "string", "The alert's key.", True),
    Parameter(
        "action", "string", "What is to be done; without any: acknowledge.",
        values=("acknowledge", "silence", "unsilence"),
    ),
    Parameter("hours", "integer", "silence: for so long."),
)  # fmt: skip


def describe_api(cookie: str) -> dict[str, Any]:
    """Returns the description, as values. *cookie*: the name of that of sessions."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, words, names in _OWN:
        parameters = tuple(Parameter(name, "string", "", True) for name in names)
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, words, parameters)
    paths["/api/alerts"] = {
        "post": _operation("POST", "/api/alerts", "Acknowledges or silences an alert.", _ALERT)
    }
    for route in ROUTES:
        operation = _operation(route.method, route.path, route.words, route.parameters)
        operation["x-access"] = route.access.label
        operation["operationId"] = _id_of(route)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "fusejournal console", "version": version("fusejournal")},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": cookie},
                "token": {"type": "http", "scheme": "bearer"},
            }
        },
        "security": [{"session": []}, {"token": []}],
    }


def _id_of(route: ApiRoute) -> str:
    return route.call.replace("-", "_")


def _operation(
    method: str, path: str, words: str, parameters: tuple[Parameter, ...]
) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    operation: dict[str, Any] = {"summary": words}
    if method == "GET":
        found += [
            {
                "name": one.name, "in": "query", "required": one.is_required,
                "description": one.words, "schema": _schema(one),
            }
            for one in parameters
        ]  # fmt: skip
    else:
        header = {"name": "X-Csrf-Token", "in": "header", "schema": {"type": "string"}}
        found.append({**header, "required": path not in ("/api/login", "/api/password")})
        schema = {
            "type": "object",
            "properties": {one.name: _schema(one) for one in parameters},
            "required": [one.name for one in parameters if one.is_required],
            "additionalProperties": False,
        }
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    operation["parameters"] = found
    operation["responses"] = {
        "200": {"description": "Done."},
        "400": {"description": "It cannot be asked so; error says why."},
        "401": {"description": "The caller is not logged in."},
        "403": {"description": "The user may not."},
        "404": {"description": "There is no such volume, path, entry, version or peer."},
        "408": {"description": "The request took too long to come."},
        "409": {"description": "The job has another plan than the one that is to be done."},
        "413": {"description": "The request is too long."},
        "415": {"description": "A change is asked for in JSON."},
        "429": {"description": "Too often."},
        "502": {"description": "The agent cannot be reached."},
    }
    return operation


def _schema(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "array":
        return {"type": "array", "items": {"type": "string"}}
    schema: dict[str, Any] = {"type": parameter.kind}
    if parameter.values:
        schema["enum"] = list(parameter.values)
    return schema
