"""The making of new objects: each gets owner, mode, ACLs, identity and times explicitly, so that no
inheritance, umask or clock decides them; one that cannot get them all is taken away again."""

import errno
import os
from collections.abc import Callable
from stat import S_IFMT, S_IFREG, S_IMODE

from fusejournal.backing.apply_mtimes import set_mtime
from fusejournal.backing.apply_results import Made
from fusejournal.backing.catalog_store import CatalogNode
from fusejournal.backing.fid_tag import FoundEntry
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.errors import ApplyBrokenError
from fusejournal.operations import Create, Making, Mkdir, Symlink
from fusejournal.types import Fid, Seq

FLAGS_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS_UNNAMED = os.O_TMPFILE | os.O_RDWR | os.O_NOATIME | os.O_CLOEXEC
_FLAGS_MADE = _FLAGS_NEW & ~(os.O_CREAT | os.O_EXCL) | os.O_NOFOLLOW
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC


class ObjectMaker:
    """Makes objects in *tree*. Called by the applier alone."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def create(self, operation: Create, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        """Applies a CREATE: see Applier.apply."""
        tree = self._tree
        if operation.fid in tree.unnamed or (redo and tree.find_unnamed(operation.fid)):
            return self._name(operation, time_ns, redo)
        directory = tree.descriptor(operation.parent)
        name = operation.name
        regular = S_IFMT(operation.mode) == S_IFREG
        fd = -1
        if self.made_before(operation, redo) is None:
            failpoints.reached("apply.create")
            if regular:
                fd = os.open(name, _FLAGS_NEW, S_IMODE(operation.mode), dir_fd=directory)
            else:
                os.mknod(name, operation.mode, operation.rdev, dir_fd=directory)
        try:
            if fd < 0:
                fd = open_made(name, _FLAGS_MADE if regular else FLAGS_PATH, directory)
            path = fd if regular else syscalls.descriptor_path(fd)
            made = self._finish(operation, fd, path, time_ns)
        except OSError:
            self.take_away(directory, name, fd, os.unlink)
            raise
        tree.keep_made(operation.fid, fd)
        return made

    def make_unnamed(self, operation: Create, time_ns: int) -> None:
        """Makes the regular file of *operation* without a name, which no entry records. Raises
        OSError, with nothing left, or ApplyBrokenError."""
        directory = self._tree.descriptor(operation.parent)
        failpoints.reached("apply.unnamed")
        fd = os.open(".", _FLAGS_UNNAMED, S_IMODE(operation.mode), dir_fd=directory)
        try:
            made = self._finish_object(operation, fd, fd, time_ns, inherits=True)
            node = CatalogNode(
                operation.fid, S_IFREG, time_ns, Seq(0), Fid(0), 0, made.handle, made.ino
            )
            self._tree.keep_unnamed(node, fd)
        except BaseException:
            os.close(fd)
            raise

    def _name(self, operation: Create, time_ns: int, redo: bool) -> Made:
        """Gives a file that was made without a name the one of *operation*. All else of it is as it
        is, and what that is, further entries record (volume/unnamed_files.py)."""
        tree = self._tree
        node = tree.node(operation.fid)
        if self.made_before(operation, redo) is None:
            fd, directory = tree.pair(operation.fid, operation.parent)
            failpoints.reached("apply.name")
            syscalls.link(fd, directory, operation.name)
        try:
            set_mtime(tree, operation.parent, time_ns)
        except OSError:
            self.take_away(tree.descriptor(operation.parent), operation.name, -1, os.unlink)
            raise
        tree.note_named(operation.fid)
        return Made(node.handle, node.ino)

    def mkdir(self, operation: Mkdir, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        """Applies a MKDIR: see Applier.apply."""
        tree = self._tree
        directory = tree.descriptor(operation.parent)
        name = operation.name
        if self.made_before(operation, redo) is None:
            failpoints.reached("apply.mkdir")
            os.mkdir(name, S_IMODE(operation.mode), dir_fd=directory)
        fd = -1
        try:
            fd = open_made(name, _FLAGS_DIRECTORY, directory)
            if operation.default_acl is not None:
                failpoints.reached("apply.acl.default")
                os.setxattr(fd, DEFAULT_ACL_XATTR, operation.default_acl)
            made = self._finish(operation, fd, fd, time_ns)
        except OSError:
            self.take_away(directory, name, fd, os.rmdir)
            raise
        tree.keep_made(operation.fid, fd)
        return made

    def symlink(self, operation: Symlink, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        """Applies a SYMLINK: see Applier.apply."""
        tree = self._tree
        directory = tree.descriptor(operation.parent)
        name = operation.name
        if self.made_before(operation, redo) is None:
            failpoints.reached("apply.symlink")
            os.symlink(operation.target, name, dir_fd=directory)
        fd = -1
        try:
            fd = open_made(name, FLAGS_PATH, directory)
            made = self._finish(operation, fd, syscalls.descriptor_path(fd), time_ns)
        except OSError:
            self.take_away(directory, name, fd, os.unlink)
            raise
        tree.keep_made(operation.fid, fd)
        return made

    def made_before(self, operation: Making, redo: bool) -> FoundEntry | None:
        """Returns, for an operation that is redone, the object that it made before its process
        died, or None."""
        if not redo:
            return None
        found = self._tree.probe_name(operation.parent, operation.name)
        # A name without fid is the entry's own: the process died between making the name and
        # tagging the file.
        if found is None or found.fid in (None, operation.fid):
            return found
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _finish(
        self, operation: Create | Mkdir | Symlink, fd: int, path: int | str, time_ns: int
    ) -> Made:
        """Owner, ACL, mode, identity and times of a new object; then its directory's mtime."""
        inherits = self._tree.default_acl(self._tree.node(operation.parent)) is not None
        made = self._finish_object(operation, fd, path, time_ns, inherits)
        set_mtime(self._tree, operation.parent, time_ns)
        return made

    def _finish_object(
        self,
        operation: Create | Mkdir | Symlink,
        fd: int,
        path: int | str,
        time_ns: int,
        inherits: bool,
    ) -> Made:
        """Everything that a new object has, but its name; *inherits*: it may have ACLs already."""
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
            remove_if_there(path, ACCESS_ACL_XATTR)
        if isinstance(operation, Mkdir) and inherits and operation.default_acl is None:
            remove_if_there(path, DEFAULT_ACL_XATTR)
        mode = S_IMODE(operation.mode)
        # chown and ACLs change the mode too, so what the first stat saw counts only without them.
        if (
            S_IMODE(stat.st_mode) != mode
            or inherits
            or (stat.st_uid, stat.st_gid) != (operation.uid, operation.gid)
        ):
            failpoints.reached("apply.chmod")
            os.chmod(path, mode)

    def take_away(self, directory: int, name: bytes, fd: int, remove: Callable[..., None]) -> None:
        """Takes the half-made object *name*, open on *fd* (-1: not open), away again. Raises
        ApplyBrokenError."""
        if fd >= 0:
            os.close(fd)
        try:
            try:
                remove(name, dir_fd=directory)
            except PermissionError:
                with syscalls.unlocked(directory):
                    remove(name, dir_fd=directory)
        except OSError as error:
            raise ApplyBrokenError(
                f"a half-made object could not be removed: {error}", error.errno or errno.EIO
            ) from error

    def make_whiteout(
        self, making: Create, directory: int, name: bytes, time_ns: int
    ) -> tuple[bytes, int]:
        """Makes the device *name* in *directory*, which is not its own. Returns its handle and
        inode number. Raises OSError: nothing is left then."""
        failpoints.reached("apply.whiteout.make")
        os.mknod(name, making.mode, making.rdev, dir_fd=directory)
        fd = -1
        try:
            fd = open_made(name, FLAGS_PATH, directory)
            path = syscalls.descriptor_path(fd)
            made = self._finish_object(making, fd, path, time_ns, inherits=True)
        except OSError:
            self.take_away(directory, name, fd, os.unlink)
            raise
        os.close(fd)
        return made.handle, made.ino


def open_made(name: bytes, flags: int, directory: int) -> int:
    """Opens the object *name* that was made just now. Raises OSError."""
    failpoints.reached("apply.open")
    return os.open(name, flags, dir_fd=directory)


def remove_if_there(target: int | str, name: str | bytes) -> None:
    """Removes an xattr, unless it is missing. Raises OSError."""
    try:
        os.removexattr(target, name)
    except OSError as error:
        if not syscalls.missing(error):
            raise
