"""Waiting for what takes a moment on an idle machine: on a busy one it may take long, and only what
never comes is to fail."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once *condition* holds. Raises AssertionError if it does not in a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
