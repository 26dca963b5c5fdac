"""Finds what the kernel may remember wrongly after a layer died: names and attributes that a
request changed whose answer was lost. The kernel keeps both for long, because it is notified of
every change.

Such requests are among the last entries of the journal: those that could wait at once, and what
was appended while they waited for a flush."""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyfuse3

from fusejournal.disk import syscalls
from fusejournal.journal.handle_key import HandleKey
from fusejournal.journal.reader import JournalReader
from fusejournal.layer.connection import KernelConnection
from fusejournal.layer.replies import WAITING_MAX
from fusejournal.operations import (
    Create,
    Import,
    ImportLink,
    Link,
    Mkdir,
    Moving,
    Operation,
    Rmdir,
    Symlink,
    Unlink,
)
from fusejournal.types import Fid, Seq

_ENTRIES_MAX = 1 << 16
_ENTRIES = 4 * WAITING_MAX
"""The number of entries to look through. A request makes up to three, and VOIDs lie between."""

_NAMING = Create | Mkdir | Symlink | Link | Unlink | Rmdir | Moving | Import | ImportLink


class Stale(NamedTuple):
    """Names, each with its directory, and fids that the kernel may remember wrongly."""

    names: set[tuple[Fid, bytes]]
    fids: set[Fid]


def find_unanswered(journal: JournalReader, durable_seq: Seq, end: Seq) -> Stale:
    """Collects what the last entries of *journal* before *end* named and changed: at least those
    above *durable_seq*, because an answer may have waited for them to be durable. Raises
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
    if isinstance(operation, Moving):
        stale.names.add((operation.new_parent, operation.new_name))
    stale.fids.update(changed_fids(operation))


def changed_fids(operation: Operation) -> tuple[Fid, ...]:
    """The files and directories whose attributes *operation* has changed, the new one not."""
    if isinstance(operation, Moving) and operation.replaced:
        return *operation.touched_fids, operation.replaced
    return operation.touched_fids


def invalidate(
    stale: Stale, connection: KernelConnection, mountpoint: Path, handle_key: HandleKey
) -> list[tuple[Fid, bytes, Fid]]:
    """Make the kernel forget *stale*, or ask for it anew. Blocks until no request on the
    directories concerned is in progress: call it in a thread, while requests are served.

    To have a name forgotten takes away what is mounted there or below, and a process that works in
    such a directory is nowhere. Where the kernel cannot be made to ask anew instead, names are left
    as they are and returned, each with the fid that the kernel knows under it (0: none): the caller
    passes those of them to :func:`forget` that are wrong."""
    known = []
    for parent, name in stale.names:
        with suppress(OSError):  # it does not know it
            if connection.can_expire:
                connection.expire(parent, name)
            else:
                known.append((parent, name, _known(mountpoint, parent, name, handle_key)))
    for fid in stale.fids:
        with suppress(OSError):
            pyfuse3.invalidate_inode(fid)
    return known


def _known(mountpoint: Path, parent: Fid, name: bytes, handle_key: HandleKey) -> Fid:
    """Asks the kernel what it takes *name* for. Raises OSError for what does not need to be known:
    no such directory, or a mountpoint, which can be neither removed nor renamed."""
    root_fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directory = -1
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        handle = syscalls.fuse_handle(parent, handle_key.generation(parent))
        directory = syscalls.open_by_handle(root_fd, handle, flags)
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if found.st_dev != os.fstat(root_fd).st_dev:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return Fid(found.st_ino)
    except FileNotFoundError:
        if directory < 0:
            raise
        return Fid(0)
    finally:
        os.close(root_fd)
        if directory >= 0:
            os.close(directory)


def forget(names: Iterable[tuple[Fid, bytes]]) -> None:
    """Take *names* from the kernel. Blocks as :func:`drop` does."""
    for parent, name in names:
        with suppress(OSError):
            pyfuse3.invalidate_entry(parent, name)
