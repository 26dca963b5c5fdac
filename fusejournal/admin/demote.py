"""Making a primary a mirror."""

import time
from contextlib import suppress

from fusejournal.admin.live import follow_layer, live_status, wait_for_role
from fusejournal.errors import NotRunningError
from fusejournal.node.state_dir import VolumeState


def demote(state: VolumeState, *, force: bool, drain_seconds: float, timeout_seconds: float) -> int:
    """Makes the volume's primary a mirror, once its mirrors have everything, for which they have
    *drain_seconds*. Returns, when it serves as one, the end of its journal. Raises NotRunningError;
    DemotionRefusedError where no mirror has everything, and not *force*; FusejournalError."""
    deadline = time.monotonic() + timeout_seconds
    live_status(state)
    with suppress(NotRunningError):  # it may be quicker to go than to answer
        follow_layer(state, "demote", force=force, timeout_seconds=drain_seconds)
    left_seconds = max(0.0, deadline - time.monotonic())
    return wait_for_role(state, "mirror", left_seconds).head_seq or 0
