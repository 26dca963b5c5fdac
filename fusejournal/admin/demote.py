"""Making a primary a mirror."""

import time
from contextlib import suppress

from fusejournal.admin.live import follow_layer, live_status, wait_for_role
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus


def is_fenced(status: VolumeStatus) -> bool:
    """Returns True for a primary that takes no change because another node reigns."""
    return any(line.startswith("read-only: fenced") for line in status.degraded)


def described_role(state: VolumeState) -> str:
    """Returns the role of a volume in words: of a primary whose layer runs, also that it is
    fenced."""
    with suppress(FusejournalError):
        if is_fenced(live_status(state)):
            return "a primary that is fenced and so read-only (see 'fusejournal status')"
    return f"a {state.role_word}"


def demoted_words(volume: str, head_seq: int, *, was_fenced: bool) -> str:
    """Returns what a demotion came to, and for a fenced primary, whose own entries are noticed only
    once its successor ships to it, where that is told."""
    words = f"{volume} is a mirror now, and holds entries up to {head_seq}"
    if not was_fenced:
        return words
    return (
        f"{words}; see 'fusejournal status {volume}': where it says diverged: 'fusejournal umount "
        f"{volume}', 'fusejournal rejoin {volume}', 'fusejournal mount {volume}'"
    )


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
