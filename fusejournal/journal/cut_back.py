"""Cuts a journal back to an earlier entry: what comes after it is gone from there. Only for a
journal whose later entries are kept elsewhere (branches.py), and that no process writes.

The segment that the cut goes through is replaced by a copy of its beginning, a file of its own:
a branch that has a link to the old one keeps it as it was, whatever is appended here later. The
copy comes first, then the later segments go, the newest first; killed at any point, the next call
goes on, and a journal that is cut already is left alone. Blocks."""

from contextlib import suppress
from pathlib import Path

from fusejournal.disk import calls
from fusejournal.disk.files import Outlives, replacing
from fusejournal.errors import JournalError, JournalForeignError
from fusejournal.journal.format import FormatError
from fusejournal.journal.index import index_path
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    PLAIN_SUFFIX,
    BadFrameError,
    SegmentReader,
    first_seq_of,
    list_segments,
    segment_path,
)
from fusejournal.journal.segment_header import SEGMENT_HEADER_BYTES
from fusejournal.types import Position, Seq

_PIECE_BYTES = 1 << 20


def segments_from(paths: list[Path], seq: Seq) -> list[Path]:
    """Returns those of *paths*, the segments of a journal in order, that hold entry *seq* and what
    comes after it. Raises JournalError where none holds it."""
    at = max((n for n, path in enumerate(paths) if first_seq_of(path) <= seq), default=None)
    if at is None:
        raise JournalError(f"entry {seq} is not in the journal any more")
    return paths[at:]


def cut_back(directory: Path, position: Position) -> None:
    """Cut the journal in *directory* back to *position*: durable when this returns. Raises
    JournalError where it has no such entry, or another one there; JournalDamagedError, OSError."""
    last, *later = segments_from(list_segments(directory), position.seq)
    end, has_more = _end_of(last, position)
    if not later and not has_more and last.suffix == PLAIN_SUFFIX:
        return
    index_path(last).unlink(missing_ok=True)
    _copy_beginning(last, directory, end)
    if last.suffix == COMPRESSED_SUFFIX:
        calls.unlink("journal.cut_back.compressed", last)
    for path in reversed(later):
        index_path(path).unlink(missing_ok=True)
        for suffix in (COMPRESSED_SUFFIX, PLAIN_SUFFIX):
            with suppress(FileNotFoundError):
                calls.unlink("journal.cut_back.unlink", path.with_suffix(suffix))
    calls.fsync_directory("journal.cut_back.unlinked", directory)


def _end_of(path: Path, position: Position) -> tuple[int, bool]:
    """Returns where entry *position* ends in segment *path*, and whether anything follows there."""
    end, at = SEGMENT_HEADER_BYTES, None
    try:
        with SegmentReader(path) as reader:
            for frame in reader.frames():
                if frame.seq == position.seq:
                    end, at = frame.offset + len(frame.content), (frame.seq, frame.checksum)
                    break
            size = reader.size
    except BadFrameError as bad:
        raise bad.in_segment(path) from None
    if at != (position.seq, position.chain):
        raise JournalForeignError(f"{path}: has not the entry {position.seq} that it is cut after")
    return end, end < size


def _copy_beginning(path: Path, directory: Path, end: int) -> None:
    """Make the first *end* bytes of segment *path* the segment of its name, plain, in a new
    file."""
    target = segment_path(directory, first_seq_of(path))
    try:
        with (
            SegmentReader(path) as reader,
            replacing("journal.cut_back", target, Outlives.MACHINE) as copy,
        ):
            done = 0
            while done < end:
                piece = reader.read_at(done, min(_PIECE_BYTES, end - done))
                calls.write_all("journal.cut_back.write", copy, piece)
                done += len(piece)
    except (FormatError, BadFrameError) as error:
        raise JournalError(f"{path}: cannot be read: {error}") from None
