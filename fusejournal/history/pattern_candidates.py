"""The entries of a segment that can be meant by a pattern of paths: a superset, so that few have to
be read where few can match, and none where nothing can.

A segment records the path of each fid that it touches, and has each name that is given or taken in
it. So where nothing in it has the plain text of a pattern, nothing matches. A pattern without a
slash is held against the last names of paths: what matches is about a fid that the segment records,
or names, so.

The index of a segment has these names. For one of an earlier version, which has not, the segment is
searched for the text, and the entries at its places are read."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from fusejournal.history.entry_lookup import Span
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import name_changes
from fusejournal.history.path_pattern import PathPattern
from fusejournal.journal.index import SegmentIndex
from fusejournal.types import Fid

_PLACES_MAX: Final = 4096
"""Places of the text in a segment: where there are more, any entry may be meant, and the newest are
likely to have what is asked for."""


def pattern_candidates(lookup: Lookup, span: Span, pattern: PathPattern) -> list[int] | None:
    """Returns the numbers of the entries that can be meant, in order; None where the segment has to
    be followed from its beginning. Raises JournalDamagedError."""
    index = lookup.index(span)
    if index.is_current:
        return _by_names(index, pattern)
    if not pattern.plain_text:
        return None
    places = lookup.reader.places_of(span.path, pattern.plain_text, _PLACES_MAX)
    if places == []:
        return []
    if not pattern.by_name:
        return None
    if places is None:
        return list(range(index.entries))
    fids = {
        one.fid for one in index.recorded_paths() if pattern.has_name(one.path.rpartition(b"/")[2])
    }
    found: set[int] = set()
    for entry, _ in lookup.reader.pick(span.path, _around(index, places)):
        for change in name_changes(entry.operation):
            if pattern.has_name(change.name):
                found.add(entry.seq - index.first_seq)
                fids |= {fid for fid in (change.before, change.after) if fid is not None}
    for fid in fids:
        found |= _about(index, fid)
    return sorted(found)


def _by_names(index: SegmentIndex, pattern: PathPattern) -> list[int] | None:
    """Does it by the names that an index has, of which none but a current one has them."""
    if pattern.plain_text not in (index.texts() or b""):
        return []
    if not pattern.by_name:
        return None
    fids = {fid for name, fid in index.owned_names() if pattern.has_name(name)}
    return sorted(set().union(*(_about(index, fid) for fid in fids)))


def _about(index: SegmentIndex, fid: Fid) -> set[int]:
    return {posting.number for posting in index.of_fid(fid) if not posting.is_parent}


def _around(index: SegmentIndex, places: Iterable[int]) -> list[int]:
    """Returns the numbers of the entries between the points of the index that *places*, offsets,
    are between."""
    numbers, offsets = zip(
        *((number, offset) for number, offset, *_ in index.points()), strict=True
    )
    found: set[int] = set()
    for at in {bisect_right(offsets, place) - 1 for place in places}:
        if at >= 0:
            end = numbers[at + 1] if at + 1 < len(numbers) else index.entries
            found.update(range(numbers[at], end))
    return sorted(found)
