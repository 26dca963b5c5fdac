"""Questions to a running layer. They load little, because most commands ask one."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal

from fusejournal.control.client import ask, follow
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus

_POLL_SECONDS: Final = 0.02


def ask_layer(state: VolumeState, command: str, **fields: Any) -> dict[str, Any]:
    """Asks the layer of a volume. Raises NotRunningError, whose message has the way to mount it
    where no layer has it, and what one that has it waits for; FusejournalError."""
    with _saying_how_to_mount(state):
        return ask(state.directory, command, **fields)


def follow_layer(
    state: VolumeState,
    command: str,
    working: Callable[[Mapping[str, Any]], None] = lambda _: None,
    **fields: Any,
) -> dict[str, Any]:
    """Asks the layer of a volume for a command that may take long, and follows it to its end, as
    :func:`fusejournal.control.client.follow` does. Raises as :func:`ask_layer`."""
    with _saying_how_to_mount(state):
        return follow(state.directory, command, working, **fields)


@contextmanager
def _saying_how_to_mount(state: VolumeState) -> Iterator[None]:
    try:
        yield
    except NotRunningError:
        holder = state.holder()
        if holder is None:
            words = f"fusejournal mount {state.name}"
        elif "waits_for" in holder:
            words = f"its start waits: {holder['waits_for']}"
        else:
            pid, log = holder.get("pid", "?"), state.directory / "log"
            words = f"process {pid} has it, which starts or ends: see {log}"
        raise NotRunningError(f"volume {state.name} is not mounted: {words}") from None


def live_status(state: VolumeState) -> VolumeStatus:
    """Returns the status of a volume as its layer has it. Raises NotRunningError where none runs or
    answers, FusejournalError."""
    return VolumeStatus.from_json(ask_layer(state, "status"))


def wait_for_role(
    state: VolumeState, role: Literal["primary", "mirror"], timeout_seconds: float
) -> VolumeStatus:
    """Returns the status of the volume as soon as its layer serves as *role*. Raises
    FusejournalError where the layer has ended, or does not within *timeout_seconds*."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        with suppress(FusejournalError):  # it does not answer while the role changes
            status = live_status(state)
            if status.role == role and status.live_since is not None:
                return status
        log = state.directory / "log"
        if state.holder() is None:
            raise FusejournalError(
                f"the layer of {state.name} ended meanwhile: see {log}; "
                f"'fusejournal mount {state.name}' goes on with it"
            )
        if time.monotonic() > deadline:
            raise FusejournalError(
                f"the layer of {state.name} does not serve as {role} yet: see {log}"
            )
        time.sleep(_POLL_SECONDS)
