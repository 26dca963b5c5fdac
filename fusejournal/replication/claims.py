"""Claims of peers that a higher reign has begun, as a primary hears them.

A claim counts where the journals of the two prove it (``is_proven`` of wire/session.py). Then it is
on this node's disk, in the page of watermarks, before any peer is answered, also where the primary
is fenced already. A mirror's receiver judges what that hears.

Used from the event loop's thread."""

import logging
from collections.abc import Callable

import trio

from fusejournal.journal.journal import Journal
from fusejournal.replication.common_ancestor import ChainFinder, is_bound_by
from fusejournal.replication.fence import Fence
from fusejournal.replication.quorum import Quorum
from fusejournal.types import Reign
from fusejournal.volume.durability import Durability
from fusejournal.volume.trouble import TroubleKind
from fusejournal.volume.volume import Volume
from fusejournal.wire.session import Claim

log = logging.getLogger(__name__)


async def is_binding(claim: Claim, fence: Fence, journal: Journal) -> bool:
    """Returns True if *claim* is proven to a primary that has *journal*. Cancelling is harmless.
    Raises OSError where the journal cannot be read."""
    chains = ChainFinder(journal.directory, journal.uuid)
    return await is_bound_by(claim, fence.own(journal.epoch), chains)


class PrimaryClaims:
    """Hears claims while a primary runs. *break_off* ends its sessions."""

    def __init__(
        self,
        fence: Fence,
        volume: Volume,
        quorum: Quorum,
        durability: Durability,
        break_off: Callable[[], None],
    ) -> None:
        self._fence = fence
        self._volume = volume
        self._quorum = quorum
        self._durability = durability
        self._break_off = break_off
        self._heeding = trio.Lock()
        self._unproven: dict[str, Reign] = {}
        """The reign that each peer spoke of last without a proof: it is logged once."""

    async def heed(self, claim: Claim, peer: str) -> None:
        """Take no change any more where *claim*, which *peer* makes, ends the reign of this node.
        The highest reign that was seen is on the disk when this returns. Cancelling leaves the
        claim unheard, or heard. Raises OSError where the journal cannot be read, or the claim not
        be written down; JournalFailedError where the flush failed."""
        async with self._heeding:  # a peer that claims the same waits until it is on the disk
            await self._hear(claim, peer)
            await self._fence.make_durable(self._durability.flush_watermarks)

    async def _hear(self, claim: Claim, peer: str) -> None:
        fence, journal = self._fence, self._volume.journal
        if claim.reign.epoch <= max(journal.epoch, fence.seen.epoch):
            return
        if not await is_binding(claim, fence, journal):
            if self._unproven.get(peer) != claim.reign:
                self._unproven[peer] = claim.reign
                log.warning(
                    "peer %s speaks of reign %s, and nothing there proves it: it does not count",
                    peer,
                    claim.reign,
                )
            return
        try:
            fence.note(claim.reign)
        except OSError as error:  # it holds for this run at least
            self._stop(f"fenced by {claim.reign}, which cannot be written down: {error.strerror}")
            raise
        words = fence.refusal(journal.epoch)
        if words is not None:
            self._stop(words)

    def _stop(self, words: str) -> None:
        self._volume.fail(words, TroubleKind.FENCED)
        self._quorum.fence()
        self._break_off()
