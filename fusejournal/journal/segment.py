"""Segment files: their names, and reading one, plain or compressed, frame by frame.

A segment's name is its first seq in 20 digits, ``.fj`` plain or ``.fjz`` compressed (seekable.py).
Where both are there the plain one counts: the compression was interrupted."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusejournal.journal.format import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    FormatError,
    FrameHeader,
    SegmentHeader,
    check_frame,
    decode_frame_header,
)
from fusejournal.journal.seekable import SeekableFile
from fusejournal.types import Seq

PLAIN_SUFFIX = ".fj"
COMPRESSED_SUFFIX = ".fjz"

_NAME = re.compile(r"(\d{20})\.fjz?")
_WINDOW_BYTES = 4 << 20


class BadFrameError(Exception):
    """Where a segment stops being readable. ``torn``: it just ends in the middle of a frame."""

    def __init__(self, offset: int, seq: Seq, reason: str, torn: bool) -> None:
        super().__init__(reason)
        self.offset = offset
        self.seq = seq
        self.reason = reason
        self.torn = torn


class Frame(NamedTuple):
    """A checked frame and where it lies."""

    header: FrameHeader
    content: memoryview
    offset: int


def segment_path(directory: Path, first_seq: Seq, compressed: bool = False) -> Path:
    """The file of the segment that begins with *first_seq*."""
    return directory / f"{first_seq:020d}{COMPRESSED_SUFFIX if compressed else PLAIN_SUFFIX}"


def list_segments(directory: Path) -> list[Path]:
    """The segments in *directory* by first seq, the plain file where there are two."""
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(match[1], path)  # ".fj" sorts before ".fjz"
    return [found[key] for key in sorted(found)]


def first_seq_of(path: Path) -> Seq:
    """The first seq that a segment's name tells."""
    return Seq(int(path.stem))


class SegmentReader:
    """Reads one segment. Use as a context manager, or close it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, and BadFrameError when the header cannot be used."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Compressed since its name was read.
            path = path.with_suffix(COMPRESSED_SUFFIX)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = path
        try:
            self._compressed = SeekableFile(self._fd) if path.suffix == COMPRESSED_SUFFIX else None
            self.header = SegmentHeader.decode(self._read_at(0, SEGMENT_HEADER_BYTES))
        except FormatError as error:
            os.close(self._fd)
            raise BadFrameError(0, first_seq_of(path), str(error), torn=False) from None
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

    def _read_at(self, offset: int, length: int) -> bytes:
        if self._compressed is not None:
            return self._compressed.read_at(offset, length)
        return os.pread(self._fd, length, offset)

    def frames(self) -> Iterator[Frame]:
        """All frames, each checked and chained to the one before. Raises BadFrameError where that
        ends before the file does."""
        offset, seq, chain = SEGMENT_HEADER_BYTES, self.header.first_seq, self.header.chain_before
        window, window_at, asked = memoryview(b""), offset, 0
        while True:
            at = offset - window_at
            try:
                need = FRAME_HEADER_BYTES
                if len(window) - at >= need:
                    need = decode_frame_header(window, at).frame_bytes
                if len(window) - at < need:
                    asked = max(need, _WINDOW_BYTES)
                    window = memoryview(self._read_at(offset, asked))
                    window_at, at = offset, 0
                    if not window:
                        return
                    if len(window) < FRAME_HEADER_BYTES:
                        raise BadFrameError(
                            offset, seq, f"{len(window)} bytes of a frame's header", torn=True
                        )
                header = decode_frame_header(window, at)
                if len(window) - at < header.frame_bytes:
                    if at == 0 and len(window) < asked:
                        raise BadFrameError(
                            offset,
                            seq,
                            f"{len(window)} of {header.frame_bytes} bytes of a frame",
                            torn=True,
                        )
                    continue
                content = window[at : at + header.frame_bytes]
                check_frame(header, content, seq, chain)
            except FormatError as error:
                raise BadFrameError(offset, seq, str(error), torn=False) from None
            yield Frame(header, content, offset)
            offset += header.frame_bytes
            seq = Seq(seq + 1)
            chain = header.checksum
