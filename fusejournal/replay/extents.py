"""Extents: a file's content as ranges of bytes, each with the entry that wrote it last; holes are
left out.

Costs what a file's entries cost, whatever its size: a terabyte with nothing in it is no range at
all. All ranges are half-open, in bytes."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from fusejournal.file_operations import Fallocate
from fusejournal.history.lookup import Lookup
from fusejournal.journal.format import Entry
from fusejournal.operations import ContentOperation, ImportData, Truncate, Write
from fusejournal.types import Seq

_NOTHING = Seq(0)


class Extent(NamedTuple):
    """The bytes in [start, end), and the entry that has them; None where that is a hole, or
    nothing."""

    start: int
    end: int
    seq: Seq | None


class Extents:
    """The content of one file. Feed it the file's entries in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._seqs: list[Seq] = []

    def put(self, start: int, end: int, seq: Seq) -> None:
        """Entry *seq* wrote [start, end)."""
        if start >= end:
            return
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        pieces = [(start, end, seq)]
        if first < last:
            if self._starts[first] < start:
                pieces.insert(0, (self._starts[first], start, self._seqs[first]))
            if self._ends[last - 1] > end:
                pieces.append((end, self._ends[last - 1], self._seqs[last - 1]))
        self._starts[first:last] = [piece[0] for piece in pieces]
        self._ends[first:last] = [piece[1] for piece in pieces]
        self._seqs[first:last] = [piece[2] for piece in pieces]

    def clear(self, start: int, end: int) -> None:
        """The bytes in [start, end) became a hole, or zeros."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first < last:
            # As if something had been put there, which is then taken away.
            self.put(start, end, _NOTHING)
            at = bisect_left(self._starts, start)
            del self._starts[at], self._ends[at], self._seqs[at]

    def cut(self, size: int) -> None:
        """The file was truncated to *size*."""
        left = bisect_left(self._starts, size)
        del self._starts[left:], self._ends[left:], self._seqs[left:]
        if left and self._ends[-1] > size:
            self._ends[-1] = size

    def take(self, operation: ContentOperation | ImportData, seq: Seq, length: int) -> None:
        """Take in entry *seq*, with *length* bytes of data that held."""
        if isinstance(operation, Truncate):
            self.cut(operation.size)
        elif isinstance(operation, Fallocate):
            if operation.empties:
                self.clear(operation.offset, operation.end)
        else:
            self.put(operation.offset, operation.offset + length, seq)

    def __iter__(self) -> Iterator[Extent]:
        return map(Extent, self._starts, self._ends, self._seqs)

    def within(self, start: int, end: int) -> Iterator[Extent]:
        """Yields what lies in [start, end), cut at both."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        for at in range(first, last):
            begun, ended = max(self._starts[at], start), min(self._ends[at], end)
            yield Extent(begun, ended, self._seqs[at])

    def unlike(self, other: "Extents", size: int) -> Iterator[Extent]:
        """Yields the ranges where this, of which only *size* bytes count, comes from elsewhere than
        *other* does."""
        mine, theirs = self._edges(), other._edges()
        changes = sorted(
            [(at, 0, seq) for at, seq in mine] + [(at, 1, seq) for at, seq in theirs],
            key=lambda change: change[0],
        )
        now: list[Seq | None] = [None, None]
        begun = 0
        for at, which, seq in changes:
            if begun < min(at, size) and now[0] != now[1]:
                yield Extent(begun, min(at, size), now[0])
            begun = at
            now[which] = seq
        # Behind the last edge both are nothing.

    def _edges(self) -> Iterator[tuple[int, Seq | None]]:
        """A place where something begins, and what does."""
        before = 0
        for start, end, seq in self:
            if start > before:
                yield before, None
            yield start, seq
            before = end
        yield before, None


def read_extents(lookup: Lookup, extents: list[Extent]) -> Iterator[tuple[int, memoryview]]:
    """The bytes of *extents*, none of them a hole, with the offset of each; in the order of their
    entries, so that each segment is read once. Raises JournalDamagedError."""
    by_seq: dict[Seq, list[Extent]] = {}
    for extent in extents:
        assert extent.seq is not None
        by_seq.setdefault(extent.seq, []).append(extent)
    if not by_seq:
        return
    seqs = sorted(by_seq)
    # (Those of a base are below all others: journal/base.py.)
    for seq in seqs[: bisect_left(seqs, 0)]:
        assert lookup.base is not None, "only a base has entries before the first"
        yield from _parts(lookup.base.data(seq), by_seq[seq])
    for span in lookup.segments(seqs[0], Seq(seqs[-1] + 1)):
        first, last = bisect_left(seqs, span.first_seq), bisect_left(seqs, span.end_seq)
        numbers = [seq - span.first_seq for seq in seqs[first:last]]
        if not numbers:
            continue
        for entry, _ in lookup.reader.pick(span.path, numbers):
            yield from _parts(entry, by_seq[entry.seq])


def _parts(entry: Entry, extents: list[Extent]) -> Iterator[tuple[int, memoryview]]:
    """The bytes of *extents*, which are all *entry*'s."""
    operation = entry.operation
    assert isinstance(operation, Write | ImportData)
    data = memoryview(entry.data)
    for start, end, _ in extents:
        yield start, data[start - operation.offset : end - operation.offset]
