"""A new start of a running layer, beneath all users."""

import time
from contextlib import suppress

from fusejournal.admin.live import live_status
from fusejournal.control.client import ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.state_dir import VolumeState

_POLL_SECONDS = 0.05


def restart_volume(state: VolumeState, timeout_seconds: float) -> None:
    """Restarts the layer of a volume, with the program that is installed by now and without
    unmounting, and returns when it is back. Raises NotRunningError where none is running,
    FusejournalError where it does not come back, or not within *timeout_seconds*."""
    before = live_status(state)
    with suppress(NotRunningError):  # it may be quicker to go than to answer
        ask(state.directory, "restart")
    deadline = time.monotonic() + timeout_seconds
    while not _is_back(state, before.live_since):
        if state.holder() is None and _is_gone(before.pid):
            raise FusejournalError(
                f"the layer of {state.name} did not come back: see {state.directory / 'log'}; "
                f"'fusejournal mount {state.name}' takes the mount over"
            )
        if time.monotonic() > deadline:
            raise FusejournalError(
                f"the layer of {state.name} is not back after {timeout_seconds:g} s"
            )
        time.sleep(_POLL_SECONDS)


def _is_back(state: VolumeState, before: float | None) -> bool:
    try:
        return live_status(state).live_since not in (None, before)
    except FusejournalError:
        return False


def _is_gone(pid: int | None) -> bool:
    """Tells if the layer's process, which keeps its pid, has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
