"""What the kernel may remember wrongly after a layer died: names and attributes that a request
changed whose answer was lost. The kernel keeps both for long, for it is told of every change.

Such requests are among the last entries of the journal: those that could wait at once, and what
was appended while they waited for a flush."""

import os
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyfuse3

from fusejournal.backing import syscalls
from fusejournal.journal.reader import JournalReader
from fusejournal.layer.loop import TASKS
from fusejournal.operations import (
    Create,
    Import,
    ImportData,
    ImportLink,
    Link,
    Mkdir,
    Operation,
    Removexattr,
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


_NAMING = Create | Mkdir | Symlink | Link | Unlink | Rmdir | Rename | Import | ImportLink
_CHANGING = (
    Link
    | Unlink
    | Rename
    | Setattr
    | Setxattr
    | Removexattr
    | Truncate
    | Write
    | ImportLink
    | ImportData
)


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
        add_changed(stale, entry.operation, None)
    return stale


def add_changed(stale: Stale, operation: Operation, known: Container[Fid] | None) -> None:
    """Add to *stale* what *operation* has changed, as far as it is *known* (None: all may be)."""
    names, fids = stale
    if isinstance(operation, Write):  # first, for there are most of these
        if known is None or operation.fid in known:
            fids.add(operation.fid)
        return
    if isinstance(operation, _NAMING) and (known is None or operation.parent in known):
        names.add((operation.parent, operation.name))
        fids.add(operation.parent)
    if isinstance(operation, Rename):
        if known is None or operation.new_parent in known:
            names.add((operation.new_parent, operation.new_name))
            fids.add(operation.new_parent)
        if known is None or operation.replaced in known:
            fids.add(operation.replaced)
    if isinstance(operation, _CHANGING) and (known is None or operation.fid in known):
        fids.add(operation.fid)


def recall(mountpoint: Path, fids: set[Fid]) -> None:
    """Have leases on *fids* of the mount broken, those that the kernel's nfsd took for NFSv4
    delegations among them: whoever tries to open a file for writing breaks them, also where it is
    refused. Blocks: call it in a thread, while requests are served.

    Source: fs/fuse/inode.c, fuse_encode_fh; fs/open.c, do_dentry_open."""
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for fid in fids:
            # Gone, no file, or refused, after the lease was broken.
            with suppress(OSError):
                fd = syscalls.open_by_handle(
                    root, syscalls.fuse_handle(fid), os.O_WRONLY | os.O_NONBLOCK
                )
                os.close(fd)
    finally:
        os.close(root)


def drop(stale: Stale) -> None:
    """Make the kernel forget *stale*. Blocks until no request on the directories concerned is in
    progress: call it in a thread, while requests are served."""
    for parent, name in stale.names:
        with suppress(OSError):  # it does not know it
            pyfuse3.invalidate_entry(parent, name)
    for fid in stale.fids:
        with suppress(OSError):
            pyfuse3.invalidate_inode(fid)
