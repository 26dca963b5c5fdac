"""The file flags that files have at a moment, by the entries that set them."""

from collections.abc import Callable, Collection

from fusejournal.file_operations import SetFlags
from fusejournal.history.lookup import Lookup
from fusejournal.journal.index import Posting
from fusejournal.kinds import Kind
from fusejournal.types import Fid, Seq


def flags_before(
    lookup: Lookup,
    fids: Collection[Fid],
    before_seq: Seq,
    counts: Callable[[Seq], bool] | None = None,
) -> dict[Fid, int]:
    """Returns the journaled flags before entry *before_seq* of those among *fids* of which entries
    record any; of all entries, those for which *counts* holds (all). Where none of a file's does,
    it has none. Segments without such entries are not read. Raises JournalDamagedError."""
    found: dict[Fid, int] = {}
    for entry, _ in lookup.entries_of_many(fids, before_seq, _sets_flags):
        operation = entry.operation
        assert isinstance(operation, SetFlags)
        if counts is None or counts(entry.seq):
            found[operation.fid] = operation.flags
        else:
            found.setdefault(operation.fid, 0)
    return found


def _sets_flags(posting: Posting) -> bool:
    return posting.kind == Kind.SETFLAGS and not posting.refused
