"""Keeps the journal for a peer that takes nothing: notes since when, and up to which limit.

A peer that has gone, that is paused, and one that is here and takes nothing, as a full mirror, are
the same here. What is noted is in the book of peers, and so outlives the process.

For how long that has been is counted, in seconds that this node ran: a clock that was wrong once,
as it is at a boot without a battery, says nothing of it. (While the node is down, its journal does
not grow for anybody.)"""

import logging
import time
from contextlib import suppress

import trio

from fusejournal.config import ReplicationConfig
from fusejournal.errors import FusejournalError, UnknownPeerError
from fusejournal.replication.peers import PeerBook
from fusejournal.types import Seq
from fusejournal.volume.volume import Volume

log = logging.getLogger(__name__)

_DAY_SECONDS = 86400.0
_NOTE_SECONDS = 60.0
"""The count is noted as often, and then saved."""


def _now() -> float:
    """Seconds by a clock that cannot be set, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Retention:
    """The retention of the journal of *volume*, for the peer *name*."""

    def __init__(
        self, name: str, volume: Volume, config: ReplicationConfig, book: PeerBook
    ) -> None:
        self._name = name
        self._volume = volume
        self._config = config
        self._book = book
        self._since: float | None = None
        """The time until which the peer's absence is noted, by a clock that cannot be set."""

    def takes(self) -> None:
        """The peer takes what there is."""
        self._since = None
        with suppress(UnknownPeerError):  # removed meanwhile
            self._book.note_here(self._name)

    def takes_nothing(self) -> None:
        """The peer takes nothing, from now on if not for longer."""
        if self._since is None:
            self._since = _now()
        with suppress(UnknownPeerError):
            self._book.note_left(self._name, self._volume.catalog.applied_seq, time.time())

    def overdue(self) -> str | None:
        """Returns why the journal alone is not to bring the peer up to date any more; None where it
        is, or where that is known."""
        peer = self._book.find(self._name)
        if peer is None or peer.needs_copy or peer.left_seq is None:
            return None
        unnoted_seconds = self._count()
        grown_bytes = self._volume.journal.bytes_from(Seq(peer.left_seq + 1))
        if grown_bytes > self._config.keep_bytes:
            return (
                f"the journal has grown by {grown_bytes:,} bytes since it took anything, and "
                f"{self._config.keep_bytes:,} are kept for it"
            )
        away_seconds = peer.away_seconds + unnoted_seconds
        if away_seconds > self._config.keep_days * _DAY_SECONDS and grown_bytes:
            return f"it has taken nothing for more than {self._config.keep_days:g} days"
        return None

    def _count(self) -> float:
        """Count on for how long the peer has taken nothing; how much of that is not noted yet."""
        now = _now()
        if self._since is None:
            self._since = now
        unnoted_seconds = now - self._since
        if unnoted_seconds > _NOTE_SECONDS:
            self._book.note_away(self._name, unnoted_seconds)
            self._since = now
        return unnoted_seconds

    async def end(self, why: str) -> None:
        """Note that the peer needs a full copy, for the reason *why*. Cancelled, the book may not
        be saved yet, and is later."""
        log.error("peer %s needs a full copy: %s", self._name, why)
        try:
            self._book.set_needs_copy(self._name, why)
            await trio.to_thread.run_sync(self._book.save)
        except FusejournalError as error:  # removed meanwhile, or the disk is full
            log.warning("that peer %s needs a full copy is not written down: %s", self._name, error)
