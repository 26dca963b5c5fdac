"""The tree of a target: files are found by their names, not by handles or tags, and each must have
the inode number that it was made with. Every file is opened below the target's own descriptor, no
symlink followed."""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from stat import S_IFDIR, S_IFREG
from uuid import UUID

from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import FoundEntry
from fusejournal.backing.set_flags import set_locks
from fusejournal.backing.tree import Tree
from fusejournal.disk import syscalls
from fusejournal.file_operations import LOCKING_FLAGS
from fusejournal.types import Fid

_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS_OTHER = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_OF_WAY_MAX = 64


class PlacedTree(Tree):
    """A tree whose files are opened by a name that the catalog knows for them; *descriptors_max* is
    more than twice _KEPT_OF_WAY_MAX."""

    def __init__(self, root_fd: int, catalog: Catalog, descriptors_max: int) -> None:
        super().__init__(root_fd, UUID(int=0), catalog, descriptors_max)
        self._redone: tuple[Fid, ...] = ()
        """The fids that an operation moves or makes which may have been done already."""

    def expect_redone(self, fids: tuple[Fid, ...]) -> None:
        """Know that the next operation moves or makes *fids*, and may have been done already."""
        self._redone = fids

    def identify(self, fid: Fid, fd: int, path: int | str) -> bytes:
        """Writes nothing to the file: its name is enough."""
        return b""

    def _open(self, node: CatalogNode) -> int:
        # From the nearest directory above that is open already; a loop, because trees can be deep.
        steps: list[tuple[CatalogNode, bytes]] = []
        above = node
        while above.fid not in self._pinned and above.fid not in self._descriptors:
            dentry = self.catalog.dentry(above)
            if dentry is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            steps.append((above, dentry[1]))
            above = self.node(dentry[0])
        directory = self._pinned.get(above.fid, -1)
        if directory < 0:
            directory = self._descriptors[above.fid]
        fd = passed = -1
        left = len(steps)
        for step, name in reversed(steps):
            try:
                fd = _open_name(step, name, directory)
            finally:
                if passed >= 0:
                    os.close(passed)
            passed = -1
            left -= 1
            if step.ino and os.fstat(fd).st_ino != step.ino:
                os.close(fd)  # (who has a directory open from before may still make names in it)
                raise OSError(errno.ESTALE, "another file is there")
            if not left:
                break
            directory = fd
            # Of a long way only the end is kept, or it would take the place of all else that is
            # open: an operation may need two files.
            if left <= _KEPT_OF_WAY_MAX:
                self._keep(step.fid, fd)
            else:
                passed = fd
        return fd

    def lock(self, fid: Fid, flags: int) -> None:
        """Make *fid* immutable or append-only, as *flags* say, or neither; where the file system
        has no such flags, nothing. Raises OSError."""
        with suppress(OSError):
            set_locks(self.descriptor(fid), flags)
        self.forget_descriptor(fid)  # by which it could be written to all the same

    def unlock(self, fids: Iterable[Fid]) -> bool:
        """Have none of *fids* be so, which an earlier replay may have left locked. Returns whether
        any was. Raises OSError."""
        was_locked = False
        for fid in fids:
            node = self.catalog.node(fid)
            if node is not None and node.file_flags & LOCKING_FLAGS:
                fd = self.descriptor(fid)
                if syscalls.is_locked(fd):
                    was_locked = True
                    set_locks(fd, 0)
        return was_locked

    def probe_name(self, parent: Fid, name: bytes) -> FoundEntry | None:
        """Returns what is under *name* now, known by its inode number."""
        try:
            stat = self.stat_name(parent, name)
        except FileNotFoundError:
            return None
        known = (self.catalog.lookup(parent, name), *self._redone)
        for fid in known:
            node = self.catalog.node(fid) if fid is not None else None
            if node is not None and node.ino == stat.st_ino:
                return FoundEntry(stat, b"", fid, None)
        return FoundEntry(stat, b"", None, None)


def _open_name(node: CatalogNode, name: bytes, directory: int) -> int:
    flags = _flags(node.type)
    try:
        return os.open(name, flags, dir_fd=directory)
    except PermissionError:
        if not node.file_flags & LOCKING_FLAGS:
            raise
    fd = os.open(name, flags & ~os.O_ACCMODE | os.O_RDONLY, dir_fd=directory)
    try:
        set_locks(fd, 0)
    finally:
        os.close(fd)
    return os.open(name, flags, dir_fd=directory)


def _flags(type_: int) -> int:
    if type_ == S_IFDIR:
        return _FLAGS_DIRECTORY
    return _FLAGS_FILE if type_ == S_IFREG else _FLAGS_OTHER
