"""The window of a journal that a policy keeps: how much of its beginning is beyond it.

No clock is believed that it is late: one that leapt ahead would make all of the journal old but its
end. So what is beyond a number of days is found in two ways, of which the more careful one holds:
by the clock (:func:`beyond_window`), and by the time that has passed from entry to entry
(:func:`aged_by_entries`), where a span without entries that is long for the window counts for
nothing: a leap cannot be distinguished from it."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import COMPRESSED_SUFFIX, first_seq_of
from fusejournal.types import Seq

_UNCOUNTED_PART: Final = 4
_COUNTED_NS: Final = 3600 * 10**9
"""A span without entries counts up to this length, or a quarter of the window."""


class PrunableSegment(NamedTuple):
    """A segment that another follows."""

    path: Path
    last_seq: Seq
    size: int
    """The bytes that it occupies."""
    ended_ns: int
    """The time by which all of it was written: no earlier than what any segment before was begun
    at, because a clock that was put back says nothing of age."""


def prunable_segments(reader: JournalReader) -> list[PrunableSegment]:
    """Returns the segments behind which there is an entry in another, in order: the last entry of a
    journal always stays. Raises JournalDamagedError, OSError."""
    paths = reader.segments()
    found = []
    ended_ns = reader.beginning(paths[0])[0].time_ns if paths else 0
    for path, following in pairwise(paths):
        header, first = reader.beginning(following)
        if first is None:
            break
        last_seq = Seq(first_seq_of(following) - 1)
        ended_ns = max(ended_ns, header.time_ns)
        found.append(PrunableSegment(path, last_seq, _size_of(path), ended_ns))
    return found


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the layer has compressed it just now
        return path.with_suffix(COMPRESSED_SUFFIX).stat().st_size


def beyond_window(
    segments: list[PrunableSegment], now_ns: int, keep_bytes: int | None, keep_ns: int | None
) -> Seq:
    """Returns the last entry of those *segments*, which are in order, that are older than *keep_ns*
    at *now_ns*, or beyond the newest *keep_bytes*; 0 if there are none. Pure."""
    kept_bytes = 0
    for segment in reversed(segments):
        kept_bytes += segment.size
        is_old = keep_ns is not None and segment.ended_ns < now_ns - keep_ns
        if is_old or (keep_bytes is not None and kept_bytes > keep_bytes):
            return segment.last_seq
    return Seq(0)


class UncountedSpan(NamedTuple):
    """A span without entries that counts for nothing, because the clock may have leapt in it."""

    after_seq: Seq
    """The last entry before it."""
    span_ns: int


class _Stamp(NamedTuple):
    seq: Seq
    clock_ns: int
    """The time by the clock when the entry was made."""


def aged_by_entries(reader: JournalReader, keep_ns: int) -> tuple[Seq, UncountedSpan | None]:
    """Returns the last entry of the newest segment after which *keep_ns* have passed, as the times
    of the entries say; 0 if there is none. Also returns the longest span since that counts for
    nothing, if there is one. Raises JournalDamagedError, OSError."""
    counted_ns = max(_COUNTED_NS, keep_ns // _UNCOUNTED_PART)
    passed_ns = 0
    longest: UncountedSpan | None = None
    following: _Stamp | None = None
    for path in reversed(reader.segments()):
        stamps = list(_stamps(reader, path, counted_ns))
        if following is not None:
            stamps.append(following)
        for before, after in reversed(list(pairwise(stamps))):
            span_ns = after.clock_ns - before.clock_ns
            if span_ns > counted_ns:
                if longest is None or span_ns > longest.span_ns:
                    longest = UncountedSpan(before.seq, span_ns)
            else:
                passed_ns += max(0, span_ns)  # less than nothing: the clock was put back
            if after is following and passed_ns >= keep_ns:
                return before.seq, longest
        following = stamps[0] if stamps else None
    return Seq(0), longest


def _stamps(reader: JournalReader, path: Path, counted_ns: int) -> Iterator[_Stamp]:
    """Yields first and last entry of segment *path*, and of those between so many that between two
    of them no more than *counted_ns* have passed, or there is no entry."""
    index, lead_ns = reader.index(path), reader.lead_ns(path)
    if not index.entries:
        return
    told = [_Stamp(Seq(index.first_seq + number), time) for number, _, _, time in index.points()]
    if told[-1].seq < index.last_seq:
        told.append(_Stamp(index.last_seq, index.last_time_ns))
    yield _Stamp(told[0].seq, told[0].clock_ns - lead_ns)
    for before, after in pairwise(told):
        if after.clock_ns - before.clock_ns > counted_ns:
            for entry in reader.read(Seq(before.seq + 1), after.seq):
                yield _Stamp(entry.seq, entry.time_ns - lead_ns)
        yield _Stamp(after.seq, after.clock_ns - lead_ns)
