"""The relation of versions to a journal: which are of its history, and which one to go on from."""

from typing import Literal

from fusejournal.errors import JournalError
from fusejournal.journal.reader import JournalReader
from fusejournal.types import Seq
from fusejournal.versions.manifest import Version

History = Literal["this", "lost", "ahead", "before", "unknown"]
"""A version's relation to a journal: of its history; of one that lost to it; of a seq that it has
not got yet; or of a seq before its beginning, of which nothing here tells more. Unknown where there
is no journal."""


def newest_usable(versions: list[Version], reader: JournalReader, to_seq: Seq) -> Version | None:
    """Returns the newest of *versions* up to seq *to_seq* that is on this journal, whose entries
    after it are here; None where the journal is to be read from its first entry. Raises
    JournalError where neither is there."""
    first_seq = reader.first_seq
    for version in sorted(versions, key=lambda one: one.seq, reverse=True):
        if first_seq - 1 <= version.seq <= to_seq and is_on(version, reader):
            return version
    if first_seq > 1:
        raise JournalError(
            f"the journal here begins with seq {first_seq}, and no version in the store is of a "
            f"seq from {first_seq - 1} to {to_seq}: nothing tells the tree before"
        )
    return None


def is_on(version: Version, reader: JournalReader) -> bool:
    """Returns True if *version* was made of the history that *reader* reads, as far as its last
    entry, or the one behind it, is here. Raises JournalDamagedError."""
    first_seq = reader.first_seq
    if version.seq >= first_seq:
        its_last = reader.read(version.seq, Seq(version.seq + 1))
        return any(entry.chain == version.chain for entry in its_last)
    header, _ = reader.beginning(reader.segments()[0])
    return version.seq + 1 == first_seq and header.chain_before == version.chain


def histories(versions: list[Version], reader: JournalReader) -> dict[str, History]:
    """Returns for each of *versions*, by its key, how it stands to the history that *reader* reads.
    What a version was made of is of its history. Raises JournalDamagedError."""
    found: dict[str, History] = {}
    segments = reader.segments()
    head_seq, epoch = reader.head()[0], reader.beginning(segments[-1])[0].epoch
    for version in versions:
        if version.seq < reader.first_seq - 1:
            found[version.key] = "before"
        elif version.seq > head_seq:
            found[version.key] = "lost" if version.epoch < epoch else "ahead"
        else:
            found[version.key] = "this" if is_on(version, reader) else "lost"
    for version in sorted(versions, key=lambda one: one.seq):
        if version.parent is not None and found.get(version.parent) == "lost":
            found[version.key] = "lost"
    for version in sorted(versions, key=lambda one: one.seq, reverse=True):
        if version.parent in found and found[version.key] == "this":
            found[version.parent] = "this"
    return found
