"""The versions of the protocol that a node speaks, the entries that it can read, and what two nodes
have in common. Pure.

A pair is upgraded one node after the other, so the two may be of different releases for a while.
Each greeting gives the oldest and the newest version of the protocol that its sender speaks, the
newest format of the journal and the highest kind of entry that it can read. A session speaks the
newest version that both do; where there is none, the greeting is refused, and the refusal says
which side to upgrade.

Kinds and formats refuse no session: a peer that reads fewer is good until an entry comes that it
does not know, and refuses that one as of a newer version (batches.py). Its primary warns before.

A greeting that leaves these fields out is one of release 0.1.0."""

from typing import Final, NamedTuple

from fusejournal.journal.format import FORMAT_VERSION
from fusejournal.operations import Kind
from fusejournal.wire.frames import PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST, Hello, Welcome


class Versions(NamedTuple):
    """The versions of one node: of the protocol from ``oldest`` to ``newest``, of the journal up to
    ``journal_format``, and of entries up to the kind ``newest_kind``."""

    oldest: int
    newest: int
    journal_format: int
    newest_kind: int

    def describe(self) -> str:
        """Returns the versions of the protocol, in words."""
        if self.oldest == self.newest:
            return f"version {self.newest}"
        return f"versions {self.oldest} to {self.newest}"


OWN_VERSIONS: Final = Versions(PROTOCOL_VERSION_OLDEST, PROTOCOL_VERSION, FORMAT_VERSION, max(Kind))
HANDOFF_VERSION: Final = 3
"""The version of the protocol from which on a reign can be handed over."""
WHOLE_VERSION: Final = 4
"""The version of the protocol from which on a tree can be copied."""
MEMBERS_VERSION: Final = 4
"""The version of the protocol from which on members are reported."""
_UNSAID_JOURNAL_FORMAT: Final = 1
_UNSAID_KIND: Final = Kind.CLEAN
"""The highest of release 0.1.0."""


def versions_of(greeting: Hello | Welcome) -> Versions:
    """Returns the versions of the sender of *greeting*."""
    return Versions(
        greeting.version,
        max(greeting.version, greeting.newest_version),
        greeting.journal_format or _UNSAID_JOURNAL_FORMAT,
        greeting.newest_kind or _UNSAID_KIND,
    )


def common_version(one: Versions, other: Versions) -> int | None:
    """Returns the newest version of the protocol that both speak; None where there is none."""
    newest = min(one.newest, other.newest)
    return newest if newest >= max(one.oldest, other.oldest) else None


def no_common_version(mine: Versions, me: str, theirs: Versions, them: str) -> str:
    """Returns which of two nodes that have no version in common is to be upgraded, in words."""
    older = them if theirs.newest < mine.oldest else me
    return (
        f"{them} speaks {theirs.describe()} of the protocol, and {me} {mine.describe()}: "
        f"upgrade {older}"
    )


def unreadable_entries(source: Versions, sink: Versions) -> str | None:
    """Returns which entries of *source* its *sink* may not be able to read, in words; None where it
    reads all."""
    if sink.journal_format < source.journal_format:
        return f"reads journals up to format {sink.journal_format}, of {source.journal_format}"
    if sink.newest_kind < source.newest_kind:
        return f"reads entries up to kind {sink.newest_kind}, of {source.newest_kind}"
    return None
