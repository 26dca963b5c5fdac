"""Removes the segments of a journal that its base stands for (base.py). Only once that is written
down, durably; for the process that holds the journal, while nothing else is done to those segments.
Blocks.

The oldest goes first, each with its index. Killed at any point, or after a system crash,
which may leave any of them, the next call goes on: what is left up to the base is passed over by
all readers meanwhile."""

from contextlib import suppress
from pathlib import Path

from fusejournal.disk import calls
from fusejournal.journal.index import index_path
from fusejournal.journal.segment import (
    COMPRESSED_SUFFIX,
    PLAIN_SUFFIX,
    first_seq_of,
    list_segments,
)
from fusejournal.types import Seq


def drop_segments(directory: Path, base_seq: Seq) -> int:
    """Remove the segments in *directory* with entries up to *base_seq* alone, after which another
    begins; durable when this returns. Returns how many there were. Raises OSError."""
    going = [path for path in list_segments(directory) if first_seq_of(path) <= base_seq]
    for path in going:
        for one in (
            index_path(path),
            path.with_suffix(PLAIN_SUFFIX),
            path.with_suffix(COMPRESSED_SUFFIX),
        ):
            with suppress(FileNotFoundError):
                calls.unlink("journal.drop.unlink", one)
    if going:
        calls.fsync_directory("journal.drop.directory", directory)
    return len(going)
