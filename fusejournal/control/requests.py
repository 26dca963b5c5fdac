"""Fields of requests to a running layer, checked as they are taken, because any program of root's
writes what it likes to the socket (server.py)."""

from collections.abc import Mapping
from typing import Any

from fusejournal.errors import UsageError


def seconds_in(request: Mapping[str, Any], name: str, seconds_max: float) -> float:
    """Returns the field *name* of *request*, a time from 0 to *seconds_max*; 0 where it is not
    there. Raises UsageError."""
    value = request.get(name, 0.0)
    # (No number, which JSON of Python may have, is in no range.)
    if type(value) not in (int, float) or not 0 <= value <= seconds_max:
        raise UsageError(f"{name} has to be seconds, 0 to {seconds_max:g}, and not {value!r:.40}")
    return float(value)
