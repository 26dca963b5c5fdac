"""Ctrl-C where work must not stop half-way through a step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_pending: list[bool] = []
"""True for each block that holds interrupts back, once one has come that was not raised yet."""


def raise_interrupt() -> None:
    """Raises KeyboardInterrupt, once, if one was held back: for a command that waits for something
    far away, where stopping harms nothing. What tidies up after it may wait there, too."""
    if threading.current_thread() is threading.main_thread() and any(_pending):
        _pending[:] = [False] * len(_pending)
        raise KeyboardInterrupt


@contextmanager
def orderly_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and SIGTERM back for the length of the block; what it gives is to be called
    between two steps, and raises KeyboardInterrupt there once one has come."""
    came = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal came
        came = True
        _pending[at] = True

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    at = len(_pending)
    _pending.append(False)
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        del _pending[at:]
