"""What the kernel may remember wrongly after a layer died: names and attributes that a request
changed whose answer was lost. The kernel keeps both for long, for it is told of every change.

Such requests are among the last entries of the journal: those that could wait at once, and what
was appended while they waited for a flush."""

from collections.abc import Iterable
from contextlib import suppress

import pyfuse3

from fusejournal.journal.format import Entry
from fusejournal.journal.reader import JournalReader
from fusejournal.layer.loop import TASKS
from fusejournal.operations import (
    Create,
    Link,
    Mkdir,
    Rename,
    Rmdir,
    Setattr,
    Setxattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
)
from fusejournal.types import Fid, Seq

_ENTRIES_MAX = 1 << 16
_ENTRIES = 4 * TASKS
"""How many entries back to look. A request makes up to three, and VOIDs lie between."""


def drop_last(journal: JournalReader, durable_seq: Seq, end: Seq) -> None:
    """Make the kernel forget what the last entries of *journal* before *end* named and changed: at
    least those above *durable_seq*, for an answer may have waited for them to be durable.
    Blocks until no request on the directories concerned is in progress: call it in a thread, while
    requests are served. Raises JournalDamagedError."""
    first = max(1, min(end - _ENTRIES, durable_seq + 1), end - _ENTRIES_MAX)
    _drop(journal.read(Seq(first), end))


def _drop(entries: Iterable[Entry]) -> None:
    names: set[tuple[Fid, bytes]] = set()
    fids: set[Fid] = set()
    for entry in entries:
        operation = entry.operation
        if isinstance(operation, Create | Mkdir | Symlink | Link | Unlink | Rmdir | Rename):
            names.add((operation.parent, operation.name))
        if isinstance(operation, Rename):
            names.add((operation.new_parent, operation.new_name))
            fids.add(operation.replaced)
        if isinstance(operation, Link | Unlink | Setattr | Setxattr | Truncate | Write):
            fids.add(operation.fid)
    for parent, name in names:
        with suppress(OSError):  # it does not know it
            pyfuse3.invalidate_entry(parent, name)
    for fid in fids | {parent for parent, _ in names}:
        with suppress(OSError):
            pyfuse3.invalidate_inode(fid)
