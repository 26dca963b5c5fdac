"""The segments of a journal, and the entries in them that name some files, found by the indexes."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from fusejournal.errors import JournalDamagedError
from fusejournal.journal.base import IsRead, all_read
from fusejournal.journal.format import Entry
from fusejournal.journal.index import Posting, SegmentIndex
from fusejournal.journal.index_parts import IndexContents
from fusejournal.journal.outcomes import HELD, Outcome
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import first_seq_of
from fusejournal.types import Fid, Seq


class Span(NamedTuple):
    """A segment and what it must have: the entries in [first_seq, end_seq); the newest has no
    end yet."""

    path: Path
    first_seq: Seq
    end_seq: Seq

    def check_end(self, last_seq: Seq) -> None:
        """Raises JournalDamagedError when the entries between this and the next segment are
        missing."""
        if self.end_seq != END and last_seq + 1 != self.end_seq:
            raise JournalDamagedError(
                self.path,
                0,
                last_seq + 1,
                f"it ends with {last_seq}, and the next segment begins with {self.end_seq}",
            )


class EntryLookup:
    """Finds entries in the journal that *reader* reads. What the journal gains after the first
    question is not seen."""

    def __init__(self, reader: JournalReader) -> None:
        self.reader = reader
        reader.look_again()
        self._paths = reader.segments()
        self._starts = [first_seq_of(path) for path in self._paths]
        base = reader.base
        is_told = base is not None and base.base.seq + 1 in self._starts[:1]
        self.base = base if is_told else None
        """The tree before the first segment, where that is known."""
        self.is_whole = is_told or self._starts[:1] == [1]
        """True if all is known that there was from the journal's first entry on."""

    def segments(
        self, from_seq: Seq = Seq(1), to_seq: Seq = END, *, newest_first: bool = False
    ) -> Iterator[Span]:
        """The segments that reach into [from_seq, to_seq)."""
        first = max(0, bisect_right(self._starts, from_seq) - 1)
        chosen = range(first, bisect_left(self._starts, to_seq))
        ends = [*self._starts[1:], END]
        for at in reversed(chosen) if newest_first else chosen:
            yield Span(self._paths[at], self._starts[at], ends[at])

    def index(self, span: Span) -> SegmentIndex:
        """The index of a segment. Raises JournalDamagedError."""
        index = self.reader.index(span.path)
        span.check_end(index.last_seq)
        return index

    def contents(self, span: Span) -> SegmentIndex | IndexContents:
        """Returns which fids and names a segment has. Raises JournalDamagedError."""
        kept = self.reader.contents(span.path)
        span.check_end(kept.last_seq)
        return kept

    def _naming(self, span: Span, fids: Collection[Fid]) -> SegmentIndex | None:
        """Returns the index of a segment that has an entry which names one of *fids*; None of
        another. Raises JournalDamagedError."""
        kept = self.contents(span)
        if isinstance(kept, SegmentIndex):
            return kept
        return self.index(span) if any(map(kept.has_fid, fids)) else None

    def entries_of(
        self, fid: Fid, before_seq: Seq = END, *, wanted: Callable[[Posting], bool] | None = None
    ) -> Iterator[tuple[Entry, Outcome]]:
        """The entries below *before_seq* that are about *fid*, in order; with *wanted*, those of
        all that name it (as a directory, too) for which it holds."""
        is_about = wanted or (lambda one: not one.is_parent)
        yield from self._from_base((fid,), before_seq, is_about)
        yield from self.later_entries_of(fid, before_seq, wanted=wanted)

    def _from_base(
        self,
        fids: Collection[Fid],
        before_seq: Seq,
        wanted: Callable[[Posting], bool],
        is_read: IsRead = all_read,
    ) -> Iterator[tuple[Entry, Outcome]]:
        """The entries that make what of *fids* was at the base."""
        if self.base is not None and self.base.base.seq < before_seq:
            for entry in self.base.entries(fids, wanted, is_read):
                yield entry, HELD

    def later_entries_of(
        self, fid: Fid, before_seq: Seq = END, *, wanted: Callable[[Posting], bool] | None = None
    ) -> Iterator[tuple[Entry, Outcome]]:
        """The entries of :meth:`entries_of` that are in the journal."""
        for span in self.segments(to_seq=before_seq):
            index = self._naming(span, (fid,))
            if index is None:
                continue
            numbers = [
                posting.number
                for posting in index.of_fid(fid)
                if index.first_seq + posting.number < before_seq
                and (wanted(posting) if wanted else not posting.is_parent)
            ]
            yield from self.reader.pick(span.path, numbers)

    def entries_of_many(
        self,
        fids: Collection[Fid],
        before_seq: Seq,
        wanted: Callable[[Posting], bool],
        is_read: IsRead = all_read,
        from_seq: Seq = Seq(0),
    ) -> Iterator[tuple[Entry, Outcome]]:
        """The entries in [from_seq, before_seq) that name any of *fids* and for which *wanted*
        holds, in order: each segment is read once. *is_read*: as in BaseTree.entries."""
        if self.base is not None and from_seq <= self.base.base.seq:
            yield from self._from_base(fids, before_seq, wanted, is_read)
        for span in self.segments(from_seq, before_seq):
            index = self._naming(span, fids)
            if index is None:
                continue
            numbers = {
                posting.number
                for fid in index.which_of(fids)
                for posting in index.of_fid(fid)
                if wanted(posting) and from_seq <= index.first_seq + posting.number < before_seq
            }
            yield from self.reader.pick(span.path, sorted(numbers))
