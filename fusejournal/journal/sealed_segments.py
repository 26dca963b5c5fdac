"""The journal's segments that are written no more: which there are, what they occupy, and what is
left to do to each: flush it, index it, compress it.

Owned by the journal (journal.py), which adds a segment when it seals it. They are listed once, when
the journal is opened, because there can be many. Everything but :meth:`SealedSegments.compress`
belongs to the event loop's thread; that one blocks and runs in a worker thread. ``unflushed`` is
shared with the thread that flushes: the loop appends on the right, the flush takes from the
left."""

import itertools
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from fusejournal.disk import calls
from fusejournal.errors import JournalDamagedError
from fusejournal.journal.index import has_index
from fusejournal.journal.reader import END
from fusejournal.journal.seekable import compress_file
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    PLAIN_SUFFIX,
    SPACE_BYTES,
    BadFrameError,
    SegmentReader,
    first_seq_of,
    list_segments,
)
from fusejournal.types import Seq


@dataclass(slots=True)
class SealedSegment:
    """One of them; its entries are those up to ``end_seq``, exclusive."""

    path: Path
    size: int
    """The bytes that it occupies."""
    end_seq: Seq

    @property
    def is_compressed(self) -> bool:
        """True if it is stored as zstd blocks."""
        return self.path.suffix == COMPRESSED_SUFFIX


class SealedSegments:
    """The list of them. *compress_level* is zstd's."""

    def __init__(self, compress_level: int) -> None:
        self._compress_level = compress_level
        self._segments: dict[Seq, SealedSegment] = {}
        """By their first seq, and in its order."""
        self._lacking_index: dict[Seq, None] = {}
        """Those of them that may have no index."""
        self.unflushed: deque[tuple[Path, int]] = deque()
        """Those of them that may not be on disk, with a descriptor of each."""

    # -- which there are ---------------------------------------------------------------------------

    def read_directory(self, directory: Path, end_seq: Seq) -> None:
        """Add all segments of *directory*; the last one ends before *end_seq*. Raises OSError."""
        paths = list_segments(directory)
        ends = itertools.chain(map(first_seq_of, paths[1:]), [end_seq])
        for path, end in zip(paths, ends, strict=False):
            self.add(path, path.stat().st_size, end)

    def add(self, path: Path, size: int, end_seq: Seq) -> None:
        """Add the segment *path*, which follows those that are here: it is *size* bytes long and
        ends before *end_seq*."""
        first_seq = first_seq_of(path)
        self._segments[first_seq] = SealedSegment(path, size, end_seq)
        self._lacking_index[first_seq] = None

    def remove_last(self) -> None:
        """Remove the last one from the list, because it is written on."""
        first_seq, _ = self._segments.popitem()
        del self._lacking_index[first_seq]

    def mend(self, durable_seq: Seq) -> None:
        """Finish what a process or machine that stopped had begun: every segment but the last gets
        its exact size, and the plain file of a compressed one goes. What is not known to be on
        disk, beyond *durable_seq*, is unflushed again, because it may be in the page cache alone.
        Raises JournalDamagedError, OSError."""
        segments = list(self._segments.values())
        for segment in segments:
            _remove_leftover(segment)
        for segment in segments[:-1]:
            _cut_to_size(segment)
            if not segment.is_compressed and segment.end_seq - 1 > durable_seq:
                fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
                self.unflushed.append((segment.path, fd))

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def total_bytes(self) -> int:
        """The bytes that they occupy."""
        return sum(segment.size for segment in self._segments.values())

    def bytes_from(self, seq: Seq) -> int:
        """About how much of what they occupy is entries from *seq* on."""
        total = 0
        for first_seq, segment in reversed(self._segments.items()):
            total += share_from(seq, first_seq, segment.end_seq, segment.size)
            if first_seq <= seq:
                break
        return total

    # -- what is left to do ------------------------------------------------------------------------

    def durable(self) -> list[Path]:
        """Those that are on disk, which can have an index and be compressed."""
        return [segment.path for segment in self._durable().values()]

    def _durable(self) -> dict[Seq, SealedSegment]:
        busy = {path for path, _ in list(self.unflushed)}  # a copy: a flush may run beside us
        return {
            first_seq: segment
            for first_seq, segment in self._segments.items()
            if segment.path not in busy
        }

    def without_index(self) -> list[Path]:
        """Those on disk that have no sidecar index yet."""
        found = []
        durable = self._durable() if self._lacking_index else {}
        for first_seq in list(self._lacking_index):
            if first_seq in durable:
                path = durable[first_seq].path
                if has_index(path):
                    del self._lacking_index[first_seq]
                else:
                    found.append(path)
        return found

    def compressible(self, to_seq: Seq = END) -> list[Path]:
        """Those on disk with entries before *to_seq* alone that are not compressed yet."""
        return [
            segment.path
            for segment in self._durable().values()
            if not segment.is_compressed and segment.end_seq <= to_seq
        ]

    def compress(self, path: Path) -> None:
        """Compress the segment *path* in place. Blocks: call it in a thread. Raises OSError,
        FormatError."""
        compressed = path.with_suffix(COMPRESSED_SUFFIX)
        compress_file(path, compressed, self._compress_level)
        segment = self._segments[first_seq_of(path)]
        segment.size = compressed.stat().st_size
        segment.path = compressed


def share_from(seq: Seq, first_seq: Seq, end_seq: Seq, size: int) -> int:
    """About how many of the *size* bytes of a segment with the entries from *first_seq* up to
    *end_seq*, exclusive, are entries from *seq* on."""
    share = (end_seq - seq) / max(1, end_seq - first_seq)
    return int(size * min(1.0, max(0.0, share)))


def _remove_leftover(segment: SealedSegment) -> None:
    """Remove the plain file of a compressed segment, where its compression was interrupted before
    that was done. One that is not the same size is left alone. Raises OSError."""
    if not segment.is_compressed:
        return
    plain = segment.path.with_suffix(PLAIN_SUFFIX)
    if plain.exists():
        with SegmentReader(segment.path) as reader:
            is_same = reader.size == plain.stat().st_size
        if is_same:
            calls.unlink("journal.compress.leftover", plain)


def _cut_to_size(segment: SealedSegment) -> None:
    """Give a segment that another follows its exact size: its writer died, or its machine, before
    that was done. Raises JournalDamagedError, OSError."""
    if segment.is_compressed or segment.size % SPACE_BYTES:
        return
    try:
        with SegmentReader(segment.path) as reader:
            end = reader.check().offset
    except BadFrameError as bad:
        raise JournalDamagedError(segment.path, bad.offset, bad.seq, bad.reason) from None
    if end < segment.size:
        fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            calls.ftruncate("journal.reseal", fd, end)
            calls.fsync("journal.reseal.sync", fd)
        finally:
            os.close(fd)
        segment.size = end
