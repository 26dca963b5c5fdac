"""Reading a journal: the one reader for recovery, the command line, replay and shipping.

A :class:`JournalReader` reads the segments of one directory, or some segment files that a caller
copied; a layer may be appending meanwhile. Every frame that is read is checked, and chained to the
one before, or to the point of an index where reading began; the chain is followed from one
segment to the next. It changes nothing and holds no file open between calls.

The end: in the newest segment a frame that is not whole is the end of the journal (an append under
way, or a torn tail). Anything else that is wrong is JournalDamagedError."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

from fusejournal.errors import JournalError, JournalPrunedError
from fusejournal.journal.base import BaseTree
from fusejournal.journal.clock import SLACK_NS, lead_ns
from fusejournal.journal.format import Entry, FormatError, Frame, decode_entry
from fusejournal.journal.handle_key import NO_HANDLE_KEY, HandleKey
from fusejournal.journal.index import SegmentIndex, load_index
from fusejournal.journal.index_making import build_index, extend_index
from fusejournal.journal.index_parts import IndexContents
from fusejournal.journal.outcomes import HELD, Outcome
from fusejournal.journal.segment import (
    BadFrameError,
    Point,
    SegmentReader,
    first_seq_of,
    list_segments,
    without_unbegun,
)
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.operations import ControlOperation, Void
from fusejournal.types import Seq

_SEARCHED_BYTES = 1 << 20
_INDEX_BYTES_KEPT = 48 << 20
_CONTENTS_BYTES_KEPT = 24 << 20
END = Seq(1 << 62)
"""A bound after every seq."""


class JournalReader:
    """The one reader of a journal. Not for use by two threads at a time."""

    def __init__(
        self,
        source: Path | Sequence[Path],
        uuid: UUID | None = None,
        *,
        base: BaseTree | None = None,
        must_reach: Seq = Seq(0),
    ) -> None:
        """*source*: a directory of segments, or segment files. *uuid* None takes any volume's, if
        it is one volume's. *base*: the tree before the first segment, where that is not entry 1's.
        *must_reach*: up to here the journal is known to go."""
        self._source = source
        self.uuid = uuid
        """The volume's; None until a segment was read."""
        self._indexes: dict[Path, SegmentIndex] = {}
        self._index_bytes = 0
        self._contents: dict[Path, IndexContents] = {}
        """The fids and names of sealed segments, of whose indexes not all are kept."""
        self._contents_bytes = 0
        self._last_sealed: tuple[Seq, int] | None = None
        """The first seq of the last sealed segment of which something is kept, and its chain."""
        self._made_paths: dict[str, Path] = {}
        self._growing: Path | None = None
        """The segment whose index was made while it was the newest."""
        self._stale: set[Path] = set()
        """Segments that may have grown since their index was made."""
        self.must_reach = must_reach
        """The seq up to which the journal is known to go: an end before it is damage."""
        self._left: tuple[Seq, Point] | None = None
        """The segment in which reading ended last, and where."""
        self._last_at: tuple[Path, Point] | None = None
        """The segment whose last frame was asked for last, and where that is."""
        self._base: BaseTree | None = None
        self._began: Seq | None = None
        """The first seq there was when reading began; None before it did."""
        if base is not None:
            self.begin_behind(base)

    @property
    def base(self) -> BaseTree | None:
        """The tree before the first segment, for questions about what was; None where that is
        entry 1's, or nothing records it."""
        return self._base

    def begin_behind(self, base: BaseTree) -> None:
        """Have the journal begin right behind *base* from now on."""
        self._base = base
        self._began = Seq(base.base.seq + 1) if isinstance(self._source, Path) else None

    def note_reach(self, seq: Seq) -> None:
        """Note that the journal is known to go up to *seq*: an end before it is damage."""
        self.must_reach = seq

    def join_volume(self, uuid: UUID) -> None:
        """Take segments of volume *uuid* alone."""
        self.uuid = uuid

    def segments(self) -> list[Path]:
        """The segments behind the base, in order."""
        if isinstance(self._source, Path):
            found = without_unbegun(list_segments(self._source, self._made_paths))
        else:
            found = without_unbegun(sorted(self._source, key=first_seq_of))
        if self._base is not None:
            found = [path for path in found if first_seq_of(path) > self._base.base.seq]
        if self._began is None and found:
            self._began = first_seq_of(found[0])
        return found

    @property
    def first_seq(self) -> Seq:
        """The first seq there is. Raises JournalError when there is no segment."""
        paths = self.segments()
        if not paths:
            raise JournalError(f"{self._source}: no journal segments here")
        return first_seq_of(paths[0])

    def head(self) -> tuple[Seq, bool]:
        """The last seq, and whether its outcome is known from the journal alone, because it is no
        operation that a VOID could still follow. Raises JournalDamagedError."""
        for path in reversed(self.segments()):
            last = self._last_frame(path)
            if last is not None:
                try:
                    operation = decode_entry(last).operation
                    return last.seq, isinstance(operation, ControlOperation)
                except FormatError as error:
                    undecodable = BadFrameError.undecodable(last.offset, last.seq, error)
                    raise undecodable.in_segment(path) from None
        return Seq(self.first_seq - 1), True

    def _last_frame(self, path: Path) -> Frame | None:
        """Returns the last frame of segment *path*, if it has one: found from the one that was the
        last when it was asked for before, where that is still there."""
        known = self._last_at[1] if self._last_at is not None and self._last_at[0] == path else None
        for start in (known, None):
            last: Frame | None = None
            try:
                with self._open(path) as reader:
                    point = start or reader.start
                    chain = point.chain_before
                    for frame in reader.frames(start):
                        last, point = frame, Point(frame.seq, frame.offset, chain)
                        chain = frame.checksum
            except BadFrameError as bad:
                if last is None and start is not None:
                    continue  # it was cut back, or is damaged: a reading of all says so
                if not (bad.torn and path == self.segments()[-1]):
                    raise bad.in_segment(path) from None
            if last is not None:
                self._last_at = path, point
                return last
        return None

    # -- in order ----------------------------------------------------------------------------------

    def read(self, from_seq: Seq, to_seq: Seq) -> Iterator[Entry]:
        """The entries in [from_seq, to_seq). Raises JournalDamagedError, JournalPrunedError."""
        for path, frame in self.frames(from_seq, to_seq):
            try:
                yield decode_entry(frame)
            except FormatError as error:
                bad = BadFrameError.undecodable(frame.offset, frame.seq, error)
                raise bad.in_segment(path) from None

    def frames(self, from_seq: Seq, to_seq: Seq) -> Iterator[tuple[Path, Frame]]:
        """The frames in [from_seq, to_seq), each with its segment. Raises JournalDamagedError;
        JournalPrunedError where some of them were there when reading began, and are no more."""
        paths = self.segments() if from_seq < to_seq else []
        if paths:
            self._check_begins(paths[0], from_seq, to_seq)
        end: tuple[Seq, int] | None = None
        for index, path in enumerate(paths):
            if first_seq_of(path) >= to_seq:
                return
            last = index == len(paths) - 1
            if last or first_seq_of(paths[index + 1]) > from_seq:
                end = yield from self._segment_frames(path, from_seq, to_seq, last, end)
                if end is None:
                    return

    def _check_begins(self, first: Path, from_seq: Seq, to_seq: Seq) -> None:
        """Raises JournalPrunedError where the journal, which begins with segment *first*, had
        entries of [from_seq, to_seq) before that."""
        wanted = max(from_seq, self._began) if self._began is not None else from_seq
        if self._began is not None and wanted < min(first_seq_of(first), to_seq):
            raise _pruned(first.parent, wanted, first_seq_of(first))

    def segment_start(self, seq: Seq) -> Seq:
        """The first seq of the segment that holds *seq*: from there on, entries record every path
        they touch."""
        starts = [first_seq_of(path) for path in self.segments()]
        at = bisect_right(starts, seq) - 1
        return starts[at] if at >= 0 else Seq(1)

    def segment_end(self, start: Seq) -> Seq:
        """The first seq after the segment that begins with *start*; far away for the newest."""
        starts = [first_seq_of(path) for path in self.segments()]
        at = bisect_right(starts, start)
        return starts[at] if at < len(starts) else END

    def _segment_frames(
        self, path: Path, from_seq: Seq, to_seq: Seq, last: bool, before: tuple[Seq, int] | None
    ) -> Generator[tuple[Path, Frame], None, tuple[Seq, int] | None]:
        """The frames of one segment, which must follow *before*, the last seq and chain of the
        segment before it. Returns its own last seq and chain, or None when *to_seq* was reached."""
        frame: Frame | None = None
        try:
            with self._open(path) as reader:
                head = reader.header
                if before is not None and (head.first_seq - 1, head.chain_before) != before:
                    raise BadFrameError(
                        0, head.first_seq, f"does not follow seq {before[0]}", torn=False
                    )
                end = Seq(head.first_seq - 1), head.chain_before
                for frame in reader.frames(self._begin(path, reader, from_seq)):
                    if frame.seq >= from_seq:
                        yield path, frame
                    end = frame.seq, frame.checksum
                    if frame.seq + 1 >= to_seq:
                        self._leave(path, frame)
                        return None
        except BadFrameError as bad:
            if last and bad.torn and bad.seq > self.must_reach:
                self._leave(path, frame)
                return None
            raise bad.in_segment(path) from None
        self._leave(path, frame)
        return end

    def _leave(self, path: Path, frame: Frame | None) -> None:
        """Remember that reading ended in segment *path* with *frame*; None: before it began."""
        if frame is not None:
            after = Seq(frame.seq + 1), frame.offset + len(frame.content), frame.checksum
            self._left = first_seq_of(path), Point(*after)

    def _begin(self, path: Path, reader: SegmentReader, from_seq: Seq) -> Point | None:
        """Returns where to begin reading for *from_seq*: where the last reading ended, or at a
        point of the index, if there is one."""
        first_seq = reader.header.first_seq
        if from_seq <= first_seq:
            return None
        if self._left is not None and self._left[0] == first_seq and self._left[1].seq == from_seq:
            return self._left[1]
        index = self._indexes.get(path)
        if index is None:
            index = load_index(path, reader)
            if index is not None:
                self._keep(path, index)
        if index is None or not index.entries:
            return None
        return index.point_before(min(from_seq, index.last_seq) - index.first_seq)

    def _open(self, path: Path) -> SegmentReader:
        try:
            reader = SegmentReader(path)
        except FileNotFoundError:
            left = self.segments()
            if not left or first_seq_of(path) >= first_seq_of(left[0]):
                raise
            raise _pruned(path.parent, first_seq_of(path), first_seq_of(left[0])) from None
        uuid = reader.header.uuid
        if self.uuid is None:
            self.uuid = uuid
        if uuid != self.uuid:
            reader.close()
            raise BadFrameError(
                0, reader.header.first_seq, f"is of volume {uuid}, not {self.uuid}", torn=False
            )
        return reader

    def beginning(self, path: Path) -> tuple[SegmentHeader, Entry | None]:
        """The header and the first entry of segment *path*. Raises JournalDamagedError."""
        try:
            with self._open(path) as reader:
                first = next(reader.frames(reader.start), None)
                try:
                    return reader.header, decode_entry(first) if first is not None else None
                except FormatError as error:
                    raise BadFrameError.undecodable(
                        SEGMENT_HEADER_BYTES, reader.header.first_seq, error
                    ) from None
        except BadFrameError as bad:
            if bad.torn and bad.offset == SEGMENT_HEADER_BYTES:
                return reader.header, None
            raise bad.in_segment(path) from None

    def handle_key(self) -> HandleKey:
        """The volume's handle key: the newest segment's, or else, because a program that knew of
        no keys may have begun that one, the oldest's. Raises OSError."""
        paths = self.segments()
        for path in (*paths[-1:], *paths):
            try:
                with self._open(path) as reader:
                    handle_key = reader.header.handle_key
            except BadFrameError:
                continue  # it has its own ways of being reported
            if handle_key or path != paths[-1]:
                return handle_key
        return NO_HANDLE_KEY

    def lead_ns(self, path: Path) -> int:
        """Returns how far the entries of segment *path* are ahead of what the clock said when they
        were made (clock.py). Raises JournalDamagedError."""
        header, first = self.beginning(path)
        if first is not None and first.time_ns - header.time_ns <= SLACK_NS:
            return 0
        before = [one for one in self.segments() if first_seq_of(one) < header.first_seq]
        if not before:
            return 0
        return lead_ns(header.time_ns, self.index(before[-1]).last_time_ns)

    # -- by index ----------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Have the index of the newest segment looked at again when it is asked for: the segment
        may have grown since it was made."""
        if self._growing is not None:
            self._stale.add(self._growing)
        if self._last_sealed is not None and not self._goes_on_from(*self._last_sealed):
            # Entries were cut back, or are pruned: by its chain, that one stands for all before it.
            self._indexes.clear()
            self._contents.clear()
            self._stale.clear()
            self._index_bytes = self._contents_bytes = 0
            self._growing = self._last_sealed = None

    def _goes_on_from(self, first_seq: Seq, chain: int) -> bool:
        """Returns True if the segment that begins with *first_seq* is there, and another one that
        follows its *chain*."""
        paths = self.segments()
        at = bisect_left(paths, first_seq, key=first_seq_of)
        if at + 1 >= len(paths) or first_seq_of(paths[at]) != first_seq:
            return False
        try:
            with self._open(paths[at + 1]) as reader:
                return reader.header.chain_before == chain
        except (BadFrameError, JournalError, OSError):
            return False  # a reading of it says so

    def index(self, path: Path) -> SegmentIndex:
        """The index of segment *path*: its sidecar, or one made now by reading the segment. Raises
        JournalDamagedError."""
        known = self._indexes.get(path)
        if known is not None and path not in self._stale:
            return known
        index, newest = None, False
        try:
            with self._open(path) as reader:
                if known is None:
                    index = load_index(path, reader)
                if index is None:
                    newest = path == self.segments()[-1]
                    if known is not None:
                        index = extend_index(known, reader, allow_torn=newest)
                    if index is None:
                        index = load_index(path, reader) or build_index(reader, allow_torn=newest)
        except BadFrameError as bad:
            raise bad.in_segment(path) from None
        if newest:
            self._growing = path
        elif self._last_sealed is None or index.first_seq > self._last_sealed[0]:
            self._last_sealed = index.first_seq, index.chain
        self._stale.discard(path)
        self._keep(path, index)
        return index

    def contents(self, path: Path) -> SegmentIndex | IndexContents:
        """The index of segment *path*, or which fids and names are in it, if that is all that is
        kept of it. Raises JournalDamagedError."""
        kept = self._contents.get(path)
        if kept is not None and path not in self._indexes and path != self._growing:
            return kept
        index = self.index(path)
        if kept is None and path != self._growing:
            kept = self._contents[path] = index.contents()
            self._contents_bytes += kept.nbytes
            while self._contents_bytes > _CONTENTS_BYTES_KEPT:
                self._contents_bytes -= self._contents.pop(_any_of(self._contents)).nbytes
        return index

    def _keep(self, path: Path, index: SegmentIndex) -> None:
        replaced = self._indexes.pop(path, None)
        if replaced is not None:
            self._index_bytes -= len(replaced.content)
        self._indexes[path] = index
        self._index_bytes += len(index.content)
        # Any of the others goes, not the oldest: of segments that are gone through in order, again
        # and again, and of which not quite all can be kept, the oldest is the next to be wanted.
        # That of the segment that grows stays, because no file has it.
        while self._index_bytes > _INDEX_BYTES_KEPT:
            others = [one for one in self._indexes if one not in (path, self._growing)]
            if not others:
                return
            self._index_bytes -= len(self._indexes.pop(_any_of(others)).content)

    def places_of(self, path: Path, text: bytes, most: int) -> list[int] | None:
        """Returns the offsets in segment *path* at which *text* is, in whatever is there: no frame
        is checked; None where there are more than *most*. Raises JournalDamagedError."""
        found: list[int] = []
        offset, before = 0, b""
        try:
            with self._open(path) as reader:
                while piece := reader.read_at(offset, _SEARCHED_BYTES):
                    window = before + piece
                    at = window.find(text)
                    while at >= 0:
                        found.append(offset - len(before) + at)
                        if len(found) > most:
                            return None
                        at = window.find(text, at + 1)
                    offset += len(piece)
                    # It may begin in this piece and end in the next.
                    before = window[len(window) - len(text) + 1 :]
        except BadFrameError as bad:
            raise bad.in_segment(path) from None
        except FormatError as error:
            undecodable = BadFrameError.undecodable(offset, first_seq_of(path), error)
            raise undecodable.in_segment(path) from None
        return found

    def pick(self, path: Path, numbers: Iterable[int]) -> Iterator[tuple[Entry, Outcome]]:
        """The entries with *numbers* (growing) of segment *path*, with their outcomes. Reads from
        the index's point before each. Raises JournalDamagedError."""
        index = self.index(path)
        numbers = list(numbers)
        if not numbers:
            return
        frames: Iterator[Frame] = iter(())
        at: Frame | None = None
        try:
            with self._open(path) as reader:
                for number in numbers:
                    point = index.point_before(number)
                    wanted = Seq(index.first_seq + number)
                    if at is None or point.seq > at.seq:
                        frames = reader.frames(point)
                        at = next(frames, None)
                    while at is not None and at.seq < wanted:
                        at = next(frames, None)
                    if at is None:
                        return
                    entry = decode_entry(at)
                    at = self._following(path, frames, index)
                    yield entry, _outcome_of(entry, at)
        except BadFrameError as bad:
            raise bad.in_segment(path) from None
        except FormatError as error:
            offset, seq = (at.offset, at.seq) if at is not None else (0, index.first_seq)
            raise BadFrameError.undecodable(offset, seq, error).in_segment(path) from None

    def _following(self, path: Path, frames: Iterator[Frame], index: SegmentIndex) -> Frame | None:
        """The next frame; none where the newest segment just ends in the middle of one. Raises
        BadFrameError."""
        try:
            return next(frames, None)
        except BadFrameError as bad:
            if bad.torn and bad.seq > index.last_seq:
                return None
            raise


def _any_of(paths: Collection[Path]) -> Path:
    # Only here: it takes its time to load.
    import random

    return random.choice(list(paths))


def _pruned(directory: Path, wanted: Seq, first: Seq) -> JournalPrunedError:
    return JournalPrunedError(
        f"{directory}: entries {wanted} to {first - 1} were pruned meanwhile: say it again"
    )


def _outcome_of(entry: Entry, following: Frame | None) -> Outcome:
    if following is not None:
        operation = decode_entry(following).operation
        if isinstance(operation, Void) and operation.seq == entry.seq:
            return Outcome.of(operation)
    return HELD
