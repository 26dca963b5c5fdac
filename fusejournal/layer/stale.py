"""What the kernel may remember wrongly after a layer died: names and attributes that a request
changed whose answer was lost. The kernel keeps both for long, for it is told of every change.

Such requests are among the last entries of the journal: those that could wait at once, and what
was appended while they waited for a flush."""

from contextlib import suppress
from typing import NamedTuple

import pyfuse3

from fusejournal.journal.reader import JournalReader
from fusejournal.layer.loop import TASKS
from fusejournal.operations import (
    TOUCHED,
    Create,
    Import,
    ImportLink,
    Kind,
    Link,
    Mkdir,
    Operation,
    Rename,
    Rmdir,
    Symlink,
    Unlink,
)
from fusejournal.types import Fid, Seq

_ENTRIES_MAX = 1 << 16
_ENTRIES = 4 * TASKS
"""How many entries back to look. A request makes up to three, and VOIDs lie between."""

_CHANGED = {**TOUCHED, Kind.RENAME: (0, 1, 3, 6)}
"""Which fields of an operation are fids whose attributes it changes: those it touches, and the file
that a rename replaces."""

_NAMING = Create | Mkdir | Symlink | Link | Unlink | Rmdir | Rename | Import | ImportLink


class Stale(NamedTuple):
    """Names, each with its directory, and fids that the kernel may remember wrongly."""

    names: set[tuple[Fid, bytes]]
    fids: set[Fid]


def collect(journal: JournalReader, durable_seq: Seq, end: Seq) -> Stale:
    """What the last entries of *journal* before *end* named and changed: at least those above
    *durable_seq*, for an answer may have waited for them to be durable. Raises
    JournalDamagedError."""
    stale = Stale(set(), set())
    first = max(1, min(end - _ENTRIES, durable_seq + 1), end - _ENTRIES_MAX)
    for entry in journal.read(Seq(first), end):
        add_changed(stale, entry.operation)
    return stale


def add_changed(stale: Stale, operation: Operation) -> None:
    """Add to *stale* what *operation* has changed."""
    if isinstance(operation, _NAMING):
        stale.names.add((operation.parent, operation.name))
    if isinstance(operation, Rename):
        stale.names.add((operation.new_parent, operation.new_name))
    stale.fids.update(changed_fids(operation))


def changed_fids(operation: Operation) -> list[Fid]:
    """The files and directories whose attributes *operation* has changed, the new one not."""
    return [operation[index] for index in _CHANGED[operation.kind]]  # type: ignore[misc]


def drop(stale: Stale) -> None:
    """Make the kernel forget *stale*. Blocks until no request on the directories concerned is in
    progress: call it in a thread, while requests are served."""
    for parent, name in stale.names:
        with suppress(OSError):  # it does not know it
            pyfuse3.invalidate_entry(parent, name)
    for fid in stale.fids:
        with suppress(OSError):
            pyfuse3.invalidate_inode(fid)
