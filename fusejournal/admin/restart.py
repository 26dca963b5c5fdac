"""A new start of a running layer, beneath all users."""

import time
from collections.abc import Callable
from contextlib import suppress

from fusejournal.admin.live import ask_layer, live_status
from fusejournal.control.client import RemoteError, ask
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.refusals import check_next_start
from fusejournal.node.replies import LayerArguments
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import VolumeState

_POLL_SECONDS = 0.05


def restart_volume(
    state: VolumeState, timeout_seconds: float, specify: Callable[[list[str]], MountSpec]
) -> None:
    """Restarts the layer of a volume, with the program that is installed by now and without
    unmounting, and returns when it is back. Nothing is ended where its next start would be refused,
    which *specify* finds: it makes the mount of the layer's command line. Raises NotRunningError
    where none is running, FusejournalError where it would be refused, does not come back, or not
    within *timeout_seconds*."""
    before = live_status(state)
    _check(state, before.pid, specify)
    with suppress(NotRunningError):  # it may be quicker to go than to answer
        ask_layer(state, "restart")
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


def _check(state: VolumeState, pid: int | None, specify: Callable[[list[str]], MountSpec]) -> None:
    try:
        found = LayerArguments.from_json(ask(state.directory, "arguments"))
    except RemoteError:
        return  # a layer of an earlier version does not tell them
    check_next_start(specify(list(found.arguments)), state, pid or 0)


def _is_back(state: VolumeState, before: float | None) -> bool:
    try:
        return live_status(state).live_since not in (None, before)
    except FusejournalError:
        return False


def _is_gone(pid: int | None) -> bool:
    """Returns True if the layer's process, which keeps its pid, has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
