"""Making a primary a mirror."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fusejournal.admin.live import follow_layer, live_status, wait_for_role
from fusejournal.control.reply import Reply
from fusejournal.errors import FusejournalError, NotRunningError
from fusejournal.node.state_dir import VolumeState
from fusejournal.replication.states import MirrorState
from fusejournal.replication.status import MirrorStatus
from fusejournal.volume.trouble import TroubleKind

_POLL_SECONDS: Final = 0.05
_FOLLOW_SECONDS: Final = 5.0
"""The time that a demotion waits for the primary that the node is to follow."""
_NOT_COMPARED: Final = (MirrorState.WAITING, MirrorState.CONNECTING)


@dataclass(frozen=True, kw_only=True)
class Demoted(Reply):
    """A primary that is a mirror now, with the entries up to ``head_seq``."""

    volume: str
    role: str
    """Its role from now on."""
    head_seq: int


def await_primary(state: VolumeState, timeout_seconds: float) -> MirrorStatus | None:
    """Returns how a mirror stands to its primary, as soon as the two have compared their journals;
    None where they have not within *timeout_seconds*."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        with suppress(FusejournalError):
            replication = live_status(state).replication
            mirror = replication.mirror if replication is not None else None
            if mirror is not None and mirror.state not in _NOT_COMPARED:
                return mirror
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)


def demoted_words(volume: str, head_seq: int, mirror: MirrorStatus | None) -> str:
    """Returns what a demotion came to. *mirror*: how it stands to its primary, as far as that is
    known; None where it is not, because no primary has shipped to it since."""
    words = f"{volume} is a mirror now, with the entries up to {head_seq}"
    level = f"'fusejournal umount {volume}', 'fusejournal rejoin {volume}', 'fusejournal mount "
    level += f"{volume}'"
    if mirror is None:
        return (
            f"{words}; whether its primary has all of them is known once that ships to it: see "
            f"'fusejournal status {volume}', and where that says diverged: {level}"
        )
    if mirror.state is MirrorState.DIVERGED:
        return f"{words}, which {mirror.primary} has not all: it has diverged: {level}"
    if mirror.state in (MirrorState.CATCHING_UP, MirrorState.STREAMING):
        return f"{words}, and follows {mirror.primary}"
    return f"{words}; {mirror.primary}: {mirror.state}: see 'fusejournal status {volume}'"


def demote_in_words(
    state: VolumeState, *, force: bool, drain_seconds: float, timeout_seconds: float
) -> tuple[Demoted, str]:
    """Does what :func:`demote` does, and returns what it came to, as data and in words. A primary
    that was fenced has another to follow, which is waited for a while, because it may have entries
    that this one lacks, and the other way round. Raises the same."""
    was_fenced = live_status(state).has(TroubleKind.FENCED)
    head_seq = demote(
        state, force=force, drain_seconds=drain_seconds, timeout_seconds=timeout_seconds
    )
    demoted = Demoted(volume=state.name, role="mirror", head_seq=head_seq)
    if not was_fenced:
        return demoted, f"{state.name} is a mirror now, with the entries up to {head_seq}"
    return demoted, demoted_words(state.name, head_seq, await_primary(state, _FOLLOW_SECONDS))


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
