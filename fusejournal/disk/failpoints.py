"""Failpoints: labelled places at which a test has the process fail, stall or end.

In production nothing listens, and a report costs one global look-up. A test (or
``FUSEJOURNAL_FAULT`` in the environment of a command) can plan a fault for a label: fail the call
with an errno, or kill the process right there, as a power switch would.

``FUSEJOURNAL_FAULT="label:count:action"``: at the *count*-th time that *label* (an ``fnmatch``
pattern) is reached, do *action*: ``kill``, ``stall`` (two seconds, as a slow disk does) or the name
of an errno (``ENOSPC``, ``EIO``), these once; with a ``+`` behind it, from then on.
"""

import errno
import os
import signal
import time
from collections.abc import Callable
from fnmatch import fnmatchcase

_listener: Callable[[str], None] | None = None

_STALL_SECONDS = 2.0


def listen(listener: Callable[[str], None] | None) -> None:
    """Calls *listener* with each label reached; it may raise OSError or end the process. None
    stops."""
    global _listener
    _listener = listener


def reached(label: str) -> None:
    """Reports that the call named *label* comes next. Raises what the planned fault raises."""
    if _listener is not None:
        _listener(label)


class PlannedFault:
    """One fault at the *count*-th call whose label matches *pattern*: see the module's
    docstring."""

    def __init__(self, pattern: str, count: int, action: str) -> None:
        self.pattern = pattern
        self.left = count
        self.repeat = action.endswith("+")
        self.action = action.rstrip("+")
        self.errno = getattr(errno, self.action, None)
        if self.errno is None and self.action not in ("kill", "stall"):
            raise ValueError(f"no action {action!r}")

    def __call__(self, label: str) -> None:
        if not fnmatchcase(label, self.pattern):
            return
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.repeat):
            return
        if self.errno is not None:
            raise OSError(self.errno, f"{os.strerror(self.errno)} (planned at {label})")
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_STALL_SECONDS)


def listen_to_environment() -> None:
    """Plans the fault that ``FUSEJOURNAL_FAULT`` names, if it is set (only tests set it)."""
    plan = os.environ.get("FUSEJOURNAL_FAULT")
    if plan:
        pattern, count, action = plan.split(":")
        listen(PlannedFault(pattern, int(count), action))
