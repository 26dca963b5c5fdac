"""Segment files: their names, and reading one, plain or compressed, frame by frame.

A segment's name is its first seq in 20 digits, ``.fj`` plain or ``.fjz`` compressed (seekable.py).
Where both are there the compressed one counts, if it is complete: it was compared before it got
its name, and the plain one was to be removed, or is an old part of it in a copy."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusejournal.errors import JournalDamagedError, JournalVersionError
from fusejournal.journal.format import (
    FRAME_HEADER_BYTES,
    FormatError,
    Frame,
    NewerFormatError,
    decode_entry,
    frame_bytes_at,
    read_frame,
    skim_frames,
)
from fusejournal.journal.seekable import SeekableFile
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from fusejournal.types import Seq

PLAIN_SUFFIX = ".fj"
COMPRESSED_SUFFIX = ".fjz"

_NAME = re.compile(r"(\d{20})\.fjz?")
_LISTED_BYTES = 16 << 10
_DIRENT_BYTES = 28
_WINDOW_BYTES = 256 << 10  # stays in the CPU's cache from the read to the hash
_WINDOW_BYTES_FIRST = 64 << 10
_PAGE_BYTES = 4096
SPACE_BYTES = 4096
"""A segment that has space ahead of its end is a multiple of this; one that was closed or sealed
has its exact size, and zeros at its end are damage."""


class BadFrameError(Exception):
    """The place where a segment stops being readable. ``torn``: it just ends in the middle of a
    frame, or in the space ahead of its end, which was zeros. ``is_newer``: all is whole, and a
    later version of this program can read it."""

    def __init__(
        self, offset: int, seq: Seq, reason: str, torn: bool, is_newer: bool = False
    ) -> None:
        super().__init__(reason)
        self.offset = offset
        self.seq = seq
        self.reason = reason
        self.torn = torn
        self.is_newer = is_newer

    def __reduce__(self) -> tuple[type["BadFrameError"], tuple[int, Seq, str, bool, bool]]:
        """Goes from one process to another with all its fields."""
        return BadFrameError, (self.offset, self.seq, self.reason, self.torn, self.is_newer)

    @classmethod
    def undecodable(cls, offset: int, seq: Seq, error: FormatError) -> "BadFrameError":
        """The error for content at *offset* that was checked, and is no entry (or header) because
        of *error*."""
        return cls(offset, seq, str(error), False, isinstance(error, NewerFormatError))

    def in_segment(self, path: Path | str) -> JournalDamagedError:
        """The error that users see of it, in segment *path*."""
        error = JournalVersionError if self.is_newer else JournalDamagedError
        return error(path, self.offset, self.seq, self.reason)


class Point(NamedTuple):
    """A place in a segment where reading can begin: before entry *seq*, whose frame is at
    *offset* and follows *chain_before*."""

    seq: Seq
    offset: int
    chain_before: int


def segment_path(directory: Path, first_seq: Seq, compressed: bool = False) -> Path:
    """The file of the segment that begins with *first_seq*."""
    return directory / f"{first_seq:020d}{COMPRESSED_SUFFIX if compressed else PLAIN_SUFFIX}"


def list_segments(directory: Path, made: dict[str, Path] | None = None) -> list[Path]:
    """The segments in *directory* by first seq, one file of each. They may be being compressed
    meanwhile. *made*: paths by name, of the calls before, because to make many takes its time."""
    paths = {} if made is None else made
    names = _names_in(directory)
    if sum(_DIRENT_BYTES + len(name) for name in names) > _LISTED_BYTES:
        # It took several system calls, between which a segment can have gone from where they had
        # not been yet to where they had: once more finds it.
        names |= _names_in(directory)
    found: dict[str, Path] = {}
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        path = paths.get(name)
        if path is None:
            path = paths[name] = directory / name
        if match[1] not in found or _is_complete(path):  # ".fj" sorts before ".fjz"
            found[match[1]] = path
    if len(paths) > 2 * len(names):  # of segments that are gone
        paths.clear()
    return list(found.values())


def _names_in(directory: Path) -> set[str]:
    return set(os.listdir(directory)) if directory.is_dir() else set()


def _is_complete(compressed: Path) -> bool:
    """Returns True if a compressed segment has its seek table, which is written last."""
    try:
        with open(compressed, "rb", buffering=0) as file:
            SeekableFile(file.fileno())
    except (OSError, FormatError):
        return False
    return True


def is_segment(path: Path) -> bool:
    """Returns True if *path* is called as a segment is."""
    return _NAME.fullmatch(path.name) is not None


def without_unbegun(paths: list[Path]) -> list[Path]:
    """*paths*, segments in order, but for a newest one that has not even its header: it is being
    made, or could not be, or its maker died."""
    return paths[:-1] if paths and _is_unbegun(paths[-1]) else paths


def _is_unbegun(path: Path) -> bool:
    try:
        return path.suffix == PLAIN_SUFFIX and path.stat().st_size < SEGMENT_HEADER_BYTES
    except FileNotFoundError:
        # On a full disk its maker has taken it away again; else it was compressed.
        return not path.with_suffix(COMPRESSED_SUFFIX).exists()


def first_seq_of(path: Path) -> Seq:
    """The first seq that a segment's name gives."""
    return Seq(int(path.stem))


class SegmentReader:
    """Reads one segment. Use as a context manager, or close it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and BadFrameError when the header cannot be used."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            compressed = path.with_suffix(COMPRESSED_SUFFIX)
            if not compressed.exists():
                raise
            path = compressed  # since its name was read
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = path
        self._last_judged: tuple[int, bytes] | None = None
        """The place where a bad frame was found last, and its bytes."""
        try:
            self._compressed = SeekableFile(self._fd) if path.suffix == COMPRESSED_SUFFIX else None
            self.header = SegmentHeader.decode(self.read_at(0, SEGMENT_HEADER_BYTES))
        except FormatError as error:
            os.close(self._fd)
            raise BadFrameError.undecodable(0, first_seq_of(path), error) from None
        if self.header.first_seq != first_seq_of(path):
            os.close(self._fd)
            raise BadFrameError(
                0,
                first_seq_of(path),
                f"the header says that it begins with {self.header.first_seq}",
                torn=False,
            )

    def __enter__(self) -> "SegmentReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @property
    def size(self) -> int:
        """The segment's size in bytes, uncompressed, as it is now."""
        return self._compressed.size if self._compressed is not None else os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Returns up to *length* bytes of the uncompressed segment at *offset*. Raises FormatError
        when they cannot be uncompressed."""
        if self._compressed is not None:
            return self._compressed.read_at(offset, length)
        return os.pread(self._fd, length, offset)

    @property
    def start(self) -> Point:
        """The point of the first entry."""
        return Point(self.header.first_seq, SEGMENT_HEADER_BYTES, self.header.chain_before)

    def frames(self, start: Point | None = None) -> Iterator[Frame]:
        """The frames from *start* (the first) on, each checked and chained to the one before.
        Raises BadFrameError where that ends before the file does, or what is left of it is blank
        (a segment that is written has space ahead of its end)."""
        seq, offset, chain = start or self.start
        # Little at first where a point is asked for: it may be for a single entry.
        asked = _WINDOW_BYTES if start is None else _WINDOW_BYTES_FIRST
        window, at = b"", 0
        view = memoryview(window)
        while True:
            try:
                frame = read_frame(window, view, at, seq, chain, offset)
                if frame is None:
                    window = self.read_at(offset, asked)
                    if not window:
                        return
                    view, at = memoryview(window), 0
                    need = FRAME_HEADER_BYTES
                    if len(window) >= need:
                        need = frame_bytes_at(window, 0)
                    if need > len(window):
                        if len(window) < asked:
                            raise FormatError(f"{len(window)} of {need} bytes of a frame")
                        asked = need
                        continue
                    asked = _WINDOW_BYTES
                    continue
            except FormatError as error:
                if self._is_end(offset):
                    return
                if self._compressed is not None or self._is_unchanged(offset):
                    torn = self._is_unfinished(offset)
                    raise BadFrameError(offset, seq, str(error), torn) from None
                window, at = b"", 0  # once more, from the file as it is now
                view = memoryview(window)
                continue
            yield frame
            length = len(frame.content)
            offset += length
            at += length
            seq = Seq(seq + 1)
            chain = frame.checksum

    def _is_end(self, offset: int) -> bool:
        """Returns True if the entries end at *offset*, before space that was left ahead; or did a
        moment ago, if zeros there have become something else."""
        if self._compressed is not None or self.size % SPACE_BYTES:
            return False
        head = os.pread(self._fd, FRAME_HEADER_BYTES, offset)
        if any(head):
            return False
        return self._is_blank(offset) or any(os.pread(self._fd, FRAME_HEADER_BYTES, offset))

    def _is_unchanged(self, offset: int) -> bool:
        """Returns True if what is at *offset* was there when this was asked last: else it may have
        been read while it was being written."""
        content = self.read_at(offset, self._stated_bytes(offset))
        is_judged = self._last_judged == (offset, content)
        self._last_judged = offset, content
        return is_judged

    def _stated_bytes(self, offset: int) -> int:
        """Returns the length that the frame at *offset*, which may be of any bytes, says it has."""
        head = self.read_at(offset, FRAME_HEADER_BYTES)
        if len(head) < FRAME_HEADER_BYTES:
            return FRAME_HEADER_BYTES
        try:
            return frame_bytes_at(head, 0)
        except FormatError:
            return FRAME_HEADER_BYTES

    def _is_unfinished(self, offset: int) -> bool:
        """Returns True if the bad frame at *offset* was begun and not finished. (Not so where zeros
        have something behind them: a process fills pages in order.)"""
        if self._compressed is not None:
            return False
        if not any(os.pread(self._fd, FRAME_HEADER_BYTES, offset)):
            return self._is_blank(offset)
        end = offset + self._stated_bytes(offset)
        return end > self.size or (self.size % SPACE_BYTES == 0 and self._is_blank(end - 1))

    def _is_blank(self, offset: int) -> bool:
        """Returns True if there are only zeros from *offset* on."""
        length = _PAGE_BYTES - offset % _PAGE_BYTES
        while piece := os.pread(self._fd, length, offset):
            if piece.count(0) != len(piece):
                return False
            length = _WINDOW_BYTES
            try:
                # What was never written need not be read.
                offset = os.lseek(self._fd, offset + len(piece), os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return True
        return True

    def check(self, *, deep: bool = False) -> Point:
        """Check all frames, more quickly than by :meth:`frames`, or, *deep*, decode each, too;
        returns where they end. Raises BadFrameError."""
        point = self.start
        if deep:
            for frame in self.frames():
                try:
                    decode_entry(frame)
                except FormatError as error:
                    raise BadFrameError.undecodable(frame.offset, frame.seq, error) from None
                point = _after(frame)
            return point
        while True:
            point = self._skim(point)
            frame_there = next(self.frames(point), None)  # a large one, a bad one, or none
            if frame_there is None:
                return point
            point = _after(frame_there)

    def _skim(self, point: Point) -> Point:
        """Returns the place where the frames from *point* on, read quickly, are not good or not
        whole any more."""
        seq, offset, chain = point
        while True:
            try:
                buffer = self.read_at(offset, _WINDOW_BYTES)
            except FormatError as error:
                raise BadFrameError(offset, seq, str(error), torn=False) from None
            at, seq, chain = skim_frames(buffer, memoryview(buffer), seq, chain)
            offset += at
            if at == 0:
                return Point(seq, offset, chain)


def _after(frame: Frame) -> Point:
    return Point(Seq(frame.seq + 1), frame.offset + len(frame.content), frame.checksum)
