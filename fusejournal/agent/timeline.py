"""The timeline of a volume: its entries, newest first, a page at a time, and one of them.

A page ends when it is full, or after a part of a second: then it says from where the next goes on,
so that a filter that fits nothing among millions of entries still answers at once. Without a path
to look for, entries are read backwards a window at a time, and segments are passed over whose
index has nothing that fits; each one found is then asked for its path.

For a path the index tells which entries can be about it, and for a pattern of names the places of
its plain text do; these alone are read, newest first. Where neither can (a directory on the way
that was moved in the segment, a pattern with slashes), the segment is read from its beginning,
where its paths are; a page that ends meanwhile has this go on with the
next one, which asks from the same place.

Entries are kept without their data, and of those that are large for all that (values of attributes,
long paths) so many as have a bounded number of bytes: a page of these has fewer, and the next one
goes on from there."""

import base64
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from fusejournal.admin.source import JournalSource
from fusejournal.agent.accounts import account_names
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.history.entry_lookup import Span
from fusejournal.history.json_values import DatalessMatch, match_to_json
from fusejournal.history.lookup import Lookup
from fusejournal.history.name_changes import name_changes
from fusejournal.history.path_pattern import PathPattern
from fusejournal.history.query import Criteria, Match, walk_segment
from fusejournal.history.segment_filter import Numbers, SegmentFilter
from fusejournal.journal.format import Entry
from fusejournal.journal.index import SegmentIndex
from fusejournal.journal.outcomes import with_outcomes
from fusejournal.operations import Moving, Void
from fusejournal.types import Fid, Seq

_COUNT_MAX = 500
_WINDOW = 2048
"""Entries that are read together."""
_CANDIDATES = 256
"""Entries that are asked for their paths together."""
_CANDIDATES_KEPT = 500_000
"""Numbers of entries, of four bytes each, that are kept from page to page."""
_CANDIDATES_LEAST = 100
"""The count that the place of some of them adds."""
_SCANS_KEPT = 4
_PIECE = 256
"""Entries that are read between two looks at the clock."""
_SECONDS = 0.6
_KEPT_BYTES_MAX = 8 << 20
"""The most of the entries that fit in a window, or in a segment, that is kept together."""
_PAGE_BYTES_MAX = 2 << 20
"""The most that a page's entries have: one byte can be six of the answer."""
_DATA_BYTES_MAX = 256 << 10
"""The most that is shown of an entry's data."""


def criteria_of(source: JournalSource, fields: Fields) -> Criteria:
    """Returns what is asked for, of the fields that a filter has. Raises FusejournalError."""
    path = fields.text_or_none("path")
    return source.criteria(
        from_seq=fields.number("from_seq", 1, least=1),
        to_seq=fields.number_or_none("to_seq", least=1),
        since=fields.text_or_none("since"),
        until=fields.text_or_none("until"),
        ops=fields.texts("op"),
        uid=fields.number_or_none("uid"),
        paths=[path] if path and path.strip("/") else [],
        bytes_min=fields.number_or_none("bytes_min"),
        bytes_max=fields.number_or_none("bytes_max"),
    )


def filter_options(fields: Fields) -> list[tuple[str, object]]:
    """Returns the options of the command line that choose the same."""
    return [
        ("--since", fields.text_or_none("since")),
        ("--until", fields.text_or_none("until")),
        ("--op", ",".join(fields.texts("op"))),
        ("--uid", fields.number_or_none("uid")),
        ("--from-seq", fields.number_or_none("from_seq")),
        ("--to-seq", fields.number_or_none("to_seq")),
        ("--min-bytes", fields.number_or_none("bytes_min")),
        ("--max-bytes", fields.number_or_none("bytes_max")),
    ]


def entries(source: JournalSource, fields: Fields, scans: "Scans") -> dict[str, Any]:
    """Returns a page of entries, newest first. Fields: those of a filter; ``before_seq``, the page
    before's ``next_before_seq``; ``count``. Raises FusejournalError.

    ``next_before_seq`` of the answer is None at the end, and ``first_searched_seq`` says how far
    down was looked."""
    count = min(fields.number("count", 100, least=1), _COUNT_MAX)
    criteria = criteria_of(source, fields)
    end = Seq(min(criteria.to_seq, source.head_seq + 1))
    before = fields.number_or_none("before_seq", least=1)
    if before is not None:
        end = Seq(min(end, before))
    criteria = replace(criteria, to_seq=end)
    patterns = [PathPattern(path, source.lookup) for path in criteria.paths]
    # From here on: what comes before is the same for each page.
    deadline = time.monotonic() + _SECONDS
    found: _Found = []
    reached = criteria.from_seq
    for page, seq in _pages(source.lookup, criteria, patterns, scans, deadline):
        room = count - len(found)
        found += page[:room]
        if len(page) > room:
            reached = found[-1].kept.match.entry.seq
            break
        reached = seq
        if len(found) == count or time.monotonic() > deadline:
            break
    matches = _with_paths(source.lookup, found)
    shown = list(_up_to_bytes(matches))
    if len(shown) < len(matches):
        reached = shown[-1].match.entry.seq
    is_end = reached <= max(criteria.from_seq, source.reader.first_seq)
    path = fields.text_or_none("path")
    words = [source.name, *([path] if path else [])]
    return {
        "entries": [one.to_json() for one in shown],
        "users": account_names(one.match.entry.who.uid for one in shown),
        "head_seq": int(source.head_seq),
        "next_before_seq": None if is_end else int(reached),
        "first_searched_seq": int(reached),
        "command": command_line(
            "log", *words, options=[*filter_options(fields), ("-n", count), ("--reverse", True)]
        ),
    }


def _up_to_bytes(matches: Iterable[DatalessMatch]) -> Iterator[DatalessMatch]:
    """Yields so many of the first of *matches* as a page has, one at least."""
    left = _PAGE_BYTES_MAX
    for at, one in enumerate(matches):
        left -= one.kept_bytes
        if at and left < 0:
            return
        yield one


_Walk = Iterator[tuple[Match, bool]]


class _Fitting(NamedTuple):
    """An entry that fits; ``has_paths``: its paths are known, as far as they can be."""

    kept: DatalessMatch
    has_paths: bool


_Found = list[_Fitting]


class _Newest:
    """The newest of the entries that fit, which come oldest first: so many as are kept together."""

    def __init__(self, count_max: int, *, has_paths: bool) -> None:
        self._count_max = count_max
        self._has_paths = has_paths
        self._kept = deque[DatalessMatch]()
        self._bytes = 0
        self._is_cut = False

    def add(self, match: Match) -> None:
        """Keeps an entry, without its data."""
        self._kept.append(DatalessMatch.of(match))
        self._bytes += self._kept[-1].kept_bytes
        while len(self._kept) > self._count_max or (
            self._bytes > _KEPT_BYTES_MAX and len(self._kept) > 1
        ):
            self._bytes -= self._kept.popleft().kept_bytes
            self._is_cut = True

    def found(self, begin: Seq) -> tuple[_Found, Seq]:
        """Returns them, newest first, and the seq down to which they are all that fit: *begin*,
        unless some were let go."""
        reached = self._kept[0].match.entry.seq if self._is_cut else begin
        return [_Fitting(one, self._has_paths) for one in reversed(self._kept)], reached


def _pages(
    lookup: Lookup,
    criteria: Criteria,
    patterns: Sequence[PathPattern],
    scans: "Scans",
    deadline: float,
) -> Iterator[tuple[_Found, Seq]]:
    """Yields what fits, newest first, in pieces, each with the seq down to which was looked."""
    of_segment = SegmentFilter(
        lookup, criteria.uid, criteria.kind_mask, patterns, keep=scans.keep_candidates
    )
    spans = lookup.segments(criteria.from_seq, criteria.to_seq, newest_first=True)
    for span in spans:
        numbers = None if of_segment.is_any else of_segment.numbers(span)
        if numbers is not None:
            yield from _picked(lookup, span, criteria, patterns, numbers)
        elif patterns:
            yield from _scanned(lookup, span, criteria, patterns, scans, deadline)
        else:
            yield from _windows(lookup, span, criteria)


def _scanned(
    lookup: Lookup,
    span: Span,
    criteria: Criteria,
    patterns: Sequence[PathPattern],
    scans: "Scans",
    deadline: float,
) -> Iterator[tuple[_Found, Seq]]:
    begin, end = max(criteria.from_seq, span.first_seq), min(criteria.to_seq, span.end_seq)
    while end > begin:
        within = replace(criteria, from_seq=Seq(begin), to_seq=Seq(end))
        meant = scans.go_on(lookup, span, within, patterns, deadline)
        yield meant if meant is not None else ([], Seq(end))
        if meant is not None:
            _, end = meant
    yield [], Seq(begin)


def _picked(
    lookup: Lookup,
    span: Span,
    criteria: Criteria,
    patterns: Sequence[PathPattern],
    numbers: Sequence[int],
) -> Iterator[tuple[_Found, Seq]]:
    """Yields what fits among the entries *numbers* of a segment."""
    begin = Seq(max(criteria.from_seq, span.first_seq))
    for first, last in _ranges(lookup, span, criteria):
        from_number = bisect_left(numbers, max(first, begin) - span.first_seq)
        end = bisect_left(numbers, min(last, criteria.to_seq) - span.first_seq)
        while end > from_number:
            start = max(from_number, end - _CANDIDATES)
            piece, end = numbers[start:end], start
            pairs = [
                _Fitting(DatalessMatch.of(Match(entry, outcome, None, None)), has_paths=False)
                for entry, outcome in lookup.reader.pick(span.path, piece)
                if not isinstance(entry.operation, Void) and criteria.has(entry)
            ]
            found = pairs[::-1]
            if patterns:
                found = [
                    _Fitting(one, has_paths=True)
                    for one in _with_paths(lookup, found)
                    if any(pattern.matches(one.match.entry, *one.match[2:]) for pattern in patterns)
                ]
            yield found, Seq(span.first_seq + piece[0])
    yield [], begin


class Scans:
    """The work on segments of one volume that a page left for the next: which entries can be about
    a path, and readings of whole segments that are under way. Few are kept."""

    def __init__(self) -> None:
        self._candidates: OrderedDict[tuple[Seq, int, bytes], array[int] | None] = OrderedDict()
        self._candidate_count = 0
        self._scans: OrderedDict[tuple[Seq, Criteria], tuple[_Walk, _Newest]] = OrderedDict()

    def keep_candidates(
        self, index: SegmentIndex, pattern: PathPattern, find: Callable[[], Numbers]
    ) -> Numbers:
        """Returns the numbers of the entries that can be about a path: see SegmentFilter. By its
        chain, the last entry of a segment stands for all of it."""
        key = index.first_seq, index.chain, pattern.text
        if key in self._candidates:
            self._candidates.move_to_end(key)
            return self._candidates[key]
        numbers = find()
        kept = None if numbers is None else array("I", numbers)
        self._candidates[key] = kept
        self._candidate_count += len(kept or ()) + _CANDIDATES_LEAST
        while self._candidate_count > _CANDIDATES_KEPT:
            _, gone = self._candidates.popitem(last=False)
            self._candidate_count -= len(gone or ()) + _CANDIDATES_LEAST
        return numbers

    def go_on(
        self,
        lookup: Lookup,
        span: Span,
        criteria: Criteria,
        patterns: Sequence[PathPattern],
        deadline: float,
    ) -> tuple[_Found, Seq] | None:
        """Returns what fits in a segment, newest first, and the seq down to which that is all of
        it; None where it is not known in time: the next call goes on with it."""
        key = span.first_seq, criteria
        known = self._scans.pop(key, None)
        walk, found = known or (
            walk_segment(lookup, span, criteria, patterns),
            _Newest(_COUNT_MAX + 1, has_paths=True),  # more, no page has
        )
        # A piece at least, however late it is: else it would never come to an end.
        for count, (match, is_meant) in enumerate(walk, 1):
            if is_meant:
                found.add(match)
            if count % _PIECE == 0 and time.monotonic() > deadline:
                self._scans[key] = walk, found
                while len(self._scans) > _SCANS_KEPT:
                    self._scans.popitem(last=False)
                return None
        return found.found(criteria.from_seq)


def _windows(lookup: Lookup, span: Span, criteria: Criteria) -> Iterator[tuple[_Found, Seq]]:
    least = max(span.first_seq, criteria.from_seq)
    for first, last in _ranges(lookup, span, criteria):
        end = Seq(min(criteria.to_seq, last))
        while end > max(first, least):
            begin = Seq(max(first, least, end - _WINDOW))
            newest = _Newest(_WINDOW, has_paths=False)
            # One more, which may be the VOID of the last.
            for entry, outcome in with_outcomes(lookup.reader.read(begin, Seq(end + 1))):
                if entry.seq < end and criteria.has(entry):
                    newest.add(Match(entry, outcome, None, None))
            found, end = newest.found(begin)
            yield found, end
    yield [], Seq(min(least, criteria.to_seq))


def _ranges(lookup: Lookup, span: Span, criteria: Criteria) -> list[tuple[Seq, Seq]]:
    """Returns the ranges of a segment's entries of which one can be asked for, the newest first. A
    large one lies between two points of the index that are as far apart."""
    if not criteria.bytes_min:
        return [(span.first_seq, span.end_seq)]
    index = lookup.index(span)
    points = [(number, offset) for number, offset, *_ in index.points()]
    found: list[tuple[Seq, Seq]] = []
    for (number, offset), (after, end) in pairwise([*points, (index.entries, index.segment_bytes)]):
        if end - offset > criteria.bytes_min:
            first, last = Seq(index.first_seq + number), Seq(index.first_seq + after)
            if found and found[-1][1] == first:
                first = found.pop()[0]
            found.append((first, last))
    return found[::-1]


def _with_paths(lookup: Lookup, found: _Found) -> list[DatalessMatch]:
    """Returns *found* with their paths. Those of all that lack them are asked for together."""
    fids: set[Fid] = set()
    for one, has_paths in found:
        if not has_paths:
            operation = one.match.entry.operation
            changes = name_changes(operation)
            fids |= {change.parent for change in changes}
            fid = getattr(operation, "fid", None)
            if fid is not None and not changes:
                fids.add(fid)
    lookup.learn_moves(fids)
    return [
        one if has_paths else one._replace(match=_with_path(lookup, one.match))
        for one, has_paths in found
    ]


def _with_path(lookup: Lookup, match: Match) -> Match:
    path, new_path = _paths(lookup, match.entry)
    return match._replace(path=path, new_path=new_path)


def _paths(lookup: Lookup, entry: Entry) -> tuple[bytes | None, bytes | None]:
    """Returns the path that *entry* is about, and, where it moves that, the new one."""
    operation = entry.operation
    changes = name_changes(operation)
    if not changes:
        fid = getattr(operation, "fid", None)
        return (lookup.path_before(fid, entry.seq) if fid else None), None
    path = lookup.join(changes[0].parent, changes[0].name, entry.seq)
    new_path = None
    if isinstance(operation, Moving):
        new_path = lookup.join(operation.new_parent, operation.new_name, entry.seq)
    return path, new_path


def entry(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns one entry with all its fields; its data where ``data`` is asked for. Raises
    NoSuchSeqError, FusejournalError."""
    seq = fields.number("seq", least=1)
    match = source.entry(seq)
    line = match_to_json(match)
    found = match.entry
    line.update(
        frame_bytes=found.frame_bytes, flushed=found.flushed, chain=f"{found.chain:016x}",
        data_bytes=len(found.data),
    )  # fmt: skip
    if found.seq != seq:
        line["void_seq"] = seq
    with_data = fields.flag("data")
    data = None
    if with_data:
        data = base64.b64encode(bytes(found.data[:_DATA_BYTES_MAX])).decode()
    return {
        "entry": line,
        "data": data,
        "command": command_line("show", source.name, str(seq), options=[("--data", with_data)]),
    }
