"""Handing a primary's reign over to one of its mirrors."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from fusejournal.admin.live import ask_layer, live_status, wait_for_role
from fusejournal.control.client import RemoteError
from fusejournal.control.reply import Reply
from fusejournal.errors import FusejournalError, HandoffRefusedError, NotRunningError
from fusejournal.node.state_dir import VolumeState, load_state
from fusejournal.roles.plan import HandoffProgress

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 15.0
"""The time that a handoff may be in doubt beyond its own before the command reports it."""
_ROLE_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class HandedOver(Reply):
    """A volume whose reign another node has now."""

    volume: str
    peer: str
    """The node that reigns now, as the admin named it."""
    reign: str
    follows: str | None
    """The peer that ships to this node; None where none does yet."""
    head_seq: int
    """The end of the journal when it was handed over."""


def hand_over(
    state: VolumeState,
    peer: str,
    *,
    timeout_seconds: float,
    check: Callable[[], None],
    progress: Callable[[HandoffProgress], None],
) -> HandoffProgress:
    """Hands the volume's reign over to *peer*, and returns, when this node is its mirror, how that
    was. *progress* is called often; *check* may raise KeyboardInterrupt, which takes the handoff
    back, unless the peer reigns by then. Raises NotRunningError, UnknownPeerError's kind, and
    HandoffRefusedError's where the peer has not taken over; FusejournalError."""
    told = HandoffProgress.from_json(
        ask_layer(state, "handoff", peer=peer, timeout_seconds=timeout_seconds)
    )
    deadline = time.monotonic() + timeout_seconds + _PATIENCE_SECONDS
    interrupt: KeyboardInterrupt | None = None
    with suppress(NotRunningError):  # it may be quicker to go than to answer
        while not told.is_over:
            progress(told)
            if interrupt is None:
                try:
                    check()
                except KeyboardInterrupt as error:
                    interrupt = error
                    ask_layer(state, "handoff-cancel")
            if time.monotonic() > deadline:
                raise HandoffRefusedError(
                    f"{peer} does not say whether it has taken over, and changes wait until it "
                    f"does: bring it back, or see 'fusejournal status {state.name}' there"
                )
            time.sleep(_POLL_SECONDS)
            told = HandoffProgress.from_json(ask_layer(state, "handoff-progress"))
        if told.reason is not None:
            if interrupt is not None:
                raise interrupt
            raise RemoteError(told.reason, told.exit_code)
    wait_for_role(state, "mirror", _ROLE_SECONDS)
    # The last progress may be from before the peer had said which reign that would be.
    reign = load_state(state.directory).reign
    return told if reign is None else replace(told, reign=str(reign))


def wait_for_primary(state: VolumeState, timeout_seconds: float) -> str | None:
    """Returns the peer that ships to this mirror, as soon as one does; None where none has within
    *timeout_seconds*."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        with suppress(FusejournalError):
            replication = live_status(state).replication
            mirror = replication.mirror if replication is not None else None
            if mirror is not None and mirror.address is not None:
                return mirror.primary
        time.sleep(_POLL_SECONDS)
    return None
