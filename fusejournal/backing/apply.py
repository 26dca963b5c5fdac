"""The applier: the only code that changes a tree. One method an operation, used by layer, mirror
and replay alike.

:meth:`Applier.apply` carries out one journaled operation on the backing, by fid, and sets
explicitly every result that the entry names (owner, mode, ACLs, times), so that no inheritance,
umask or clock has a say. It does not touch the journal, and leaves the catalog to
``Catalog.record``, but gives it the handle of what it made.

Invariants: called with no await inside; an OSError out of ``apply`` means that the backing is as
it was before (several steps are rolled back); where that cannot be had, it is ApplyBrokenError and
the volume turns read-only.

With ``settle=True`` the operation may have been done already, wholly or in part, by a process that
died: each step is then done only if a look at the backing, comparing fids, says that it is still
to do.

What the kernel changes by itself beside what it was asked for is either part of the operation's
meaning (the table in operations.py: a WRITE takes a file capability away) or undone here: the
mtime of a directory after a name that was refused, the capability of an imported file after its
content.

A file or directory that is append-only in the backing takes no time from anybody. Where a time
must be set, the flag is lifted for that moment (syscalls.unlocked).

Source: open(2), rename(2), inode(7), acl(5), xattr(7), capabilities(7); the kernel's fs/attr.c
(notify_change) and fs/inode.c (file_remove_privs).
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from stat import S_IFDIR, S_IFMT, S_IFREG, S_IMODE, S_ISDIR, S_ISLNK
from typing import Any

from fusejournal.backing.apply_whiteout import WhiteoutSteps
from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.tree import FoundEntry, Tree
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, CAPABILITY_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import ApplyBrokenError, ShortWriteError
from fusejournal.operations import (
    MOVES,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Create,
    Import,
    ImportData,
    ImportLink,
    Kind,
    Link,
    Making,
    Mkdir,
    Removal,
    Removexattr,
    Rename,
    Rmdir,
    Setattr,
    Setxattr,
    Symlink,
    TreeOperation,
    Truncate,
    Unlink,
    Whiteout,
    Write,
)
from fusejournal.types import Fid

_NAMES_IN: dict[Kind, tuple[int, ...]] = {
    **dict.fromkeys((Kind.CREATE, Kind.MKDIR, Kind.SYMLINK, Kind.LINK), (1,)),
    **dict.fromkeys((Kind.UNLINK, Kind.RMDIR, Kind.IMPORT, Kind.IMPORT_LINK), (1,)),
    **dict.fromkeys(MOVES, (1, 3)),
}
"""Which fields of an operation are the directories in which it makes or removes names."""

_FLAGS_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS_MADE = _FLAGS_NEW & ~(os.O_CREAT | os.O_EXCL) | os.O_NOFOLLOW
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
_FLAGS_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Made:
    """Handle and inode number of the object that an operation made; empty and 0 for the others."""

    __slots__ = ("handle", "ino")

    def __init__(self, handle: bytes = b"", ino: int = 0) -> None:
        self.handle = handle
        self.ino = ino


_NOTHING_MADE = Made()


class _MustWork:
    """``with _MustWork(what)``: the operation is done but for this, and a refusal now leaves it
    half done. (A generator would cost a microsecond in every operation.)"""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise ApplyBrokenError(f"{self._what} could not be set: {error}") from error


_DIRECTORY_MTIME = _MustWork("the mtime of a directory")
_OLD_MTIMES = _MustWork("the mtime of a directory after a refusal")
_WRITE_END = _MustWork("mode and mtime after a write")
_WRITE_REFUSED = _MustWork("what a refused write or truncation changed")
_WHITEOUT_REFUSED = _MustWork("the names after a refused whiteout")
_TRUNCATION = _MustWork("mode and mtime after a truncation")


class Applier:
    """Applies operations to *tree*."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._methods: dict[Kind, Callable[[Any, int, Any, bool], Made]] = {
            Kind.CREATE: self._create,
            Kind.MKDIR: self._mkdir,
            Kind.SYMLINK: self._symlink,
            Kind.LINK: self._link,
            Kind.UNLINK: self._unlink,
            Kind.RMDIR: self._rmdir,
            Kind.RENAME: self._rename,
            Kind.WHITEOUT: self._whiteout,
            Kind.WRITE: self._write,
            Kind.TRUNCATE: self._truncate,
            Kind.SETATTR: self._setattr,
            Kind.SETXATTR: self._setxattr,
            Kind.REMOVEXATTR: self._removexattr,
            Kind.IMPORT: self._import,
            Kind.IMPORT_DATA: self._import_data,
            Kind.IMPORT_LINK: self._import_link,
        }

    def apply(
        self,
        operation: TreeOperation,
        time_ns: int,
        data: bytes | memoryview,
        redo: bool = False,
    ) -> Made:
        """Do *operation*, whose entry has *time_ns* and raw *data*. Raises OSError (refused,
        nothing done), ShortWriteError (a WRITE's beginning was done) or ApplyBrokenError."""
        kind = operation.kind
        fields = _NAMES_IN.get(kind)
        if fields is None:
            return self._methods[kind](operation, time_ns, data, redo)
        descriptor = self._tree.descriptor
        # One by one, for a list costs more than all of this.
        first: Fid = operation[fields[0]]  # type: ignore[assignment]
        last: Fid = operation[fields[-1]]  # type: ignore[assignment]
        first_ns = last_ns = os.fstat(descriptor(first)).st_mtime_ns
        if last != first:
            last_ns = os.fstat(descriptor(last)).st_mtime_ns
        try:
            return self._methods[kind](operation, time_ns, data, redo)
        except OSError:
            # A name that was made and taken away again has changed its directory's mtime.
            with _OLD_MTIMES:
                for directory, mtime_ns in ((first, first_ns), (last, last_ns)):
                    if self._tree.stat(directory).st_mtime_ns != mtime_ns:
                        self._set_mtime(directory, mtime_ns)
            raise

    # -- names made --------------------------------------------------------------------------------

    def _create(self, operation: Create, time_ns: int, _: bytes, redo: bool) -> Made:
        tree = self._tree
        directory = tree.descriptor(operation.parent)
        name = operation.name
        regular = S_IFMT(operation.mode) == S_IFREG
        fd = -1
        if self._made_before(operation, redo) is None:
            failpoints.reached("apply.create")
            if regular:
                fd = os.open(name, _FLAGS_NEW, S_IMODE(operation.mode), dir_fd=directory)
            else:
                os.mknod(name, operation.mode, operation.rdev, dir_fd=directory)
        try:
            if fd < 0:
                fd = _open(name, _FLAGS_MADE if regular else _FLAGS_PATH, directory)
            path = fd if regular else syscalls.descriptor_path(fd)
            made = self._finish(operation, fd, path, time_ns)
        except OSError:
            self._take_away(directory, name, fd, os.unlink)
            raise
        tree.adopt(operation.fid, fd)
        return made

    def _mkdir(self, operation: Mkdir, time_ns: int, _: bytes, redo: bool) -> Made:
        tree = self._tree
        directory = tree.descriptor(operation.parent)
        name = operation.name
        if self._made_before(operation, redo) is None:
            failpoints.reached("apply.mkdir")
            os.mkdir(name, S_IMODE(operation.mode), dir_fd=directory)
        fd = -1
        try:
            fd = _open(name, _FLAGS_DIRECTORY, directory)
            if operation.default_acl is not None:
                failpoints.reached("apply.acl")
                os.setxattr(fd, DEFAULT_ACL_XATTR, operation.default_acl)
            made = self._finish(operation, fd, fd, time_ns)
        except OSError:
            self._take_away(directory, name, fd, os.rmdir)
            raise
        tree.adopt(operation.fid, fd)
        return made

    def _symlink(self, operation: Symlink, time_ns: int, _: bytes, redo: bool) -> Made:
        tree = self._tree
        directory = tree.descriptor(operation.parent)
        name = operation.name
        if self._made_before(operation, redo) is None:
            failpoints.reached("apply.symlink")
            os.symlink(operation.target, name, dir_fd=directory)
        fd = -1
        try:
            fd = _open(name, _FLAGS_PATH, directory)
            made = self._finish(operation, fd, syscalls.descriptor_path(fd), time_ns)
        except OSError:
            self._take_away(directory, name, fd, os.unlink)
            raise
        tree.adopt(operation.fid, fd)
        return made

    def _made_before(self, operation: Making, redo: bool) -> FoundEntry | None:
        """When settling: the object that this very operation made before its process died, or
        None."""
        if not redo:
            return None
        look = self._tree.probe_name(operation.parent, operation.name)
        # A name without fid is the entry's own: the process died between making the name and
        # tagging the file.
        if look is None or look.fid in (None, operation.fid):
            return look
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _finish(
        self, operation: Create | Mkdir | Symlink, fd: int, path: int | str, time_ns: int
    ) -> Made:
        """Owner, ACL, mode, identity and times of a new object; then its directory's mtime."""
        inherits = self._tree.default_acl(self._tree.node(operation.parent)) is not None
        made = self._finish_object(operation, fd, path, time_ns, inherits)
        self._set_mtime(operation.parent, time_ns)
        return made

    def _finish_object(
        self,
        operation: Create | Mkdir | Symlink,
        fd: int,
        path: int | str,
        time_ns: int,
        inherits: bool,
    ) -> Made:
        """All that a new object has, but its name; *inherits*: it may have ACLs already."""
        tree = self._tree
        stat = os.fstat(fd)
        if (stat.st_uid, stat.st_gid) != (operation.uid, operation.gid):
            failpoints.reached("apply.chown")
            syscalls.chown(fd, operation.uid, operation.gid)
        if not isinstance(operation, Symlink):
            self._finish_mode(operation, path, stat, inherits)
        failpoints.reached("apply.tag")
        handle = tree.identify(operation.fid, fd, path)
        failpoints.reached("apply.times")
        syscalls.set_times(fd, time_ns, time_ns)
        return Made(handle, stat.st_ino)

    def _finish_mode(
        self, operation: Create | Mkdir, path: int | str, stat: os.stat_result, inherits: bool
    ) -> None:
        if operation.acl is not None:
            failpoints.reached("apply.acl")
            os.setxattr(path, ACCESS_ACL_XATTR, operation.acl)
        elif inherits:
            _remove_if_there(path, ACCESS_ACL_XATTR)
        if isinstance(operation, Mkdir) and inherits and operation.default_acl is None:
            _remove_if_there(path, DEFAULT_ACL_XATTR)
        mode = S_IMODE(operation.mode)
        # chown and ACLs change the mode too, so what the first stat saw counts only without them.
        if (
            S_IMODE(stat.st_mode) != mode
            or inherits
            or (stat.st_uid, stat.st_gid) != (operation.uid, operation.gid)
        ):
            failpoints.reached("apply.chmod")
            os.chmod(path, mode)

    def _take_away(self, directory: int, name: bytes, fd: int, remove: Callable[..., None]) -> None:
        """Take the half-made object *name*, open on *fd* (-1: not open), away again."""
        if fd >= 0:
            os.close(fd)
        try:
            try:
                remove(name, dir_fd=directory)
            except PermissionError:
                with syscalls.unlocked(directory):
                    remove(name, dir_fd=directory)
        except OSError as error:
            raise ApplyBrokenError(f"a half-made object could not be removed: {error}") from error

    def _link(self, operation: Link, time_ns: int, _: bytes, redo: bool) -> Made:
        tree = self._tree
        look = tree.probe_name(operation.parent, operation.name) if redo else None
        if look is not None and look.fid != operation.fid:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if look is None:
            fd, directory = tree.pair(operation.fid, operation.parent)
            failpoints.reached("apply.link")
            syscalls.link(fd, directory, operation.name)
        self._name_changed(operation.parent, time_ns)
        return _NOTHING_MADE

    # -- names removed and moved -------------------------------------------------------------------

    def _unlink(self, operation: Unlink, time_ns: int, _: bytes, redo: bool) -> Made:
        if self._still_named(operation, redo):
            directory = self._tree.descriptor(operation.parent)
            failpoints.reached("apply.unlink")
            os.unlink(operation.name, dir_fd=directory)
        self._name_changed(operation.parent, time_ns)
        return _NOTHING_MADE

    def _rmdir(self, operation: Rmdir, time_ns: int, _: bytes, redo: bool) -> Made:
        if self._still_named(operation, redo):
            directory = self._tree.descriptor(operation.parent)
            failpoints.reached("apply.rmdir")
            os.rmdir(operation.name, dir_fd=directory)
        self._name_changed(operation.parent, time_ns)
        return _NOTHING_MADE

    def _still_named(self, operation: Removal, redo: bool) -> bool:
        if not redo:
            return True
        look = self._tree.probe_name(operation.parent, operation.name)
        return look is not None and look.fid == operation.fid

    def _rename(self, operation: Rename, time_ns: int, _: bytes, redo: bool) -> Made:
        tree = self._tree
        look = tree.probe_name(operation.parent, operation.name) if redo else None
        if not redo or (look is not None and look.fid == operation.fid):
            flags = operation.flags & (RENAME_EXCHANGE | RENAME_NOREPLACE)
            exchanged = self._exchanged_mtimes(operation) if flags & RENAME_EXCHANGE else ()
            old, new = tree.pair(operation.parent, operation.new_parent)
            failpoints.reached("apply.rename")
            names = (old, operation.name, new, operation.new_name)
            if flags or operation.replaced:
                syscalls.rename(*names, flags)
            else:
                syscalls.rename_onto_nothing(*names)
            for fid, mtime_ns in exchanged:
                self._name_changed(fid, mtime_ns)
        self._name_changed(operation.parent, time_ns)
        if operation.new_parent != operation.parent:
            self._name_changed(operation.new_parent, time_ns)
        return _NOTHING_MADE

    def _exchanged_mtimes(self, operation: Rename) -> list[tuple[Fid, int]]:
        """XFS changes the mtime of a directory that an exchange gives another parent: what is to be
        set again. Source: fs/xfs/xfs_inode.c, xfs_cross_rename."""
        if operation.parent == operation.new_parent:
            return []
        stats = ((fid, self._tree.stat(fid)) for fid in (operation.fid, operation.replaced))
        return [(fid, stat.st_mtime_ns) for fid, stat in stats if S_ISDIR(stat.st_mode)]

    def _whiteout(self, operation: Whiteout, time_ns: int, _: bytes, redo: bool) -> Made:
        with self._tree.staging() as staging:
            steps = WhiteoutSteps(
                self._tree,
                operation,
                staging,
                lambda name: self._make_whiteout(operation.making, staging, name, time_ns),
            )
            try:
                made = Made(*steps.run(redo))
            except OSError:
                with _WHITEOUT_REFUSED:
                    if steps.has_replaced:
                        raise
                    steps.take_back()
                raise
        if operation.fid in steps.mtimes:
            self._name_changed(operation.fid, steps.mtimes[operation.fid])
        self._name_changed(operation.parent, time_ns)
        if operation.new_parent != operation.parent:
            self._name_changed(operation.new_parent, time_ns)
        return made

    def _make_whiteout(
        self, making: Create, directory: int, name: bytes, time_ns: int
    ) -> tuple[bytes, int]:
        """Make the device *name* in *directory*, which is not its own."""
        failpoints.reached("apply.whiteout.make")
        os.mknod(name, making.mode, making.rdev, dir_fd=directory)
        fd = -1
        try:
            fd = _open(name, _FLAGS_PATH, directory)
            path = syscalls.descriptor_path(fd)
            made = self._finish_object(making, fd, path, time_ns, inherits=True)
        except OSError:
            self._take_away(directory, name, fd, os.unlink)
            raise
        os.close(fd)
        return made.handle, made.ino

    def _name_changed(self, directory: Fid, time_ns: int) -> None:
        """The operation is done but for the mtime of *directory*."""
        with _DIRECTORY_MTIME:
            self._set_mtime(directory, time_ns)

    def _set_mtime(self, directory: Fid, time_ns: int) -> None:
        failpoints.reached("apply.times.directory")
        _must_set_mtime(self._tree.descriptor(directory), time_ns)

    # -- data and attributes -----------------------------------------------------------------------

    def _write(self, operation: Write, time_ns: int, data: bytes | memoryview, redo: bool) -> Made:
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
                    self._undo_write(fd, mtime_ns, capability)
                raise
            refusal = error
        with _WRITE_END:
            # The mode, too: a write that is refused leaves it alone.
            try:
                _set_mode_and_mtime(fd, operation.mode, time_ns)
            except PermissionError:
                with syscalls.unlocked(fd):
                    _set_mode_and_mtime(fd, operation.mode, time_ns)
                # Opened before it was append-only: from now on it is refused.
                self._tree.forget_descriptor(operation.fid)
        if written:
            node.capability = b""
        if refusal is not None:
            raise ShortWriteError(refusal.errno or errno.EIO, written)
        return _NOTHING_MADE

    def _undo_write(self, fd: int, mtime_ns: int, capability: bytes | None) -> None:
        """Set back what the kernel changed before it found that it could not write."""
        if os.fstat(fd).st_mtime_ns != mtime_ns:
            _must_set_mtime(fd, mtime_ns)
        if capability is not None and _capability_of(fd) is None:
            os.setxattr(fd, CAPABILITY_XATTR, capability)

    def _truncate(self, operation: Truncate, time_ns: int, _: bytes, __: bool) -> Made:
        fd = self._tree.writable(operation.fid)
        node = self._tree.node(operation.fid)
        mtime_ns = os.fstat(fd).st_mtime_ns
        capability = self._tree.capability(node, fd)
        try:
            failpoints.reached("apply.truncate")
            os.ftruncate(fd, operation.size)
        except OSError:
            with _WRITE_REFUSED:
                self._undo_write(fd, mtime_ns, capability)
            raise
        with _TRUNCATION:
            _set_mode_and_mtime(fd, operation.mode, time_ns)
        node.capability = b""
        return _NOTHING_MADE

    def _setattr(self, operation: Setattr, _: int, __: bytes, ___: bool) -> Made:
        _, mode, uid, gid, atime_ns, mtime_ns = operation
        fd = self._tree.descriptor(operation.fid)
        if uid is None and gid is None and atime_ns is None and mtime_ns is None:
            failpoints.reached("apply.setattr")
            self._chmod(operation.fid, fd, mode)
        elif uid is None and gid is None and mode is None:
            failpoints.reached("apply.setattr")
            syscalls.set_times(fd, atime_ns, mtime_ns)
        else:
            self._set_several(operation, fd)
        return _NOTHING_MADE

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
        # After chown, for that clears setuid and setgid by rules of its own.
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
            with _MustWork("attributes that were half set"):
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

    def _setxattr(self, operation: Setxattr, _: int, __: bytes, ___: bool) -> Made:
        failpoints.reached("apply.setxattr")
        os.setxattr(self._tree.xattr_target(operation.fid), operation.name, operation.value)
        _forget_xattrs(self._tree.node(operation.fid))
        return _NOTHING_MADE

    def _removexattr(self, operation: Removexattr, _: int, __: bytes, redo: bool) -> Made:
        failpoints.reached("apply.removexattr")
        target = self._tree.xattr_target(operation.fid)
        if redo or operation.name == CAPABILITY_XATTR:
            # The kernel may have taken a capability away by itself.
            _remove_if_there(target, operation.name)
        else:
            os.removexattr(target, operation.name)
        _forget_xattrs(self._tree.node(operation.fid))
        return _NOTHING_MADE

    # -- what an import found, made anew elsewhere -------------------------------------------------

    def _import(self, operation: Import, _: int, __: bytes, redo: bool) -> Made:
        with self._directory_mtime_kept(operation.parent):
            return self._make_imported(operation, redo)

    def _make_imported(self, operation: Import, redo: bool) -> Made:
        tree = self._tree
        directory, name = tree.descriptor(operation.parent), operation.name
        kind = S_IFMT(operation.mode)
        if self._made_before(operation, redo) is None:
            failpoints.reached("apply.import")
            if kind == S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=directory)
            elif operation.target is not None:
                os.symlink(operation.target, name, dir_fd=directory)
            else:
                os.mknod(name, kind | 0o600, operation.rdev, dir_fd=directory)
        fd = -1
        try:
            fd = _open(name, _FLAGS_PATH, directory)
            made = self._finish_imported(operation, fd)
        except OSError:
            self._take_away(directory, name, fd, os.rmdir if kind == S_IFDIR else os.unlink)
            raise
        os.close(fd)
        return made

    def _finish_imported(self, operation: Import, fd: int) -> Made:
        """All that the new object has, but its name."""
        tree, path = self._tree, syscalls.descriptor_path(fd)
        kind = S_IFMT(operation.mode)
        failpoints.reached("apply.chown")
        syscalls.chown(fd, operation.uid, operation.gid)
        if kind == S_IFREG:
            os.truncate(path, operation.size)
        if operation.target is None and tree.default_acl(tree.node(operation.parent)):
            # What it inherited just now is not what it had.
            _remove_if_there(path, ACCESS_ACL_XATTR)
            if kind == S_IFDIR:
                _remove_if_there(path, DEFAULT_ACL_XATTR)
        for xattr, value in operation.xattrs:
            failpoints.reached("apply.setxattr")
            os.setxattr(path, xattr, value)
        if operation.target is None:
            failpoints.reached("apply.chmod")
            os.chmod(path, S_IMODE(operation.mode))
        failpoints.reached("apply.tag")
        handle = tree.identify(operation.fid, fd, path)
        syscalls.set_times(fd, None, operation.mtime_ns)
        return Made(handle, os.fstat(fd).st_ino)

    def _import_data(
        self, operation: ImportData, _: int, data: bytes | memoryview, __: bool
    ) -> Made:
        fd = self._tree.writable(operation.fid)
        # It may be refused with some of it done: until the last piece is there, the content counts
        # for nothing.
        with capability_kept(fd):
            calls.write_all("apply.write", fd, data, operation.offset)
        failpoints.reached("apply.times")
        syscalls.set_times(fd, None, operation.mtime_ns)
        return _NOTHING_MADE

    def _import_link(self, operation: ImportLink, time_ns: int, data: bytes, redo: bool) -> Made:
        with self._directory_mtime_kept(operation.parent):
            link = Link(operation.fid, operation.parent, operation.name)
            return self._link(link, time_ns, data, redo)

    @contextmanager
    def _directory_mtime_kept(self, directory: Fid) -> Iterator[None]:
        """What is inside makes a name, but an import leaves the directory's mtime as it was."""
        mtime_ns = self._tree.stat(directory).st_mtime_ns
        yield
        self._name_changed(directory, mtime_ns)


def _open(name: bytes, flags: int, directory: int) -> int:
    """Open the object that was made just now."""
    failpoints.reached("apply.open")
    return os.open(name, flags, dir_fd=directory)


def _set_mode_and_mtime(fd: int, mode: int | None, mtime_ns: int) -> None:
    """After a change of content: set the mode, where it changes, and the mtime of *fd*."""
    if mode is not None:
        failpoints.reached("apply.chmod")
        os.fchmod(fd, mode)
    failpoints.reached("apply.times")
    syscalls.set_times(fd, None, mtime_ns)


def _must_set_mtime(fd: int, mtime_ns: int) -> None:
    """Set the mtime of *fd*, open on a file or directory, even where it is append-only."""
    try:
        syscalls.set_times(fd, None, mtime_ns)
    except PermissionError:
        with syscalls.unlocked(fd):
            syscalls.set_times(fd, None, mtime_ns)


def _written_already(fd: int, data: bytes | memoryview, offset: int) -> int:
    """How many bytes of *data*, from its first on, *fd* has at *offset* already."""
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
    """What is inside writes to the regular file *fd*, for which the kernel takes its capability
    away; afterwards it has it again."""
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


def _remove_if_there(target: int | str, name: str | bytes) -> None:
    try:
        os.removexattr(target, name)
    except OSError as error:
        if not syscalls.missing(error):
            raise
