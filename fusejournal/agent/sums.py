"""Sums of a volume's entries by time, operation and user, for the chart of the timeline.

Sealed segments never change, so each is counted once and its sums are kept; the newest is counted
on from where the last count ended. A count takes a part of a second at a time, the newest segment
first, and reports how much is still to be counted: a console that asks again gets more, until all
is there.

The sums of a segment are kept for steps of time that are a thousandth of its length, or a second;
and, packed, once it is counted, for a thirty-second of it, too, so that a chart of very many
segments is quickly put together of these."""

import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fusejournal.admin.source import JournalSource
from fusejournal.agent.accounts import account_names
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.agent.timeline import filter_options
from fusejournal.history.entry_lookup import Span
from fusejournal.history.lookup import Lookup
from fusejournal.journal.reader import END
from fusejournal.kinds import Kind
from fusejournal.operations import Void
from fusejournal.types import Seq

_SECONDS = 0.5
_PIECE = 4096
"""Entries that are counted between two looks at the clock."""
_STEPS = 1000
_STEPS_COARSE = 32
_STEP_SHIFT = 38
_KIND_SHIFT = 32
_SECOND_NS = 10**9
_SEGMENTS_MAX = 4096
_BARS_MAX = 400


class _Cell(NamedTuple):
    """A step of time, an operation and a user."""

    step: int
    kind: int
    uid: int


class _Packed:
    """Sums that are done: a key of step, operation and user, and a number, for each cell. Twelve
    bytes a cell: a journal of millions of entries has as many."""

    def __init__(self, step_ns: int, cells: Mapping[_Cell, int]) -> None:
        self.step_ns = step_ns
        self._first = min((cell.step for cell in cells), default=0)
        keys = (
            cell.step - self._first << _STEP_SHIFT | cell.kind << _KIND_SHIFT | cell.uid
            for cell in cells
        )
        self._keys = array("Q", keys)
        self._counts = array("I", cells.values())

    def __iter__(self) -> Iterator[tuple[_Cell, int]]:
        """The cells, with their numbers."""
        kinds, uids = (1 << _STEP_SHIFT - _KIND_SHIFT) - 1, (1 << _KIND_SHIFT) - 1
        for key, count in zip(self._keys, self._counts, strict=True):
            step = self._first + (key >> _STEP_SHIFT)
            yield _Cell(step, key >> _KIND_SHIFT & kinds, key & uids), count


class _SegmentSums:
    """The sums of one segment, as far as they are counted."""

    def __init__(self, span: Span, step_ns: int) -> None:
        self.next_seq = span.first_seq
        self._end_seq = span.end_seq
        self._step_ns = step_ns
        self._cells: Counter[_Cell] = Counter()
        self._packed: tuple[_Packed, ...] = ()
        """The whole segment, by steps and by coarse ones, once it is counted."""

    def count(self, lookup: Lookup, end: Seq) -> None:
        """Count the entries up to *end*, half-open, but for VOIDs."""
        for entry in lookup.reader.read(self.next_seq, end):
            operation = entry.operation
            if not isinstance(operation, Void):
                step = entry.time_ns // self._step_ns
                self._cells[_Cell(step, int(operation.kind), entry.who.uid)] += 1
        self.next_seq = end
        if end == self._end_seq:
            self._pack()

    def _pack(self) -> None:
        many = max(1, _STEPS // _STEPS_COARSE)
        coarse: Counter[_Cell] = Counter()
        for cell, count in self._cells.items():
            coarse[cell._replace(step=cell.step // many)] += count
        self._packed = (
            _Packed(self._step_ns * many, coarse),
            _Packed(self._step_ns, self._cells),
        )
        self._cells = Counter()

    def cells(self, bar_ns: int) -> Iterator[tuple[int, _Cell, int]]:
        """Yields the time, the operation and user, and the number of each cell, in steps that are
        short beside a bar of *bar_ns*, if it has these."""
        if not self._packed:
            for cell, count in self._cells.items():
                yield cell.step * self._step_ns, cell, count
            return
        coarse, fine = self._packed
        chosen = coarse if 4 * coarse.step_ns <= bar_ns else fine
        for cell, count in chosen:
            yield cell.step * chosen.step_ns, cell, count


class Sums:
    """The sums of the segments of one volume's journal, as they were asked for. Not for two threads
    at a time."""

    def __init__(self) -> None:
        self._segments: OrderedDict[Seq, _SegmentSums] = OrderedDict()

    def histogram(self, source: JournalSource, fields: Fields) -> dict[str, Any]:
        """Returns the numbers of entries over time. Fields: ``since``, ``until`` (times or marks),
        ``uid``, ``op``, ``bars``. The path is left aside. Raises FusejournalError."""
        bars = min(fields.number("bars", 120, least=1), _BARS_MAX)
        criteria = source.criteria(
            since=fields.text_or_none("since"), until=fields.text_or_none("until"),
            ops=fields.texts("op"), uid=fields.number_or_none("uid"),
        )  # fmt: skip
        first = max(criteria.from_seq, source.reader.first_seq)
        end = Seq(min(criteria.to_seq, source.head_seq + 1))
        left = self._count(source, first, end)
        chart = _Chart(*_bounds(source, first, end), bars)
        for span in source.lookup.segments(first, end):
            sums = self._segments.get(span.first_seq)
            for time_ns, cell, count in sums.cells(chart.step_ns) if sums is not None else ():
                is_asked = (not criteria.kinds or Kind(cell.kind) in criteria.kinds) and (
                    criteria.uid is None or cell.uid == criteria.uid
                )
                if is_asked:
                    chart.add(time_ns, cell, count)
        options = [one for one in filter_options(fields) if one[0] not in ("--from-seq",)]
        command = command_line("log", source.name, options=[*options, ("--stat", True)])
        return {**chart.to_json(), "entries_left": left, "command": command}

    def _count(self, source: JournalSource, first: Seq, end: Seq) -> int:
        """Counts for a part of a second, and returns how many entries are left to be counted."""
        deadline = time.monotonic() + _SECONDS
        left = 0
        for span in source.lookup.segments(first, end, newest_first=True):
            sums = self._sums_of(source, span)
            last = Seq(min(span.end_seq, source.head_seq + 1))
            if sums.next_seq > last:  # entries that lost to another history were taken off
                del self._segments[span.first_seq]
                sums = self._sums_of(source, span)
            while sums.next_seq < last and time.monotonic() < deadline:
                sums.count(source.lookup, Seq(min(last, sums.next_seq + _PIECE)))
            left += last - sums.next_seq
        return left

    def _sums_of(self, source: JournalSource, span: Span) -> _SegmentSums:
        key = span.first_seq
        sums = self._segments.get(key)
        if sums is None:
            step_ns = _SECOND_NS
            if span.end_seq != END:
                index = source.lookup.index(span)
                length_ns = index.last_time_ns - index.first_time_ns
                step_ns = max(1, round(length_ns / _STEPS / _SECOND_NS)) * _SECOND_NS
            sums = self._segments[key] = _SegmentSums(span, step_ns)
        self._segments.move_to_end(key)
        while len(self._segments) > _SEGMENTS_MAX:
            self._segments.popitem(last=False)
        return sums


def _bounds(source: JournalSource, first: Seq, end: Seq) -> tuple[int, int]:
    """Returns the times of the first and the last entry in [first, end)."""
    times = [
        entry.time_ns
        for seq in (first, Seq(max(first, end - 1)))
        for entry in source.reader.read(seq, Seq(seq + 1))
    ]
    return (min(times), max(times)) if times else (0, 0)


class _Chart:
    """Bars of equal length over a time."""

    def __init__(self, from_ns: int, to_ns: int, bars: int) -> None:
        # Whole seconds, because that is what segments are counted in.
        from_ns = from_ns // _SECOND_NS * _SECOND_NS
        self.step_ns = max(1, -(-(to_ns - from_ns + 1) // bars // _SECOND_NS)) * _SECOND_NS
        self._from_ns = from_ns
        self._bars = min(bars, (to_ns - from_ns) // self.step_ns + 1)
        self._kinds: list[Counter[str]] = [Counter() for _ in range(self._bars)]
        self._users: list[Counter[str]] = [Counter() for _ in range(self._bars)]

    def add(self, time_ns: int, cell: _Cell, count: int) -> None:
        """Add *count* entries; what is just outside counts for the bar at the edge."""
        at = min(max(0, (time_ns - self._from_ns) // self.step_ns), self._bars - 1)
        self._kinds[at][Kind(cell.kind).name.lower()] += count
        self._users[at][str(cell.uid)] += count

    def to_json(self) -> dict[str, Any]:
        """Returns the bars, each by operation and by user."""
        return {
            "from_ns": self._from_ns,
            "step_ns": self.step_ns,
            "by_op": [dict(one) for one in self._kinds],
            "by_uid": [dict(one) for one in self._users],
            "users": account_names(int(uid) for one in self._users for uid in one),
        }
