"""Knows whether a primary still reigns: by what it has seen of other reigns, kept on its own disk,
so that it holds after a restart, and with no peer in reach.

The highest reign that was seen is in the page of watermarks (journal/watermarks.py), the node's own
included. A primary whose own is lower is *fenced*: it takes no change any more, until it begins
anew as a mirror, or an admin overrules that one reign (``overrule`` in the configuration), which
has it begin an epoch beyond. So does a reign that is overruled and binds this node by no proof: a
mirror that goes by it would never take anything from here again. Whether a peer's vote counts is
decided in wire/session.py (``is_proven``).

A node that was promoted is *due* to begin the reign of its record (roles/role.py): that one fences
it not, though its journal is of a lower, and no other epoch is begun in its place.

A node's id is made from its key: a node that got another key is another node, and begins an epoch
of its own at its next start. Epoch 1 has no node: it began with the volume's UUID, so a node that
is of it has a copy of that volume, and a comparison of the journals tells what is to be told.

Used from the event loop's thread."""

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fusejournal.election.lease import Lease
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.types import Epoch, Reign
from fusejournal.wire.frames import Hello
from fusejournal.wire.session import HandshakeState

_NUMBER_BITS = 64


def gives_way(me: HandshakeState, begun: Reign) -> bool:
    """Returns True if *me* goes by a reign that it has only heard of a vote for, its own or that of
    a node that had asked, and another node has *begun* that epoch, if what it says is proven: a
    promotion that came to nothing keeps no node from following. (Both cannot have had votes
    enough.)"""
    return me.position.epoch < me.reign.epoch and me.reign.is_rival(begun)


def comes_from_primary(greeting: Hello) -> bool:
    """Returns True if the sender of *greeting* reigns, and has begun that. (In epoch 1 it does not
    show.)"""
    has_begun = greeting.held_epoch == greeting.epoch
    return has_begun and greeting.node_id == greeting.reign_node != 0


class Fence:
    """The fence of the node *node_id*; *lease* names the reign that does not count here.
    *promoted*: the reign that its role came with. Raises OSError where that cannot be written
    down."""

    def __init__(
        self, page: WatermarkPage, node_id: int, lease: Lease, promoted: Reign | None = None
    ) -> None:
        self._page = page
        self._node_id = node_id
        self._lease = lease
        self._promoted = promoted
        if promoted is not None:
            self.note(promoted)
        self.before = page.instance
        """The number of this node's last start; 0 where there was none."""
        self.instance = secrets.randbits(_NUMBER_BITS) or 1
        """The number of this one."""
        with suppress(OSError):  # a full disk: the next start says the number of one before
            page.write_instance(self.instance)
        self._on_disk: Reign | None = None
        """The part of :attr:`seen` that is known to be on the disk: nothing yet, because an earlier
        process may have died, or failed, between the writing and the flush. (The instance, which
        lies in the same block, has the next flush write that again.)"""

    @property
    def seen(self) -> Reign:
        """The highest reign that was seen, this node's own included."""
        return self._page.fence

    @property
    def highest_epoch(self) -> Epoch:
        """The epoch that one which begins here has to be beyond."""
        ended = self._lease.ended()
        seen = self.seen.epoch - 1 if self.seen == self._promoted else self.seen.epoch
        return Epoch(max(seen, ended.epoch if ended is not None else 0))

    def is_overruled(self, reign: Reign) -> bool:
        """Returns True if a person says that *reign* is none."""
        return self._lease.ended() == reign

    def due(self, epoch: Epoch) -> Reign | None:
        """The reign that this node, whose journal is of *epoch*, was promoted to and has not begun;
        None where there is none, or a higher was seen."""
        promoted = self._promoted
        if promoted is None or promoted != self.seen or promoted.node_id != self._node_id:
            return None
        return promoted if promoted.epoch > epoch else None

    def own(self, epoch: Epoch) -> Reign:
        """The reign that this node goes by, whose journal is of *epoch*: as far as it knows who
        began that. (Under another key, it was another.)"""
        return self.seen if self.seen.epoch == epoch else Reign(epoch, 0)

    def refusal(self, epoch: Epoch) -> str | None:
        """Returns the reason why this node, whose journal is of *epoch*, takes no change, and what
        to do; None where it takes changes."""
        seen = self.seen
        if seen.epoch <= epoch or seen == self._lease.ended() or self.due(epoch) is not None:
            return None
        why = f"another node is primary, in reign {seen}"
        if seen.node_id == self._node_id:
            why = (
                f"the journal here is older than reign {seen}, which this node itself began: it is "
                "a copy, or a copy of it runs elsewhere"
            )
        return (
            f"fenced: {why}; make this one a mirror: 'fusejournal demote', or, where it cannot be "
            "mounted, 'fusejournal rejoin'"
        )

    def new_epoch_reason(self, epoch: Epoch) -> str | None:
        """Returns the reason why this node, whose journal is of *epoch*, is to begin another; None
        where it need not."""
        if self.due(epoch) is not None:
            return f"this node was promoted to reign {self.seen}"
        if self.seen.epoch > epoch:
            return f"reign {self.seen} was overruled" if self.refusal(epoch) is None else None
        if self.highest_epoch > epoch:
            return f"reign {self._lease.ended()} was overruled"
        if self.seen.is_rival(Reign(epoch, self._node_id)):
            return "this node has another key than before"
        return None

    def reigns(self, epoch: Epoch) -> None:
        """Write down that this node reigns in *epoch* from now on. Raises OSError."""
        self._page.write_fence(Reign(epoch, self._node_id if epoch > 1 else 0))

    def note(self, reign: Reign) -> bool:
        """Write down that *reign* was seen, which then outlives the process. Returns True if that
        raises what is known. Raises OSError: then all is as before."""
        before = self.seen
        self._page.raise_fence(reign)
        return self.seen != before

    async def make_durable(self, flush: Callable[[], Awaitable[None]]) -> None:
        """Return when what was seen is on the disk, by *flush* of the page where that is needed.
        Cancelling does as it does to *flush*, and a flush that ends is noted. Raises what *flush*
        raises."""
        while (seen := self.seen) != self._on_disk:
            await flush()
            self._on_disk = seen
