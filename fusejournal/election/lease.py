"""The seam to what decides which node may be primary: a person, or later a store of leases.

It only decides who may try. What keeps an older primary out is the fence (replication/fence.py),
by which mirrors refuse lower reigns, whatever was decided here. Asked from the event loop's thread,
in the midst of a change: an implementation answers at once, from what it knows, and never waits."""

from typing import Protocol

from fusejournal.types import Reign


class Lease(Protocol):
    """A decision on who may reign."""

    def ended(self) -> Reign | None:
        """The highest reign that has ended, or never was one: it does not fence this node, which
        may begin a reign of an epoch beyond it. None where none is known to have."""
