"""The segment that is written: its file, its end, and the space ahead of it.

A :class:`SegmentWriter` puts bytes at the end of one file, wholly or not at all. Space is allocated
before it is needed, with a reserve that only some kinds of entries may use, so that a full disk
refuses an entry before a byte of it is written; a closed segment keeps it, for the next start.
Where allocating is no promise (btrfs), a short append is cut off again. And where a file that is
cut off keeps the whole of its last extent (btrfs, too), space is allocated in small pieces, an
extent each, and only as far ahead as the reserve.

Where callers wait for flushes, zeros are written a piece ahead of the end. What was only allocated
counts as unwritten on the disk, and the flush of each first write to it takes a commit of the file
system's own journal, which brings along whatever else that has to commit; a flush of what was
written before takes none.

Full is JournalFullError, with nothing written, and so is a lack of descriptors or memory, which
passes as well; any other error of the disk is JournalFailedError, after which it is unknown what
the pages hold: the journal then writes no more.

Owned by the journal (journal.py) and used from its thread. Source: fallocate(2), pwritev(2)."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fusejournal.disk import calls, failpoints
from fusejournal.disk.errnos import CANNOT_GROW, NO_MEANS
from fusejournal.errors import JournalError, JournalFailedError, JournalFullError
from fusejournal.journal.segment import SPACE_BYTES, segment_path
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES
from fusejournal.operations import REMOVALS, Kind, Moving, Operation, Removal, made_by
from fusejournal.types import Fid, Seq

ALWAYS = frozenset({Kind.VOID, Kind.CLEAN, Kind.EPOCH})
"""Entries that may use all of the reserve: those that end what was begun, and the one without which
a volume does not start, so that nothing could be removed either."""
FROM_RESERVE = ALWAYS | REMOVALS
"""Entries that may use the reserve, or some of it."""

_PASSES = CANNOT_GROW | NO_MEANS
_NO_END = 1 << 62
_PIECE_BYTES_MIN = 64 << 10
_KEPT_BYTES = 128 << 10
"""Allocated at a time when a segment is closed: some of the reserve is better than none."""
_AHEAD_BYTES = 1 << 20
_AHEAD_LEFT_BYTES = 64 << 10
_ZEROS = bytes(_AHEAD_BYTES)
_PIECES = 256
"""The pieces of a segment whose space is allocated an extent at a time: about half a piece stays
unused behind each segment and each restart, and smaller ones make writing slower."""


@dataclass(frozen=True)
class JournalOptions:
    """Sizes in bytes. A segment is rolled at ``segment_bytes`` or ``segment_entries``, so that
    reading the newest, which has no index yet, stays quick. ``reserve_bytes`` are kept back beyond
    the end of the log; removals may use the half of them, other entries that make space a
    quarter."""

    segment_bytes: int = 64 << 20
    segment_entries: int = 1 << 16
    preallocate_bytes: int = 8 << 20
    reserve_bytes: int = 1 << 20
    compress: bool = True
    compress_level: int = 3


class SegmentWriter:
    """The segment *path*, open on *fd*, which ends at *end* now."""

    __slots__ = (
        *("_allocated", "_in_pieces", "_is_begun", "_named", "_options", "_size", "_written"),
        *("end", "fd", "first_seq", "path"),
    )

    def __init__(
        self, path: Path, fd: int, first_seq: Seq, end: int, options: JournalOptions
    ) -> None:
        self.path = path
        self.fd = fd
        self.first_seq = first_seq
        self.end = end
        self._named: set[Fid] = set()
        """Fids whose path this segment records."""
        self._options = options
        self._allocated = calls.allocated_to(fd, end)
        """The end of what is allocated, also by the process before this one."""
        self._in_pieces = calls.frees_whole_extents_only(fd)
        self._size = os.fstat(fd).st_size
        """The file's, which runs ahead of the end."""
        self._written = end
        """The end of the zeros ahead, or some place before the end."""
        self._is_begun = True
        """True if it has its header: until then its size says that it has not."""

    @classmethod
    def begin(
        cls, directory: Path, first_seq: Seq, header: bytes, options: JournalOptions
    ) -> "SegmentWriter":
        """A new segment with *header*, and nothing else. Raises JournalFullError and leaves
        nothing, JournalFailedError."""
        path = segment_path(directory, first_seq)
        failpoints.reached("journal.create")
        try:
            fd = calls.open_with_reserve(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            if error.errno in _PASSES:
                raise _full(directory, error) from None
            raise JournalFailedError(f"{path}: cannot be made: {error.strerror}") from error
        writer = cls(path, fd, first_seq, SEGMENT_HEADER_BYTES, options)
        writer._allocated = 0
        writer._is_begun = False
        try:
            writer._take_space(0, options.reserve_bytes)
            writer.write_header(header)
        except (JournalError, OSError) as error:
            os.close(fd)
            os.unlink(path)
            if isinstance(error, OSError):
                if error.errno not in _PASSES:
                    raise JournalFailedError(
                        f"{path}: cannot be written: {error.strerror}"
                    ) from error
                raise _full(directory, error) from None
            raise
        writer._is_begun = True
        writer._extend()
        return writer

    def write_header(self, content: bytes) -> None:
        """Write the header, or another in its place. Raises JournalFullError, OSError."""
        if calls.pwritev("journal.header", self.fd, (content,), 0) != len(content):
            raise _full(self.path.parent, _no_space())

    def write(
        self, head: bytes, data: bytes | memoryview, kind: Kind, *, makes_space: bool = False
    ) -> None:
        """Put *head* and *data*, an entry of *kind*, at the end; one that *makes_space* may use a
        quarter of the reserve, a removal the next quarter, too, which so is left to removals.
        Raises JournalFullError, with nothing written; JournalFailedError."""
        need = len(head) + len(data)
        reserve = self._options.reserve_bytes
        if self.end + need + reserve > self._allocated:
            self._take_space(need, _kept_of(reserve, kind, makes_space))
        try:
            written = calls.pwritev(
                "journal.append", self.fd, (head, data) if data else (head,), self.end
            )
        except OSError as error:
            self._refuse(error)
        else:
            if written != need:
                # Only a full disk writes less; the rest may tell, but what is there must go in any
                # case.
                self._refuse(_no_space())
        self.end += need

    @property
    def is_short(self) -> bool:
        """True while the space ahead is less than the reserve, because no more was to be had."""
        return self.end + self._options.reserve_bytes > self._allocated

    def _refuse(self, error: OSError) -> None:
        """Take back what a failed append may have written, and record that."""
        if error.errno not in _PASSES:
            raise JournalFailedError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            calls.ftruncate("journal.truncate", self.fd, self.end)
        except OSError as second:
            raise JournalFailedError(
                f"{self.path}: a short entry could not be cut off: {second.strerror}"
            ) from second
        self._allocated = self._size = self._written = self.end  # what was ahead went with it
        raise _full(self.path.parent, error) from None

    def _take_space(self, need: int, kept: int) -> None:
        """Have blocks allocated for *need* bytes and the reserve beyond them, or at least for
        *kept* bytes of it."""
        target = self.end + need + self._options.reserve_bytes
        if not self._in_pieces:
            target += self._options.preallocate_bytes
        try:
            while self._allocated < target:
                self._allocate(target)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._allocated = _NO_END  # no promises to be had here; a short append is cut off
                return
            if error.errno not in _PASSES:
                raise JournalFailedError(
                    f"{self.path}: cannot be extended: {error.strerror}"
                ) from error
            if self.end + need + kept > self._allocated:
                raise _full(self.path.parent, error) from None
        else:
            if self._is_begun:
                self._extend()

    def _allocate(self, target: int) -> None:
        """Have blocks allocated up to *target*, or for one piece on the way. Raises OSError."""
        if self._in_pieces:
            piece_bytes = max(_PIECE_BYTES_MIN, self._options.segment_bytes // _PIECES)
            target = (self._allocated // piece_bytes + 1) * piece_bytes
        calls.fallocate("journal.fallocate", self.fd, self._allocated, target - self._allocated)
        self._allocated = target

    def _extend(self) -> None:
        """Let the file's size run ahead of its end: a flush then has no new size to make durable,
        which costs a file system a commit of its own."""
        size = min(self._allocated, self._options.segment_bytes) // SPACE_BYTES * SPACE_BYTES
        if size > self.end and self._allocated != _NO_END:
            # A matter of speed only.
            with suppress(OSError):
                calls.ftruncate("journal.extend", self.fd, size)
                self._size = size

    def write_ahead(self) -> None:
        """Have the space ahead of the end written, if little of it is: the next flushes are quicker
        for it. (The entries overwrite it: the loop's thread alone writes here.)"""
        begin = max(self.end, self._written)
        if begin - self.end > _AHEAD_LEFT_BYTES or self._in_pieces:
            return  # where files are not written in place it would be for nothing
        until = min(begin + _AHEAD_BYTES, self._size, self._allocated)
        if until > begin and self._allocated != _NO_END:
            # A matter of speed only.
            with suppress(OSError):
                zeros = memoryview(_ZEROS)[: until - begin]
                self._written = begin + calls.pwritev("journal.ahead", self.fd, (zeros,), begin)

    # -- paths -------------------------------------------------------------------------------------

    def paths_to_record(
        self, operation: Operation, path_of: Callable[[Fid], bytes | None]
    ) -> dict[Fid, bytes] | None:
        """The paths of the files that *operation* touches, but for those that this segment records
        already. *path_of* tells a fid's path as it is now."""
        paths: dict[Fid, bytes] | None = None
        for fid in operation.touched_fids:
            if fid not in self._named:
                path = path_of(fid)
                if path is not None:
                    paths = paths or {}
                    paths[fid] = path
        return paths

    def note_named(self, operation: Operation, paths: dict[Fid, bytes] | None) -> None:
        """Note what the entry of *operation*, which was written with *paths*, tells."""
        named = self._named
        if paths:
            named.update(paths)
        if isinstance(operation, Removal):
            # It may have further names, of which this segment does not know.
            named.discard(operation.fid)
        elif isinstance(operation, Moving):
            named.discard(operation.replaced)
        if (making := made_by(operation)) is not None:
            named.add(making.fid)

    # -- the end -----------------------------------------------------------------------------------

    def seal(self) -> None:
        """Give back what was allocated beyond the end, because another segment follows. Raises
        JournalFailedError."""
        try:
            calls.ftruncate("journal.seal", self.fd, self.end)
        except OSError as error:
            raise JournalFailedError(f"{self.path}: cannot be sealed: {error.strerror}") from error

    def close(self) -> None:
        """Give back what was allocated but for the reserve, which a start on a full disk needs, and
        close the file in any case. Raises OSError."""
        goal = self.end + self._options.reserve_bytes
        try:
            if os.fstat(self.fd).st_size == self.end and self._allocated <= goal:
                return  # what is given back on a full disk may not be had again
            calls.ftruncate("journal.close", self.fd, self.end)
            self._allocated = self.end
            with suppress(OSError):
                while self._allocated < goal:
                    self._allocate(min(goal, self._allocated + _KEPT_BYTES))
        finally:
            os.close(self.fd)


def _kept_of(reserve_bytes: int, kind: Kind, makes_space: bool) -> int:
    """Returns how many bytes of the reserve must be there after an entry of *kind*."""
    if kind in ALWAYS:
        return 0
    if kind in REMOVALS:
        return reserve_bytes // 2
    return reserve_bytes * 3 // 4 if makes_space else reserve_bytes


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full(directory: Path, error: OSError) -> JournalFullError:
    if error.errno in NO_MEANS:
        return JournalFullError(f"{directory}: the journal got {error.strerror}", error.errno)
    return JournalFullError(f"{directory}: no space left for the journal")
