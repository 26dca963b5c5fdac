"""The operations that change one file and no name: content, attributes, xattrs.

The kernel changes more than it was asked for: a WRITE takes a file capability away, which is part
of its meaning (operations.py), and one that is refused may have changed times and capability
already, which is set back here.

Source: inode(7), xattr(7), capabilities(7); the kernel's fs/attr.c (notify_change) and fs/inode.c
(file_remove_privs)."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from stat import S_IFDIR, S_IFREG, S_IMODE, S_ISLNK

from fusejournal.backing.apply_mtimes import must_set_mtime
from fusejournal.backing.apply_new import remove_if_there
from fusejournal.backing.apply_results import NOTHING_MADE, Made, MustWork
from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.disk.acls import CAPABILITY_XATTR, XFS_OWN_XATTRS
from fusejournal.errors import ShortWriteError
from fusejournal.operations import Removexattr, Setattr, Setxattr, Truncate, Write
from fusejournal.types import Fid

_WRITE_END = MustWork("mode and mtime after a write")
_WRITE_REFUSED = MustWork("what a refused write or truncation changed")
_TRUNCATION = MustWork("mode and mtime after a truncation")


class DataApplier:
    """Applies data operations to *tree*."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def write(self, operation: Write, time_ns: int, data: bytes | memoryview, redo: bool) -> Made:
        """Applies a WRITE: see Applier.apply."""
        fd = self._tree.writable(operation.fid)
        node = self._tree.node(operation.fid)
        mtime_ns = os.fstat(fd).st_mtime_ns
        capability = self._tree.capability(node, fd)
        # What the process before this one wrote is not to be refused now.
        written = _written_already(fd, data, operation.offset) if redo else 0
        refusal: OSError | None = None
        try:
            while written < len(data):
                failpoints.reached("apply.write")
                written += os.pwrite(
                    fd, data[written:] if written else data, operation.offset + written
                )
        except OSError as error:
            if not written:
                with _WRITE_REFUSED:
                    self.undo_write(fd, mtime_ns, capability)
                raise
            refusal = error
        with _WRITE_END:
            # The mode, too: a write that is refused leaves it alone.
            self.end_write(operation.fid, fd, operation.mode, time_ns)
        if written:
            node.capability = b""
        if refusal is not None:
            raise ShortWriteError(refusal.errno or errno.EIO, written)
        return NOTHING_MADE

    def end_write(self, fid: Fid, fd: int, mode: int | None, mtime_ns: int) -> None:
        """Ends a change of the content of *fid*, which is open on *fd*: sets the mode, where it
        changes, and the mtime. Raises OSError."""
        try:
            _set_mode_and_mtime(fd, mode, mtime_ns)
        except PermissionError:
            with syscalls.unlocked(fd):
                _set_mode_and_mtime(fd, mode, mtime_ns)
            # Opened before it was append-only: from now on it is refused.
            self._tree.forget_descriptor(fid)

    def undo_write(self, fd: int, mtime_ns: int, capability: bytes | None) -> None:
        """Set back what the kernel changed before it found that it could not write."""
        if os.fstat(fd).st_mtime_ns != mtime_ns:
            must_set_mtime(fd, mtime_ns)
        if capability is not None and _capability_of(fd) is None:
            os.setxattr(fd, CAPABILITY_XATTR, capability)

    def truncate(self, operation: Truncate, time_ns: int, _: bytes | memoryview, __: bool) -> Made:
        """Applies a TRUNCATE: see Applier.apply."""
        fd = self._tree.writable(operation.fid)
        node = self._tree.node(operation.fid)
        mtime_ns = os.fstat(fd).st_mtime_ns
        capability = self._tree.capability(node, fd)
        try:
            failpoints.reached("apply.truncate")
            os.ftruncate(fd, operation.size)
        except OSError:
            with _WRITE_REFUSED:
                self.undo_write(fd, mtime_ns, capability)
            raise
        with _TRUNCATION:
            _set_mode_and_mtime(fd, operation.mode, time_ns)
        node.capability = b""
        return NOTHING_MADE

    def setattr(self, operation: Setattr, _: int, __: bytes | memoryview, ___: bool) -> Made:
        """Applies a SETATTR: see Applier.apply."""
        _, mode, uid, gid, atime_ns, mtime_ns = operation
        fd = self._tree.descriptor(operation.fid)
        if uid is None and gid is None and atime_ns is None and mtime_ns is None:
            failpoints.reached("apply.setattr.mode")
            self._chmod(operation.fid, fd, mode)
        elif uid is None and gid is None and mode is None:
            failpoints.reached("apply.setattr.times")
            syscalls.set_times(fd, atime_ns, mtime_ns)
        else:
            self._set_several(operation, fd)
        return NOTHING_MADE

    def _set_several(self, operation: Setattr, fd: int) -> None:
        """Set what *operation* names, step by step, and take it all back when a step fails."""
        fid, mode, uid, gid, atime_ns, mtime_ns = operation
        before = os.fstat(fd)
        steps: list[tuple[Callable[[], None], Callable[[], None]]] = []
        if uid is not None or gid is not None:
            new_uid = before.st_uid if uid is None else uid
            new_gid = before.st_gid if gid is None else gid
            target = self._tree.xattr_target(fid)
            capability = _capability_of(target)
            self._tree.node(fid).capability = None

            def give_back() -> None:
                syscalls.chown(fd, before.st_uid, before.st_gid)
                if not S_ISLNK(before.st_mode):
                    self._chmod(fid, fd, S_IMODE(before.st_mode))
                if capability is not None:
                    os.setxattr(target, CAPABILITY_XATTR, capability)

            steps.append((lambda: syscalls.chown(fd, new_uid, new_gid), give_back))
        # After chown, because that clears setuid and setgid by rules of its own.
        new_mode = S_IMODE(before.st_mode) if mode is None and steps else mode
        if new_mode is not None and not S_ISLNK(before.st_mode):
            steps.append(
                (
                    lambda: self._chmod(fid, fd, new_mode),
                    lambda: self._chmod(fid, fd, S_IMODE(before.st_mode)),
                )
            )
        if atime_ns is not None or mtime_ns is not None:
            steps.append((lambda: syscalls.set_times(fd, atime_ns, mtime_ns), lambda: None))
        done: list[Callable[[], None]] = []
        try:
            for do, take_back in steps:
                failpoints.reached("apply.setattr")
                do()
                done.append(take_back)
        except OSError:
            with MustWork("attributes that were half set"):
                # The owner first, then the mode that setting it may have cleared.
                for take_back in done:
                    take_back()
            raise

    def _chmod(self, fid: Fid, fd: int, mode: int | None) -> None:
        """Set the permission bits of *fid*, open on *fd*, which fchmod(2) refuses when it is
        O_PATH."""
        if mode is not None:
            is_open = self._tree.node(fid).type in (S_IFREG, S_IFDIR)
            os.chmod(fd if is_open else syscalls.descriptor_path(fd), mode)

    def setxattr(self, operation: Setxattr, _: int, __: bytes | memoryview, ___: bool) -> Made:
        """Applies a SETXATTR: see Applier.apply."""
        failpoints.reached("apply.setxattr")
        if operation.name in XFS_OWN_XATTRS:
            return NOTHING_MADE  # of an earlier version's: the ACL itself came by its own entry
        os.setxattr(self._tree.xattr_target(operation.fid), operation.name, operation.value)
        _forget_xattrs(self._tree.node(operation.fid))
        return NOTHING_MADE

    def removexattr(
        self, operation: Removexattr, _: int, __: bytes | memoryview, redo: bool
    ) -> Made:
        """Applies a REMOVEXATTR: see Applier.apply."""
        failpoints.reached("apply.removexattr")
        target = self._tree.xattr_target(operation.fid)
        if operation.name in XFS_OWN_XATTRS:
            return NOTHING_MADE
        if redo or operation.name == CAPABILITY_XATTR:
            # The kernel may have taken a capability away by itself.
            remove_if_there(target, operation.name)
        else:
            os.removexattr(target, operation.name)
        _forget_xattrs(self._tree.node(operation.fid))
        return NOTHING_MADE


def _set_mode_and_mtime(fd: int, mode: int | None, mtime_ns: int) -> None:
    """Ends a change of content: sets the mode, where it changes, and the mtime of *fd*."""
    if mode is not None:
        failpoints.reached("apply.write.mode")
        os.fchmod(fd, mode)
    failpoints.reached("apply.write.times")
    syscalls.set_times(fd, None, mtime_ns)


def _written_already(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Returns how many bytes of *data*, from its first on, *fd* has at *offset* already."""
    there = os.pread(fd, len(data), offset)
    if there == data[: len(there)]:
        return len(there)
    pairs = zip(there, data, strict=False)
    return next(at for at, (one, other) in enumerate(pairs) if one != other)


def _capability_of(target: int | str) -> bytes | None:
    try:
        return os.getxattr(target, CAPABILITY_XATTR)
    except OSError as error:
        if not syscalls.missing(error):
            raise
    return None


@contextmanager
def capability_kept(fd: int) -> Iterator[None]:
    """Keeps the capability of regular file *fd* over a block that writes to it, for which the
    kernel takes it away."""
    capability = _capability_of(fd)
    try:
        yield
    finally:
        if capability is not None:
            os.setxattr(fd, CAPABILITY_XATTR, capability)


def _forget_xattrs(node: CatalogNode) -> None:
    """An attribute of *node* was changed: forget what was read of ACLs and capability."""
    node.default_acl = None
    node.capability = None
