"""The steps of a WHITEOUT on the backing. Each can be taken back, so that a refusal of any of them
leaves nothing behind.

The whiteout is made in the hidden directory first, whole and with its fid, because making it is
what a full disk or a quota refuses. The names follow: the file moves, then the whiteout takes its
old name. Where the file replaces another they exchange their names, then the whiteout and the
replaced file do, which is then removed from the hidden directory: exchanges need no space and can
be taken back, and what rename(2) would have refused is refused by the removal. Where the file
system has no exchanges, as that of a replay's target may, the file replaces the other at once: from
there on the steps can only be gone on with.

The backing's own RENAME_WHITEOUT is of no use: it makes a device without fid, owner and times,
which could be refused when the replaced file is gone already.

Source: rename(2); the kernel's fs/overlayfs/dir.c and Documentation/filesystems/overlayfs.rst."""

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from stat import S_IFDIR

from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.operations import RENAME_EXCHANGE, Whiteout
from fusejournal.types import Fid


class WhiteoutSteps:
    """Carries out *operation* on *tree*, whose hidden directory is open on *staging_fd*. *make*
    makes the whiteout under a name in that and returns its handle and inode number; when it raises
    OSError it has left nothing there. To be used once."""

    def __init__(
        self,
        tree: Tree,
        operation: Whiteout,
        staging_fd: int,
        make: Callable[[bytes], tuple[bytes, int]],
    ) -> None:
        self._tree = tree
        self._operation = operation
        self._staging_fd = staging_fd
        self._make = make
        self._spare = b"%d.whiteout" % operation.whiteout
        """The name, in the hidden directory, of the whiteout, later of the replaced file."""
        self.mtimes: dict[Fid, int] = {}
        """The mtimes of the directories among the moved and the replaced file, where the steps may
        change them: the caller sets the moved one's when all is done."""
        self.has_replaced = False
        """True once the replaced file is gone: nothing can be taken back any more."""
        self._take_backs: list[Callable[[], None]] = []

    def run(self, redo: bool) -> tuple[bytes, int]:
        """Do all steps; with *redo*, those that a process that died has left. Returns the
        whiteout's handle and inode number. Raises OSError: :meth:`take_back` is then to be
        called, unless ``has_replaced``."""
        operation = self._operation
        is_moved, made = self._find_done() if redo else (False, None)
        is_left = made is not None
        self._note_mtimes()
        if made is None:
            if redo:
                with suppress(FileNotFoundError):
                    os.unlink(self._spare, dir_fd=self._staging_fd)
            made = self._make(self._spare)
        self._take_backs.append(lambda: os.unlink(self._spare, dir_fd=self._staging_fd))
        if not is_moved:
            self._check_types()
            self._move()
        self._take_backs.append(self._move_back)
        if not is_left:
            self._leave()
        self._take_backs.append(self._leave_back)
        if operation.replaced and not self.has_replaced:
            self._remove_replaced(redo)
        return made

    def take_back(self) -> None:
        """Undo the steps that were done, the last first. Raises OSError."""
        for take_back in reversed(self._take_backs):
            take_back()
        for fid, mtime_ns in self.mtimes.items():
            syscalls.set_times(self._tree.descriptor(fid), None, mtime_ns)

    def _find_done(self) -> tuple[bool, tuple[bytes, int] | None]:
        """Returns whether the file has moved, and the whiteout if that has the old name."""
        operation = self._operation
        found = self._tree.probe_name(operation.parent, operation.name)
        if found is None:
            self.has_replaced = bool(operation.replaced)  # for an exchange leaves both names
            return True, None
        if operation.replaced and found.fid == operation.replaced:
            return True, None
        if found.fid == operation.fid:
            return False, None
        # In a tree whose files bear their fid, another file is in the way.
        is_left = found.fid == operation.whiteout or not found.handle
        return True, (found.handle, found.stat.st_ino) if is_left else None

    def _check_types(self) -> None:
        """A directory and another file must not be exchanged because rename(2) would refuse it."""
        operation = self._operation
        if not operation.replaced:
            return
        is_directory, replaces_directory = (
            self._tree.node(fid).type == S_IFDIR for fid in (operation.fid, operation.replaced)
        )
        if is_directory != replaces_directory:
            number = errno.EISDIR if replaces_directory else errno.ENOTDIR
            raise OSError(number, os.strerror(number))

    def _move(self) -> None:
        operation = self._operation
        old, new = self._tree.pair(operation.parent, operation.new_parent)
        failpoints.reached("apply.whiteout.move")
        try:
            self._rename(old, operation.name, new, operation.new_name)
        except OSError as error:
            if not operation.replaced or error.errno != errno.EINVAL:
                raise
            syscalls.rename(old, operation.name, new, operation.new_name, 0)
            self.has_replaced = True

    def _move_back(self) -> None:
        operation = self._operation
        old, new = self._tree.pair(operation.parent, operation.new_parent)
        self._rename(new, operation.new_name, old, operation.name)

    def _leave(self) -> None:
        directory = self._tree.descriptor(self._operation.parent)
        failpoints.reached("apply.whiteout.leave")
        self._rename(self._staging_fd, self._spare, directory, self._operation.name)

    def _leave_back(self) -> None:
        directory = self._tree.descriptor(self._operation.parent)
        self._rename(directory, self._operation.name, self._staging_fd, self._spare)

    def _rename(self, old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
        if self._operation.replaced and not self.has_replaced:
            syscalls.rename(old_dir, old, new_dir, new, RENAME_EXCHANGE)
        else:
            syscalls.rename_onto_nothing(old_dir, old, new_dir, new)

    def _remove_replaced(self, redo: bool) -> None:
        is_directory = self._tree.node(self._operation.replaced).type == S_IFDIR
        failpoints.reached("apply.whiteout.remove")
        with suppress(FileNotFoundError) if redo else nullcontext():
            (os.rmdir if is_directory else os.unlink)(self._spare, dir_fd=self._staging_fd)

    def _note_mtimes(self) -> None:
        """XFS changes the mtime of a directory that an exchange gives another parent. (After a
        process that died it may have done so before: the caller knows better then.)"""
        if self._operation.replaced:
            for fid in (self._operation.fid, self._operation.replaced):
                if self._tree.node(fid).type == S_IFDIR:
                    with suppress(OSError):  # in the hidden directory, or gone
                        self.mtimes[fid] = self._tree.stat(fid).st_mtime_ns
