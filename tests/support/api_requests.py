"""Requests of all routes that the console's API has, made from its description."""

from collections.abc import Iterator
from itertools import product
from typing import Any
from urllib.parse import urlencode

_NOT_ASKED = ("/api/events", "/api/login", "/api/password", "/api/logout")
"""Events are overviews; the others are about oneself."""


def requests_of(
    described: dict[str, Any], values: dict[str, list[str]]
) -> Iterator[tuple[str, str, str]]:
    """Yields the method, the route's path, and the path and query to ask for: each path with all of
    *values*, by parameter, and in the query of a GET all required parameters, and each other one
    with each of its values."""
    for path, operations in described["paths"].items():
        if path in _NOT_ASKED:
            continue
        for method, operation in operations.items():
            names = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
            for chosen in product(*(values[name] for name in names)):
                where = path.format(**dict(zip(names, chosen, strict=True)))
                queries = _queries(operation, values) if method == "get" else [""]
                for query in queries:
                    yield method, path, f"{where}?{query}"


def _queries(operation: dict[str, Any], values: dict[str, list[str]]) -> list[str]:
    in_query = [one for one in operation["parameters"] if one["in"] == "query"]
    needed = [
        [(one["name"], value) for value in values[one["name"]]]
        for one in in_query
        if one["required"]
    ]
    others = [
        (one["name"], value)
        for one in in_query
        if not one["required"]
        for value in values.get(one["name"], ["1"])
    ]
    found = []
    for base in product(*needed):
        found += [urlencode(base), *(urlencode([*base, other]) for other in others)]
    return found
