"""Fields of requests: the command fails where one cannot be."""

import json
from typing import Any

import pytest

from fusejournal.control.requests import seconds_in
from fusejournal.errors import UsageError


def _request(text: str) -> dict[str, Any]:
    """A request with these seconds, as it comes over the socket."""
    request: dict[str, Any] = json.loads(f'{{"command": "handoff", "seconds": {text}}}')
    return request


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "Infinity", "-Infinity", "-1", "-0.001", "60.5", "1e400", "9" * 4000),
        *("true", '"5"', "null", "[]", "{}"),
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^seconds has to be seconds, 0 to 60, and not "):
        seconds_in(_request(text), "seconds", 60.0)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("2.5", 2.5), ("60", 60.0)])
def test_a_time_is_taken(text: str, seconds: float) -> None:
    assert seconds_in(_request(text), "seconds", 60.0) == seconds


def test_a_time_may_be_left_out() -> None:
    assert seconds_in({"command": "handoff"}, "seconds", 60.0) == 0.0
