"""The mtime that a file or directory had at a point of the journal, by the entries alone.

The table: data changes and its own making set a file's to the entry's time, a name made or removed
in it a directory's; SETATTR and imports record it; nothing else changes it."""

from collections.abc import Callable, Collection, Iterator

from fusejournal.history.entry_lookup import Span
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import name_changes
from fusejournal.journal.format import Entry
from fusejournal.journal.index import Posting
from fusejournal.journal.outcomes import Outcome
from fusejournal.operations import (
    CONTENT_KINDS,
    NAME_KINDS,
    RENAME_EXCHANGE,
    Import,
    ImportData,
    ImportLink,
    Kind,
    Rename,
    Setattr,
    Whiteout,
)
from fusejournal.types import Fid, Seq

_OF_ITSELF = CONTENT_KINDS | frozenset(
    {
        Kind.CREATE,
        Kind.MKDIR,
        Kind.SYMLINK,
        Kind.SETATTR,
        Kind.IMPORT,
        Kind.IMPORT_DATA,
    }
)
_OF_DIRECTORY = NAME_KINDS - {Kind.IMPORT, Kind.IMPORT_LINK}


def mtimes_before(
    lookup: Lookup,
    fids: Collection[Fid],
    before_seq: Seq,
    counts: Callable[[Seq], bool] | None = None,
) -> dict[Fid, int]:
    """The mtimes of *fids* before entry *before_seq*, in nanoseconds, but for those that no entry
    here records; of all entries, those for which *counts* holds (all). Reads from there backwards,
    no further than it must, and each segment once. Raises JournalDamagedError."""
    found: dict[Fid, int] = {}
    left = set(fids)
    for span in lookup.segments(to_seq=before_seq, newest_first=True):
        if not left:
            break
        index = lookup.index(span)
        for fid in list(index.which_of(left)):
            mtime_ns = _last_mtime(lookup, span, fid, before_seq, counts)
            if mtime_ns is not None:
                found[fid] = mtime_ns
                left.discard(fid)
    if lookup.base is not None and lookup.base.base.seq < before_seq:
        for fid in left:
            node = lookup.base.node(fid)
            if node is not None and node.mtime_ns is not None:
                found[fid] = node.mtime_ns
    return found


def _last_mtime(
    lookup: Lookup,
    span: Span,
    fid: Fid,
    before_seq: Seq,
    counts: Callable[[Seq], bool] | None,
) -> int | None:
    """Returns the time to which the last entry of the segment that sets it sets it."""
    index = lookup.index(span)
    for posting in reversed(list(index.of_fid(fid))):
        seq = Seq(index.first_seq + posting.number)
        if seq >= before_seq or not _may_set(posting):
            continue
        if counts is not None and not counts(seq):
            continue
        for entry, outcome in lookup.reader.pick(span.path, [posting.number]):
            mtime_ns = _mtime_of(entry, outcome)
            if mtime_ns is not None:
                return mtime_ns
    return None


def kept_mtimes(lookup: Lookup, entry: Entry) -> dict[Fid, int]:
    """The mtimes that *entry*'s operation leaves as they were, but which a process that died in the
    midst of it may have left otherwise. Raises JournalDamagedError."""
    fids: tuple[Fid, ...] = ()
    match entry.operation:
        case Import() | ImportLink() as operation:
            fids = (operation.parent,)
        case Rename(flags=flags) as operation if flags & RENAME_EXCHANGE:
            fids = operation.fid, operation.replaced
        case Whiteout() as operation if operation.replaced:
            fids = (operation.fid,)  # it is done by exchanges
    return mtimes_before(lookup, fids, entry.seq)


def directory_mtimes(entry: Entry) -> Iterator[tuple[Fid, int]]:
    """The mtimes that *entry*, if it held, gave to directories that were there before it: the
    fid and the time of each. (The fid of a SETATTR may be a file's.)"""
    operation = entry.operation
    if isinstance(operation, Setattr) and operation.mtime_ns is not None:
        yield operation.fid, operation.mtime_ns
    elif operation.kind in _OF_DIRECTORY:
        for change in name_changes(operation):
            yield change.parent, entry.time_ns


def _may_set(posting: Posting) -> bool:
    return posting.kind in (_OF_DIRECTORY if posting.is_parent else _OF_ITSELF)


def _mtime_of(entry: Entry, outcome: Outcome) -> int | None:
    if not outcome.held:
        return None
    operation = entry.operation
    if isinstance(operation, Setattr | Import | ImportData):
        return operation.mtime_ns
    return entry.time_ns
