"""The window of a journal that a policy keeps: how much of its beginning is beyond it."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fusejournal.journal.reader import JournalReader
from fusejournal.journal.segment import COMPRESSED_SUFFIX, first_seq_of
from fusejournal.types import Seq


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
