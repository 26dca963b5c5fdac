"""The journal's segments that are written no more: which there are, what they occupy, and what is
left to do to each: flush it, index it, compress it.

Owned by the journal (journal.py), which adds a segment when it seals it. They are listed once, when
the journal is opened, because there can be many. Everything but :meth:`SealedSegments.compress`
belongs to the event loop's thread; that one blocks and runs in a worker thread. ``unflushed`` is
shared with the thread that flushes: the loop appends on the right, the flush takes from the
left."""

import itertools
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from fusejournal.disk import calls
from fusejournal.errors import JournalDamagedError
from fusejournal.journal.index import has_current_index
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
    segment_path,
)
from fusejournal.types import Seq

_PLAIN: Final = 0
_COMPRESSED: Final = 1
_AT_ONCE_MAX: Final = 1000
_HALF_MADE: Final = re.compile(r"\d{20}\.(fjz\.new|fjx\.new|tmp|fjx\.tmp)")
"""Their names, those of 0.1.0 too."""


class SealedSegment(NamedTuple):
    """One of them; its entries are those up to ``end_seq``, exclusive."""

    path: Path
    size: int
    """The bytes that it occupies."""
    end_seq: Seq
    is_compressed: bool
    """True if it is stored as zstd blocks."""


class SealedSegments:
    """The list of them. *compress_level* is zstd's.

    There can be a hundred thousand: each takes some 20 bytes here, and what is asked again and
    again does not look at those of which nothing is left to be done."""

    def __init__(self, compress_level: int) -> None:
        self._compress_level = compress_level
        self._directory = Path()
        self._first_seqs = array("Q")
        """Growing; each segment ends where the next begins, and the last at ``_end_seq``."""
        self._end_seq = Seq(0)
        self._sizes = array("Q")
        self._forms = bytearray()
        """_PLAIN or _COMPRESSED, of each."""
        self._lacking_index: dict[Seq, None] = {}
        """The segments that may have no index, in order."""
        self.unflushed: deque[tuple[Path, int]] = deque()
        """The segments that may not be on disk, with a descriptor of each."""

    # -- which there are ---------------------------------------------------------------------------

    def read_directory(self, directory: Path, end_seq: Seq) -> None:
        """Add all segments of *directory*; the last one ends before *end_seq*. Raises OSError."""
        paths = list_segments(directory)
        ends = itertools.chain(map(first_seq_of, paths[1:]), [end_seq])
        for path, end in zip(paths, ends, strict=False):
            self.add(path, path.stat().st_size, end)
        for first_seq in list(self._lacking_index):
            if has_current_index(segment_path(directory, first_seq)):
                del self._lacking_index[first_seq]

    def add(self, path: Path, size: int, end_seq: Seq) -> None:
        """Add the segment *path*, which follows those that are here: it is *size* bytes long and
        ends before *end_seq*."""
        first_seq = first_seq_of(path)
        self._directory = path.parent
        self._first_seqs.append(first_seq)
        self._sizes.append(size)
        self._forms.append(_COMPRESSED if path.suffix == COMPRESSED_SUFFIX else _PLAIN)
        self._end_seq = end_seq
        self._lacking_index[first_seq] = None

    def remove_last(self) -> None:
        """Remove the last one from the list, because it is written on."""
        self._end_seq = Seq(self._first_seqs.pop())
        self._sizes.pop()
        self._forms.pop()
        self._lacking_index.pop(self._end_seq, None)

    def remove_first(self, seq: Seq) -> None:
        """Remove those with entries up to *seq* alone from the list, because they are gone."""
        count = bisect_right(self._first_seqs, seq)
        for first_seq in self._first_seqs[:count]:
            self._lacking_index.pop(Seq(first_seq), None)
        del self._first_seqs[:count], self._sizes[:count], self._forms[:count]

    def mend(self, durable_seq: Seq) -> None:
        """Finish what a process or machine that stopped had begun: every segment but the last gets
        its exact size, the plain file of a compressed one goes, and so does what is half made. What
        is not known to be on disk, beyond *durable_seq*, is unflushed again, because it may be in
        the page cache alone. Raises JournalDamagedError, OSError."""
        if len(self):
            _remove_half_made(self._directory)
        for number in range(len(self)):
            _remove_leftover(self._segment(number))
        for number in range(len(self) - 1):
            segment = self._segment(number)
            self._sizes[number] = _cut_to_size(segment)
            if not segment.is_compressed and segment.end_seq - 1 > durable_seq:
                fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
                self.unflushed.append((segment.path, fd))

    def _segment(self, number: int) -> SealedSegment:
        first_seqs = self._first_seqs
        is_last = number + 1 == len(first_seqs)
        return SealedSegment(
            self._path(number),
            self._sizes[number],
            self._end_seq if is_last else Seq(first_seqs[number + 1]),
            self._forms[number] == _COMPRESSED,
        )

    def _path(self, number: int) -> Path:
        is_compressed = self._forms[number] == _COMPRESSED
        return segment_path(self._directory, Seq(self._first_seqs[number]), is_compressed)

    def __len__(self) -> int:
        return len(self._first_seqs)

    @property
    def total_bytes(self) -> int:
        """The bytes that they occupy."""
        return sum(self._sizes)

    def bytes_from(self, seq: Seq) -> int:
        """Estimates how much of what they occupy is entries from *seq* on."""
        number = bisect_right(self._first_seqs, seq) - 1
        total = sum(self._sizes[number + 1 :])
        if number >= 0:
            segment = self._segment(number)
            total += share_from(seq, Seq(self._first_seqs[number]), segment.end_seq, segment.size)
        return total

    # -- what is left to do ------------------------------------------------------------------------

    def durable(self) -> list[Path]:
        """The segments on disk, which can have an index and be compressed."""
        busy = self._busy()
        return [
            self._path(number)
            for number, first_seq in enumerate(self._first_seqs)
            if first_seq not in busy
        ]

    def _busy(self) -> set[Seq]:
        """The first seqs of those that may not be on disk."""
        return {first_seq_of(path) for path, _ in list(self.unflushed)}  # a flush may run beside us

    def without_index(self) -> list[Path]:
        """The segments on disk that have no sidecar index yet, or one of an earlier version."""
        found, busy = [], self._busy() if self._lacking_index else set()
        for first_seq in list(self._lacking_index):
            if first_seq not in busy:
                path = self._path(self._number(first_seq))
                if has_current_index(path):
                    del self._lacking_index[first_seq]
                else:
                    found.append(path)
        return found

    def compressible(self, to_seq: Seq = END) -> list[Path]:
        """The segments on disk with entries before *to_seq* alone that are not compressed yet; a
        thousand at the most."""
        found: list[Path] = []
        busy, number = self._busy(), self._forms.find(_PLAIN)
        while number >= 0 and len(found) < _AT_ONCE_MAX:
            if self._segment(number).end_seq > to_seq:
                break  # and so do all that follow
            if self._first_seqs[number] not in busy:
                found.append(self._path(number))
            number = self._forms.find(_PLAIN, number + 1)
        return found

    def _number(self, first_seq: Seq) -> int:
        return bisect_left(self._first_seqs, first_seq)

    def compress(self, path: Path) -> None:
        """Compress the segment *path* in place. Blocks: call it in a thread. Raises OSError,
        FormatError."""
        compressed = path.with_suffix(COMPRESSED_SUFFIX)
        compress_file(path, compressed, self._compress_level)
        number = self._number(first_seq_of(path))
        self._sizes[number] = compressed.stat().st_size
        self._forms[number] = _COMPRESSED


def share_from(seq: Seq, first_seq: Seq, end_seq: Seq, size: int) -> int:
    """Estimates how many of the *size* bytes of a segment with the entries from *first_seq* up to
    *end_seq*, exclusive, are entries from *seq* on."""
    share = (end_seq - seq) / max(1, end_seq - first_seq)
    return int(size * min(1.0, max(0.0, share)))


def _remove_half_made(directory: Path) -> None:
    """Remove compressed segments and indexes that a writer who was killed had begun, also of
    segments that are not there any more. Raises OSError."""
    for name in os.listdir(directory):
        if _HALF_MADE.fullmatch(name):
            with suppress(FileNotFoundError):
                calls.unlink("journal.half_made.unlink", directory / name)


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


def _cut_to_size(segment: SealedSegment) -> int:
    """Give a segment that another follows its exact size: its writer died, or its machine, before
    that was done. Returns the size. Raises JournalDamagedError, OSError."""
    if segment.is_compressed or segment.size % SPACE_BYTES:
        return segment.size
    try:
        with SegmentReader(segment.path) as reader:
            end = reader.check().offset
    except BadFrameError as bad:
        raise JournalDamagedError(segment.path, bad.offset, bad.seq, bad.reason) from None
    if end >= segment.size:
        return segment.size
    fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        calls.ftruncate("journal.reseal", fd, end)
        calls.fsync("journal.reseal.sync", fd)
    finally:
        os.close(fd)
    return end
