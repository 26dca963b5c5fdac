"""Making a primary a mirror."""

import time
from contextlib import suppress

from fusejournal.admin.live import ask_layer, live_status
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.state_dir import VolumeState

_POLL_SECONDS = 0.02


def demote(state: VolumeState, *, force: bool, drain_seconds: float, timeout_seconds: float) -> int:
    """Makes the volume's primary a mirror, once its mirrors have everything, for which they have
    *drain_seconds*. Returns, when it serves as one, the end of its journal. Raises NotRunningError;
    DemotionRefusedError where no mirror has everything, and not *force*; FusejournalError."""
    deadline = time.monotonic() + timeout_seconds
    with suppress(NotRunningError):  # it may be quicker to go than to answer
        ask_layer(state, "demote", force=force, timeout_seconds=drain_seconds)
    while True:
        with suppress(FusejournalError):
            status = live_status(state)
            if status.role == "mirror" and status.live_since is not None:
                return status.head_seq or 0
        if state.holder() is None:
            raise FusejournalError(
                f"the layer of {state.name} ended meanwhile: see {state.directory / 'log'}; "
                f"'fusejournal mount {state.name}' goes on with it"
            )
        if time.monotonic() > deadline:
            raise FusejournalError(
                f"the layer of {state.name} does not serve as a mirror after {timeout_seconds:g} "
                f"s: see {state.directory / 'log'}"
            )
        time.sleep(_POLL_SECONDS)
