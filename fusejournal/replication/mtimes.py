"""The mtime that a directory had at a point of the journal, by the table in operations.py."""

from pathlib import Path

from fusejournal.journal.reader import JournalReader
from fusejournal.journal.settled import settled
from fusejournal.operations import (
    Create,
    Import,
    Link,
    Mkdir,
    Rename,
    Rmdir,
    Setattr,
    Symlink,
    Unlink,
)
from fusejournal.types import Fid, Seq


def directory_mtime_before(journal: Path, directory: Fid, seq: Seq) -> int | None:
    """The mtime of *directory* before entry *seq* of the segments in *journal*; None where no entry
    tells it. Blocks, and reads the whole journal up to there: for what happens once after a kill.
    Raises JournalDamagedError."""
    mtime_ns: int | None = None
    for entry, void in settled(JournalReader(journal).read(Seq(1), seq)):
        if void is not None:
            continue
        operation = entry.operation
        if isinstance(operation, Mkdir | Import) and operation.fid == directory:
            mtime_ns = operation.mtime_ns if isinstance(operation, Import) else entry.time_ns
        elif isinstance(operation, Setattr):
            if operation.fid == directory and operation.mtime_ns is not None:
                mtime_ns = operation.mtime_ns
        elif isinstance(operation, Rename):
            if directory in (operation.parent, operation.new_parent):
                mtime_ns = entry.time_ns
        elif (
            isinstance(operation, Create | Mkdir | Symlink | Link | Unlink | Rmdir)
            and operation.parent == directory
        ):
            mtime_ns = entry.time_ns
    return mtime_ns
