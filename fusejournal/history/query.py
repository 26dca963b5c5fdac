"""The criteria of entries, how people type them, and finding what meets them: by seq, kind, caller
and path. One way for ``log``, ``stats``, ``replay`` and ``undo``."""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fusejournal.errors import UsageError
from fusejournal.history.entry_lookup import Span
from fusejournal.history.lookup import Lookup
from fusejournal.history.path_pattern import PathPattern, is_pattern
from fusejournal.history.paths import PathTracker
from fusejournal.history.segment_filter import SegmentFilter
from fusejournal.journal.format import Entry
from fusejournal.journal.outcomes import Outcome, with_outcomes
from fusejournal.journal.reader import END, JournalReader
from fusejournal.operations import Kind, Moving, Operation
from fusejournal.types import Seq

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


class SeqRange(NamedTuple):
    """The seqs in [from_seq, to_seq)."""

    from_seq: Seq
    to_seq: Seq


@dataclass(frozen=True)
class Criteria:
    """The criteria of an entry. Empty and None: anything. ``paths``: one of them, or what is below,
    or what matches, if it is a pattern. ``bytes_min`` and ``bytes_max``: of those that bring data,
    how much."""

    from_seq: Seq = Seq(1)
    to_seq: Seq = END
    kinds: frozenset[Kind] = frozenset()
    uid: int | None = None
    pid: int | None = None
    paths: tuple[bytes, ...] = ()
    only: tuple[SeqRange, ...] = ()
    without: tuple[SeqRange, ...] = ()
    bytes_min: int | None = None
    bytes_max: int | None = None

    def __post_init__(self) -> None:
        """Ranges are kept in order and apart, to be searched quickly."""
        object.__setattr__(self, "only", _merged(self.only))
        object.__setattr__(self, "without", _merged(self.without))

    @property
    def is_partial(self) -> bool:
        """True if anything but the range limits what is asked for."""
        return bool(
            self.kinds
            or self.uid is not None
            or self.pid is not None
            or self.paths
            or self.only
            or self.without
            or self.has_size
        )

    @property
    def kind_mask(self) -> int:
        """The kinds as a bit mask; 0 for any."""
        return sum(1 << kind for kind in self.kinds)

    @property
    def has_size(self) -> bool:
        """True if the size limits what is asked for."""
        return self.bytes_min is not None or self.bytes_max is not None

    def has(self, entry: Entry) -> bool:
        """Returns True if *entry* is asked for, its path aside."""
        seq = entry.seq
        return (
            self.from_seq <= seq < self.to_seq
            and (not self.kinds or entry.operation.kind in self.kinds)
            and (self.uid is None or entry.who.uid == self.uid)
            and (self.pid is None or entry.who.pid == self.pid)
            and (not self.only or _within(seq, self.only))
            and not _within(seq, self.without)
            and (not self.has_size or self._has_bytes(len(entry.data)))
        )

    def _has_bytes(self, count: int) -> bool:
        least = 1 if self.bytes_min is None else max(1, self.bytes_min)
        return count >= least and (self.bytes_max is None or count <= self.bytes_max)


def _merged(ranges: Iterable[SeqRange]) -> tuple[SeqRange, ...]:
    merged: list[SeqRange] = []
    for one in sorted(ranges):
        if merged and one.from_seq <= merged[-1].to_seq:
            merged[-1] = SeqRange(merged[-1].from_seq, max(merged[-1].to_seq, one.to_seq))
        else:
            merged.append(one)
    return tuple(merged)


def _within(seq: Seq, ranges: tuple[SeqRange, ...]) -> bool:
    """Returns True if one of *ranges*, merged, has *seq*."""
    at = bisect_right(ranges, (seq, END)) - 1
    return at >= 0 and seq < ranges[at].to_seq


class Match(NamedTuple):
    """An entry with its outcome and its paths at that time: of a RENAME or WHITEOUT, the second is
    the new one."""

    entry: Entry
    outcome: Outcome
    path: bytes | None
    new_path: bytes | None


def find(lookup: Lookup, criteria: Criteria, *, newest_first: bool = False) -> Iterator[Match]:
    """The entries that *criteria* ask for, each with the paths it had. Reads only segments that
    can have one. Raises JournalDamagedError."""
    patterns = [PathPattern(path, lookup) for path in criteria.paths]
    of_segment = SegmentFilter(lookup, criteria.uid, criteria.kind_mask, patterns)
    first, end = criteria.from_seq, criteria.to_seq
    if criteria.only:
        first, end = max(first, criteria.only[0].from_seq), min(end, criteria.only[-1].to_seq)
    spans = lookup.segments(first, end, newest_first=newest_first)
    for span in spans:
        if of_segment.excludes(span):
            continue
        found = _find_in_segment(lookup, span, criteria, patterns)
        yield from reversed(list(found)) if newest_first else found


def find_newest(
    lookup: Lookup, criteria: Criteria, count: int | None, *, newest_first: bool = False
) -> Iterator[Match]:
    """Does what :func:`find` does, but with *count* only for the newest so many. Keeps no more than
    a segment's in memory."""
    matches = find(lookup, criteria, newest_first=True)
    if newest_first:
        yield from itertools.islice(matches, count)
        return
    if count is not None:
        seq = None
        for match in itertools.islice(matches, count):
            seq = match.entry.seq
        if seq is None:
            return
        criteria = replace(criteria, from_seq=seq)
    yield from find(lookup, criteria)


def _find_in_segment(
    lookup: Lookup, span: Span, criteria: Criteria, patterns: Sequence[PathPattern]
) -> Iterator[Match]:
    """A segment's matches."""
    for match, is_meant in walk_segment(lookup, span, criteria, patterns):
        if is_meant:
            yield match


def walk_segment(
    lookup: Lookup, span: Span, criteria: Criteria, patterns: Sequence[PathPattern]
) -> Iterator[tuple[Match, bool]]:
    """Yields a segment's entries in [from_seq, to_seq), each with whether it is meant. Paths are
    followed from the segment's beginning, because it has them all. Raises JournalDamagedError."""
    end = Seq(min(span.end_seq, criteria.to_seq + 1))  # one more: it may be a VOID
    tracker = PathTracker()
    last_seq = Seq(span.first_seq - 1)
    for entry, outcome in with_outcomes(lookup.reader.read(span.first_seq, end)):
        last_seq = Seq(entry.seq + (outcome.void is not None))
        tracker.learn(entry)
        if criteria.from_seq <= entry.seq < criteria.to_seq:
            found: tuple[bytes | None, bytes | None] = (None, None)
            is_meant = criteria.has(entry)
            if is_meant:
                found = paths_of(tracker, entry.operation)
                is_meant = _is_meant(patterns, entry, *found)
            yield Match(entry, outcome, *found), is_meant
        if outcome.held:
            tracker.follow(entry.operation)
    if end == span.end_seq:
        span.check_end(last_seq)


def paths_of(tracker: PathTracker, operation: Operation) -> tuple[bytes | None, bytes | None]:
    """The path that *operation* is about and, where it moves that, the new one, if they are
    known."""
    new_path = None
    if isinstance(operation, Moving):
        new_path = tracker.join(operation.new_parent, operation.new_name)
    return tracker.path_of(operation), new_path


def _is_meant(patterns: Sequence[PathPattern], entry: Entry, *paths: bytes | None) -> bool:
    return not patterns or any(pattern.matches(entry, *paths) for pattern in patterns)


def walk(lookup: Lookup, criteria: Criteria) -> Iterator[tuple[Match, bool]]:
    """Every entry in [from_seq, to_seq) with whether *criteria* ask for it. Paths are only there
    when the criteria need them. Raises JournalDamagedError."""
    if not criteria.paths:
        pairs = with_outcomes(lookup.reader.read(criteria.from_seq, Seq(criteria.to_seq + 1)))
        is_partial = criteria.is_partial
        for entry, outcome in pairs:
            if entry.seq < criteria.to_seq:
                yield Match(entry, outcome, None, None), not is_partial or criteria.has(entry)
        return
    patterns = [PathPattern(path, lookup) for path in criteria.paths]
    for span in lookup.segments(criteria.from_seq, criteria.to_seq):
        yield from walk_segment(lookup, span, criteria, patterns)


class Follower:
    """Finds what is appended, again and again, without reading anything twice."""

    def __init__(self, reader: JournalReader, criteria: Criteria, from_seq: Seq) -> None:
        self._reader = reader
        self._criteria = criteria
        # By what the journal has so far alone: what will be there then is another matter.
        lookup = Lookup(reader) if criteria.paths else None
        self._patterns = [
            PathPattern(path, None, is_glob=is_pattern(path.strip(b"/"), lookup))
            for path in criteria.paths
        ]
        self._next = from_seq
        self._tracker = PathTracker()
        self._segment = Seq(0)

    def new(self, head_seq: Seq) -> Iterator[Match]:
        """The matches up to *head_seq*, whose outcome is known. Raises JournalDamagedError."""
        while self._next <= head_seq:
            start = self._reader.segment_start(self._next)
            begin = self._next
            if start != self._segment:
                self._segment, self._tracker = start, PathTracker()
                begin = start
            end = Seq(min(head_seq + 1, self._reader.segment_end(start)))
            for entry, outcome in with_outcomes(self._reader.read(begin, end)):
                self._tracker.learn(entry)
                found = paths_of(self._tracker, entry.operation)
                if (
                    entry.seq >= self._next
                    and self._criteria.has(entry)
                    and (
                        not self._patterns or any(p.matches(entry, *found) for p in self._patterns)
                    )
                ):
                    yield Match(entry, outcome, *found)
                if outcome.held:
                    self._tracker.follow(entry.operation)
            self._next = end


def parse_ranges(texts: Sequence[str]) -> tuple[SeqRange, ...]:
    """Parses ranges of seqs as people type them: ``7`` or ``7-12``, both ends included, or several
    of them with commas. Raises UsageError."""
    found = []
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        match = _RANGE.fullmatch(text)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if first < 1 or last < first:
            raise UsageError(f"{text!r} is no seq or range of seqs (7, or 7-12)")
        found.append(SeqRange(Seq(first), Seq(last + 1)))
    return tuple(found)


def parse_kinds(texts: Sequence[str]) -> frozenset[Kind]:
    """Parses names of operations, or several of them with commas. Raises UsageError."""
    found = set()
    for word in (part.strip() for whole in texts for part in whole.split(",")):
        try:
            found.add(Kind[word.upper()])
        except KeyError:
            known = ", ".join(kind.name.lower() for kind in Kind)
            raise UsageError(f"{word!r} is no operation; there are: {known}") from None
    return frozenset(found)
