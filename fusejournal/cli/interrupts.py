"""Ctrl-C where work must not stop half-way through a step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def orderly_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C and SIGTERM back for the length of the block; what it gives is to be called
    between two steps, and raises KeyboardInterrupt there once one has come."""
    came = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal came
        came = True

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
