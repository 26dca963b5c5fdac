"""One file's life: every entry about it, under all its names, and its size after each."""

import heapq
from collections.abc import Iterator
from stat import S_IFREG
from typing import Any, NamedTuple

from fusejournal.file_operations import Fallocate
from fusejournal.history.json_values import match_to_json
from fusejournal.history.lookup import Lookup, Tenure
from fusejournal.history.name_changes import name_changes
from fusejournal.history.query import Match
from fusejournal.journal.format import Entry
from fusejournal.journal.outcomes import HELD, Outcome
from fusejournal.operations import (
    MOVES,
    Create,
    Import,
    ImportData,
    Moving,
    Truncate,
    Whiteout,
    Write,
)
from fusejournal.types import Fid, Seq


class LifeEntry(NamedTuple):
    """One entry of a life, and the file's size after it; None for what has none."""

    match: Match
    size: int | None

    def to_json(self, fid: Fid) -> dict[str, Any]:
        """Returns what ``history --json`` prints, in the life of *fid*."""
        return {**match_to_json(self.match), "of": fid, "size": self.size}


class Life(NamedTuple):
    """A file that had the path asked for, and when it had it."""

    fid: Fid
    tenures: tuple[Tenure, ...]


def find_lives(lookup: Lookup, path: bytes) -> list[Life]:
    """Returns all files that *path* ever stood for, in the order in which they first had it. Raises
    JournalDamagedError."""
    tenures: dict[Fid, list[Tenure]] = {}
    for tenure in lookup.tenures(path):
        tenures.setdefault(tenure.fid, []).append(tenure)
    return [Life(fid, tuple(times)) for fid, times in tenures.items()]


def read_life(lookup: Lookup, fid: Fid) -> Iterator[LifeEntry]:
    """Yields every entry about *fid*, and the renames of directories above it, in order, as they
    are read; what it was made by before the journal's base is not there any more. Raises
    JournalDamagedError."""
    node = lookup.base.node(fid) if lookup.base is not None else None
    size = node.size if node is not None and node.type == S_IFREG else None
    pairs = heapq.merge(
        lookup.later_entries_of(fid), _moves_above(lookup, fid), key=lambda pair: pair[0].seq
    )
    for entry, outcome in pairs:
        if outcome.held:
            size = _size_after(entry, outcome, size)
        yield LifeEntry(Match(entry, outcome, *_paths(lookup, fid, entry)), size)


def _paths(lookup: Lookup, fid: Fid, entry: Entry) -> tuple[bytes | None, bytes | None]:
    """The path of *fid* that *entry* is about, and where it moved it."""
    operation = entry.operation
    if isinstance(operation, Whiteout) and fid == operation.whiteout:
        return lookup.join(operation.parent, operation.name, entry.seq), None
    if isinstance(operation, Moving) and fid not in (operation.fid, operation.replaced):
        return lookup.path_before(fid, entry.seq), lookup.path_before(fid, Seq(entry.seq + 1))
    changes = name_changes(operation)
    if not changes:
        return lookup.path_before(fid, entry.seq), None
    found = [lookup.join(change.parent, change.name, entry.seq) for change in changes]
    return found[0], found[1] if len(found) > 1 else None


def _size_after(entry: Entry, outcome: Outcome, size: int | None) -> int | None:
    match entry.operation:
        case Create():
            return 0
        case Import(size=imported, target=None):
            return imported
        case Truncate(size=new):
            return new
        case Fallocate() as operation:
            return operation.size_after(size or 0)
        case Write(offset=offset) | ImportData(offset=offset):
            return max(size or 0, offset + len(outcome.data_of(entry)))
    return size


def _moves_above(lookup: Lookup, fid: Fid) -> Iterator[tuple[Entry, Outcome]]:
    """The renames of directories that gave *fid* another path."""
    own = {
        entry.seq for entry, _ in lookup.later_entries_of(fid, wanted=lambda one: one.kind in MOVES)
    }
    for seq, _ in lookup.timeline(fid):
        if seq and seq not in own:
            for entry in lookup.reader.read(seq, Seq(seq + 1)):
                if isinstance(entry.operation, Moving) and entry.operation.fid != fid:
                    yield entry, HELD
