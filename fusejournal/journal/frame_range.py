"""Frame ranges: consecutive frames as they lie in a segment, read to be shipped and checked to be
received.

A :class:`FrameRangeReader` goes through a journal from a seq on. Where the end of the journal is
known from its writer and is near, it reads up to there and looks at nothing (the receiver does);
further behind, or where that is asked for, it reads by size, checks every frame and the one after,
and never ends a range between an entry and its VOID. A range that begins a segment has the
segment's header first, so that a copy made of ranges is the same byte for byte.

A FrameRangeReader blocks on the disk, and holds one segment open. Not for use by two threads at a
time."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from fusejournal.errors import JournalDamagedError, JournalError, NoSuchSeqError
from fusejournal.journal.format import (
    DATA_BYTES_MAX,
    FRAME_HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    Entry,
    FormatError,
    Frame,
    checked_frame,
    decode_entry,
    frame_bytes_at,
    kind_of,
    skim_frames,
)
from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import (
    BadFrameError,
    Point,
    SegmentReader,
    first_seq_of,
    list_segments,
    segment_path,
    without_unbegun,
)
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.operations import Kind
from fusejournal.types import Epoch, Position, Seq

_VOID_BYTES_MAX = 512

FRAME_RANGE_BYTES_MAX = (
    SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + PAYLOAD_BYTES_MAX + DATA_BYTES_MAX + _VOID_BYTES_MAX
)
"""The largest entry, its VOID and a header; no range that was asked for with less is longer."""

_WINDOW_BYTES_MIN = 512


class JournalEnd(NamedTuple):
    """The end of a journal: ``offset`` of the segment that begins with ``segment_seq``, after the
    entry at ``position``."""

    segment_seq: Seq
    offset: int
    position: Position


class FrameRange(NamedTuple):
    """Frames ``first_seq`` to ``last_seq``, both included, from ``offset`` of the segment that
    begins with ``segment_seq`` on; offset 0 means that its header comes first. ``epoch`` is the
    highest that begins in them, as far as they were decoded; 0 where none is known to."""

    segment_seq: Seq
    offset: int
    first_seq: Seq
    last_seq: Seq
    chain_before: int
    chain: int
    content: bytes
    epoch: Epoch = Epoch(0)


def check_frame_range(frame_range: FrameRange) -> None:
    """Checks every frame of *frame_range*, its seqs, and that its chain leads from one end to the
    other. Raises FormatError."""
    at = 0
    if frame_range.offset == 0:
        header = SegmentHeader.decode(frame_range.content)
        if (header.first_seq, header.chain_before) != (
            frame_range.first_seq,
            frame_range.chain_before,
        ):
            raise FormatError(
                f"the segment's header is of entry {header.first_seq} after chain "
                f"{header.chain_before:016x}, its first frame of entry {frame_range.first_seq} "
                f"after {frame_range.chain_before:016x}"
            )
        at = SEGMENT_HEADER_BYTES
    end, seq, chain = skim_frames(
        frame_range.content,
        memoryview(frame_range.content),
        frame_range.first_seq,
        frame_range.chain_before,
        at,
    )
    if end != len(frame_range.content):
        raise FormatError(f"the frame of entry {seq} is not whole or not good")
    if (seq - 1, chain) != (frame_range.last_seq, frame_range.chain):
        raise FormatError(
            f"the frames end with entry {seq - 1} and chain {chain:016x}, not with entry "
            f"{frame_range.last_seq} and {frame_range.chain:016x}"
        )


def entries_in(frame_range: FrameRange) -> Iterator[Entry]:
    """Yields the entries of *frame_range*, whose frames were checked (:func:`check_frame_range`,
    :meth:`FrameRangeReader.next_checked`). Raises BadFrameError."""
    view = memoryview(frame_range.content)
    at = SEGMENT_HEADER_BYTES if frame_range.offset == 0 else 0
    while at < len(view):
        offset = frame_range.offset + at
        frame = checked_frame(view, at, offset)
        try:
            entry = decode_entry(frame)
        except FormatError as error:
            raise BadFrameError.undecodable(offset, frame.seq, error) from None
        yield entry
        at += entry.frame_bytes


class FrameRangeReader:
    """Reads ranges one after the other. ``seq`` is that of the next frame, ``chain`` the checksum
    of the one before it."""

    def __init__(self, directory: Path, uuid: UUID) -> None:
        self._directory = directory
        self._uuid = uuid
        self._reader: SegmentReader | None = None
        self._segment_seq = Seq(1)
        self._offset = 0
        self.seq = Seq(1)
        self.chain = 0

    def close(self) -> None:
        """Close what is open."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def seek(self, seq: Seq) -> int:
        """Go to the place after entry *seq* (0: to the beginning); returns the chain there. Raises
        NoSuchSeqError when the journal does not have it (any more), JournalDamagedError."""
        self.close()
        starts = [first_seq_of(path) for path in without_unbegun(list_segments(self._directory))]
        if not starts:
            raise NoSuchSeqError(seq, 0, 0)
        if seq + 1 in starts:
            self._segment_seq, self._offset, self.seq = Seq(seq + 1), 0, Seq(seq + 1)
            self.chain = self._open().header.chain_before
            return self.chain
        if seq + 1 < starts[0]:
            raise NoSuchSeqError(seq, starts[0], 0)
        for path, frame in JournalReader(self._directory, self._uuid).frames(seq, Seq(seq + 1)):
            self._segment_seq = first_seq_of(path)
            self._offset = frame.offset + len(frame.content)
            self.seq, self.chain = Seq(seq + 1), frame.checksum
            return self.chain
        raise NoSuchSeqError(seq, starts[0], 0)

    def committed_seq(self, end: JournalEnd) -> Seq:
        """The last seq of what was read whose outcome is known: the last entry's, or the one's
        before it where its VOID comes next. Raises JournalDamagedError, OSError."""
        last = Seq(self.seq - 1)
        if self.seq > end.position.seq or not last or not self._offset:
            return last
        void = self._void_at(self._at_segment(), self._offset, self.seq, self.chain)
        return last if void is None else Seq(last - 1)

    def is_near(self, end: JournalEnd, bytes_max: int) -> bool:
        """Returns True if all up to *end* is at most *bytes_max*, and in the segment that is open:
        then reading it takes next to no time."""
        return (
            self._reader is not None
            and self._segment_seq == end.segment_seq
            and self.bytes_to(end) <= bytes_max
        )

    def bytes_to(self, end: JournalEnd) -> int:
        """Returns the number of bytes up to *end*, if it is in the segment that is open."""
        return end.offset - self._offset

    def next(self, end: JournalEnd, applied_seq: Seq, bytes_max: int) -> FrameRange | None:
        """Returns the range that comes next, of about *bytes_max* bytes at most; None if there is
        nothing up to *applied_seq*. It never ends between an entry and its VOID. *end* is where the
        journal ended when that was asked for. Raises JournalDamagedError, JournalError when its
        segment is gone, OSError."""
        if self.seq > applied_seq:
            return None
        reader = self._at_segment()
        is_newest = self._segment_seq == end.segment_seq
        length = end.offset - self._offset
        if is_newest and applied_seq == end.position.seq and length <= bytes_max:
            content = reader.read_at(self._offset, length)
            if len(content) != length:
                raise JournalDamagedError(
                    reader.path, self._offset, self.seq, f"{len(content)} of {length} bytes"
                )
            return self._advance(content, Seq(applied_seq + 1), end.position.chain)
        return self._walk(reader, end, Seq(applied_seq + 1), bytes_max)

    def next_checked(self, end: JournalEnd, applied_seq: Seq, bytes_max: int) -> FrameRange | None:
        """The same, but nothing is taken on trust: every frame of it is checked, and what follows
        it."""
        if self.seq > applied_seq:
            return None
        reader = self._at_segment()
        if self._segment_seq == end.segment_seq:
            bytes_max = min(bytes_max, end.offset - self._offset)
        return self._walk(reader, end, Seq(applied_seq + 1), bytes_max)

    def _walk(
        self, reader: SegmentReader, end: JournalEnd, to_seq: Seq, bytes_max: int
    ) -> FrameRange | None:
        """Returns the next range by size, each frame checked. None if an entry and its VOID come
        next, and the VOID is beyond."""
        begins = SEGMENT_HEADER_BYTES if self._offset == 0 else 0
        try:
            content = reader.read_at(self._offset, begins + max(bytes_max, _WINDOW_BYTES_MIN))
            at, seq, chain = self._skim(content, begins, to_seq)
            if at == begins:  # not even one: it is larger, or bad
                if len(content) >= begins + FRAME_HEADER_BYTES:
                    need = begins + frame_bytes_at(content, begins)
                    content = reader.read_at(self._offset, need)
                    at, seq, chain = self._skim(content, begins, to_seq)
                if at == begins:
                    point = Point(self.seq, self._offset + begins, self.chain)
                    for _ in reader.frames(point):
                        break  # what is wrong with it is said by this
                    raise FormatError("the segment ends where an entry should be")
            content = content[:at]
            void = None
            if seq <= end.position.seq:
                void = self._void_at(reader, self._offset + at, seq, chain)
            if void is not None and seq < to_seq:
                content += void.content
                seq, chain = Seq(seq + 1), void.checksum
            elif void is not None:  # beyond what is wanted: so is the entry, then
                at, seq, chain = self._skim(content, begins, Seq(seq - 1))
                if at == begins:
                    return None
                content = content[:at]
        except BadFrameError as bad:
            raise bad.in_segment(reader.path) from None
        except FormatError as error:
            raise JournalDamagedError(reader.path, self._offset, self.seq, str(error)) from None
        return self._advance(content, seq, chain)

    def _void_at(self, reader: SegmentReader, offset: int, seq: Seq, chain: int) -> Frame | None:
        """The frame of entry *seq*, which comes at *offset* after *chain*, if it is a VOID. It is
        there, and is checked whatever it is: a damaged VOID must not pass for none, or what was
        refused would count as done. Raises JournalDamagedError."""
        try:
            for frame in reader.frames(Point(seq, offset, chain)):
                return frame if kind_of(frame) == Kind.VOID else None
        except BadFrameError as bad:
            raise bad.in_segment(reader.path) from None
        # The segment ends here, and a VOID is in the segment of its entry.
        path = segment_path(self._directory, seq)
        try:
            with closing(SegmentReader(path)) as following:
                if following.header.chain_before == chain:
                    return None
        except (FileNotFoundError, BadFrameError):
            pass
        raise JournalDamagedError(reader.path, offset, seq, "the segment ends too early")

    def _skim(self, content: bytes, begins: int, to_seq: Seq) -> tuple[int, Seq, int]:
        return skim_frames(content, memoryview(content), self.seq, self.chain, begins, to_seq)

    def _advance(self, content: bytes, seq: Seq, chain: int) -> FrameRange:
        frame_range = FrameRange(
            self._segment_seq,
            self._offset,
            self.seq,
            Seq(seq - 1),
            self.chain,
            chain,
            content,
        )
        self._offset += len(content)
        self.seq, self.chain = seq, chain
        return frame_range

    def _at_segment(self) -> SegmentReader:
        """The segment that holds the next frame."""
        reader = self._open()
        if self._offset and self._segment_seq != self.seq and self._is_there(self.seq):
            # A segment that another follows has its exact size, so this one ends here.
            self.close()
            self._segment_seq, self._offset = self.seq, 0
            reader = self._open()
            if reader.header.chain_before != self.chain:
                found = reader.header.chain_before
                reason = f"follows chain {found:016x}, and the segment before has {self.chain:016x}"
                raise JournalDamagedError(reader.path, 0, self.seq, reason)
        return reader

    def _is_there(self, first_seq: Seq) -> bool:
        return any(
            segment_path(self._directory, first_seq, compressed).exists()
            for compressed in (False, True)
        )

    def _open(self) -> SegmentReader:
        if self._reader is None:
            path = segment_path(self._directory, self._segment_seq)
            try:
                self._reader = SegmentReader(path)
            except FileNotFoundError:
                raise JournalError(f"{path}: is not there any more") from None
            except BadFrameError as bad:
                raise bad.in_segment(path) from None
            if self._reader.header.uuid != self._uuid:
                raise JournalError(f"{path}: a segment of another volume")
        return self._reader
