"""Facts about a peer from its greeting, and which of them the admin of this side should know: that
it is of an older version, or that its file system holds less. Pure.

None of it ends a session. An entry that a peer cannot read or hold stops it when it comes, and
not before (wire/versions.py, backing/limits.py)."""

from typing import NamedTuple

from fusejournal.backing.limits import BackingLimits
from fusejournal.wire.frames import Welcome
from fusejournal.wire.session import HandshakeState
from fusejournal.wire.versions import (
    MEMBERS_VERSION,
    common_version,
    unreadable_entries,
    versions_of,
)


class PeerFacts(NamedTuple):
    """``protocol_version``: the one that the two speak. ``limits``: None where it did not give
    them. ``notes``: what should be known, a line each."""

    protocol_version: int | None = None
    limits: BackingLimits | None = None
    notes: tuple[str, ...] = ()

    @property
    def sends_members(self) -> bool:
        """True if it takes a record of members, and says that it has it."""
        return (self.protocol_version or 0) >= MEMBERS_VERSION


def facts_of(theirs: Welcome, me: HandshakeState) -> PeerFacts:
    """Returns what *theirs* holds, to the node *me*, which ships to its sender."""
    versions = versions_of(theirs)
    notes = []
    unreadable = unreadable_entries(me.versions, versions)
    if unreadable is not None:
        notes.append(f"is of an older version, and {unreadable}: upgrade it before one comes")
    limits, own = BackingLimits.from_wire(theirs.limits), BackingLimits.from_wire(me.limits)
    if limits is not None and own is not None and (lower := limits.lower_than(own)):
        notes.append(
            f"its backing's file system holds less than the one here: {'; '.join(lower)}; an entry "
            "that it cannot hold stops it"
        )
    return PeerFacts(common_version(me.versions, versions), limits, tuple(notes))
