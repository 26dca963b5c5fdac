"""The objects that an import found, made anew elsewhere: on a mirror, or where a journal is
replayed. It leaves the mtimes of directories, and the capability of a file whose content follows,
as they were."""

import os
from collections.abc import Callable
from stat import S_IFDIR, S_IFMT, S_IFREG, S_IMODE
from typing import Any

from fusejournal.backing.apply_data import capability_kept
from fusejournal.backing.apply_mtimes import mtime_kept
from fusejournal.backing.apply_new import FLAGS_PATH, ObjectMaker, open_made, remove_if_there
from fusejournal.backing.apply_results import NOTHING_MADE, Made
from fusejournal.backing.tree import Tree
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR, XFS_OWN_XATTRS
from fusejournal.native import kernel
from fusejournal.operations import Import, ImportData, ImportLink, Link

_FLAGS_BEGUN = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class ImportApplier:
    """Applies the operations of an import to *tree*; *link* applies a LINK."""

    def __init__(
        self, tree: Tree, maker: ObjectMaker, link: Callable[[Link, int, Any, bool], Made]
    ) -> None:
        self._tree = tree
        self._maker = maker
        self._link = link

    def make(self, operation: Import, _: int, __: bytes | memoryview, redo: bool) -> Made:
        """Applies an IMPORT: see Applier.apply."""
        with mtime_kept(self._tree, operation.parent):
            return self._make_imported(operation, redo)

    def _make_imported(self, operation: Import, redo: bool) -> Made:
        tree = self._tree
        directory, name = tree.descriptor(operation.parent), operation.name
        kind = S_IFMT(operation.mode)
        if self._maker.made_before(operation, redo) is None:
            failpoints.reached("apply.import")
            if kind == S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=directory)
            elif operation.target is not None:
                os.symlink(operation.target, name, dir_fd=directory)
            else:
                os.mknod(name, kind | 0o600, operation.rdev, dir_fd=directory)
        fd = -1
        try:
            fd = open_made(name, FLAGS_PATH, directory)
            made = self._finish_imported(operation, fd, syscalls.descriptor_path(fd))
        except OSError:
            self._maker.take_away(directory, name, fd, os.rmdir if kind == S_IFDIR else os.unlink)
            raise
        os.close(fd)
        return made

    def begin(self, operation: Import) -> int:
        """Makes the regular file of an IMPORT, with nothing in it, for :meth:`end`, which has all
        the rest: what has no fid yet is known not to be whole. The mtime of its directory changes.
        Returns its descriptor, to be written to. Raises OSError: FileExistsError where the name is
        there."""
        directory = self._tree.descriptor(operation.parent)
        failpoints.reached("apply.import.begin")
        return os.open(operation.name, _FLAGS_BEGUN, 0o600, dir_fd=directory)

    def end(self, operation: Import, fd: int, written: int) -> Made:
        """Gives the file of :meth:`begin`, whose content is there up to byte *written*, what else
        it has; its fid last. Raises OSError: then it stays as it is, without a fid."""
        return self._finish_imported(operation, fd, fd, written)

    def _finish_imported(
        self, operation: Import, fd: int, path: int | str, written: int = -1
    ) -> Made:
        """Everything that the new object has, but its name; its fid last."""
        tree = self._tree
        kind = S_IFMT(operation.mode)
        failpoints.reached("apply.import.chown")
        syscalls.chown(fd, operation.uid, operation.gid)
        if kind == S_IFREG and operation.size != written:
            os.truncate(path, operation.size)
        if operation.target is None and tree.default_acl(tree.node(operation.parent)):
            # What it inherited just now is not what it had.
            remove_if_there(path, ACCESS_ACL_XATTR)
            if kind == S_IFDIR:
                remove_if_there(path, DEFAULT_ACL_XATTR)
        for xattr, value in operation.xattrs:
            failpoints.reached("apply.import.xattr")
            if xattr not in XFS_OWN_XATTRS:
                os.setxattr(path, xattr, value)
        if operation.target is None:
            failpoints.reached("apply.import.chmod")
            os.chmod(path, S_IMODE(operation.mode))
        syscalls.set_times(fd, None, operation.mtime_ns)
        failpoints.reached("apply.import.tag")
        handle = tree.identify(operation.fid, fd, path)
        return Made(handle, kernel.stat(fd).st_ino)

    def write(self, operation: ImportData, _: int, data: bytes | memoryview, __: bool) -> Made:
        """Applies an IMPORT_DATA: see Applier.apply."""
        fd = self._tree.writable(operation.fid)
        # It may be refused with some of it done: until the last piece is there, the content counts
        # for nothing.
        with capability_kept(fd):
            calls.write_all("apply.import.write", fd, data, operation.offset)
        failpoints.reached("apply.import.times")
        syscalls.set_times(fd, None, operation.mtime_ns)
        return NOTHING_MADE

    def link(
        self, operation: ImportLink, time_ns: int, data: bytes | memoryview, redo: bool
    ) -> Made:
        """Applies an IMPORT_LINK: see Applier.apply."""
        with mtime_kept(self._tree, operation.parent):
            link = Link(operation.fid, operation.parent, operation.name)
            return self._link(link, time_ns, data, redo)
