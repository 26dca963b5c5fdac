"""The applier: the only code that changes a tree. One method an operation, used by layer, mirror
and replay alike.

:meth:`Applier.apply` carries out one journaled operation on the backing, by fid, and sets
explicitly every result that the entry names (owner, mode, ACLs, times), so that no inheritance,
umask or clock decides them. It does not touch the journal, and leaves the catalog to
``Catalog.record``, but gives it the handle of what it made.

Here are the operations on names alone; new objects are made in apply_new.py and apply_import.py,
and apply_data.py, apply_space.py and apply_flags.py change files.

Invariants: called with no await inside; an OSError out of ``apply`` means that the backing is as
it was before (several steps are rolled back); where that cannot be had, it is ApplyBrokenError and
the volume turns read-only.

With ``redo=True`` the operation may have been done already, wholly or in part, by a process that
died: each step is then done only if a look at the backing, comparing fids, says that it is still
to do.

What the kernel changes by itself beside what it was asked for is either part of the operation's
meaning (the table in operations.py) or undone: the mtime of a directory after a name that was
refused, the capability of an imported file after its content.

Source: open(2), rename(2), inode(7), acl(5).
"""

import errno
import os
from collections.abc import Callable
from stat import S_ISDIR
from typing import Any

from fusejournal.backing.apply_data import DataApplier
from fusejournal.backing.apply_exchange import can_exchange, exchange_by_steps
from fusejournal.backing.apply_flags import FlagsApplier
from fusejournal.backing.apply_import import ImportApplier
from fusejournal.backing.apply_mtimes import name_changed, set_mtime
from fusejournal.backing.apply_new import ObjectMaker
from fusejournal.backing.apply_results import NOTHING_MADE, Made, MustWork
from fusejournal.backing.apply_space import SpaceApplier
from fusejournal.backing.apply_whiteout import WhiteoutSteps
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.operations import (
    MOVES,
    ONE_FILE_KINDS,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Create,
    Kind,
    Link,
    Removal,
    Rename,
    Rmdir,
    TreeOperation,
    Unlink,
    Whiteout,
)
from fusejournal.types import Fid

_WITHOUT_NAMES = ONE_FILE_KINDS
_OLD_MTIMES = MustWork("the mtime of a directory after a refusal")
_WHITEOUT_REFUSED = MustWork("the names after a refused whiteout")


class Applier:
    """Applies operations to *tree*."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._maker = ObjectMaker(tree)
        data = DataApplier(tree)
        self.imports = imports = ImportApplier(tree, self._maker, self._link)
        self.space = SpaceApplier(tree, data)
        self._methods: dict[Kind, Callable[[Any, int, bytes | memoryview, bool], Made]] = {
            Kind.CREATE: self._maker.create,
            Kind.MKDIR: self._maker.mkdir,
            Kind.SYMLINK: self._maker.symlink,
            Kind.LINK: self._link,
            Kind.UNLINK: self._unlink,
            Kind.RMDIR: self._rmdir,
            Kind.RENAME: self._rename,
            Kind.WHITEOUT: self._whiteout,
            Kind.WRITE: data.write,
            Kind.TRUNCATE: data.truncate,
            Kind.FALLOCATE: self.space.fallocate,
            Kind.SETATTR: data.setattr,
            Kind.SETXATTR: data.setxattr,
            Kind.REMOVEXATTR: data.removexattr,
            Kind.SETFLAGS: FlagsApplier(tree).set_flags,
            Kind.IMPORT: imports.make,
            Kind.IMPORT_DATA: imports.write,
            Kind.IMPORT_LINK: imports.link,
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
        method = self._methods[kind]
        if kind in _WITHOUT_NAMES:
            return method(operation, time_ns, data, redo)
        naming: Any = operation
        descriptor = self._tree.descriptor
        # The directories in which names are made or removed: one by one, because a list costs more
        # than all of this.
        first: Fid = naming.parent
        last: Fid = naming.new_parent if kind in MOVES else first
        first_ns = last_ns = os.fstat(descriptor(first)).st_mtime_ns
        if last != first:
            last_ns = os.fstat(descriptor(last)).st_mtime_ns
        try:
            return method(operation, time_ns, data, redo)
        except OSError:
            # A name that was made and taken away again has changed its directory's mtime.
            with _OLD_MTIMES:
                for directory, mtime_ns in ((first, first_ns), (last, last_ns)):
                    if self._tree.stat(directory).st_mtime_ns != mtime_ns:
                        set_mtime(self._tree, directory, mtime_ns)
            raise

    def make_unnamed(self, operation: Create, time_ns: int) -> None:
        """Make the regular file of *operation*, but without its name, which no entry records.
        Raises OSError, with nothing left, or ApplyBrokenError."""
        self._maker.make_unnamed(operation, time_ns)

    # -- names -------------------------------------------------------------------------------------

    def _link(self, operation: Link, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        tree = self._tree
        found = tree.probe_name(operation.parent, operation.name) if redo else None
        if found is not None and found.fid != operation.fid:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if found is None:
            fd, directory = tree.pair(operation.fid, operation.parent)
            failpoints.reached("apply.link")
            syscalls.link(fd, directory, operation.name)
        name_changed(self._tree, operation.parent, time_ns)
        return NOTHING_MADE

    def _unlink(self, operation: Unlink, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        if self._still_named(operation, redo):
            directory = self._tree.descriptor(operation.parent)
            failpoints.reached("apply.unlink")
            os.unlink(operation.name, dir_fd=directory)
        name_changed(self._tree, operation.parent, time_ns)
        return NOTHING_MADE

    def _rmdir(self, operation: Rmdir, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        if self._still_named(operation, redo):
            directory = self._tree.descriptor(operation.parent)
            failpoints.reached("apply.rmdir")
            os.rmdir(operation.name, dir_fd=directory)
        name_changed(self._tree, operation.parent, time_ns)
        return NOTHING_MADE

    def _still_named(self, operation: Removal, redo: bool) -> bool:
        if not redo:
            return True
        found = self._tree.probe_name(operation.parent, operation.name)
        return found is not None and found.fid == operation.fid

    def _rename(self, operation: Rename, time_ns: int, _: bytes | memoryview, redo: bool) -> Made:
        tree = self._tree
        if operation.flags & RENAME_EXCHANGE:
            self._exchange(operation, redo)
        elif self._is_at_home(operation, redo):
            old, new = tree.pair(operation.parent, operation.new_parent)
            failpoints.reached("apply.rename")
            names = (old, operation.name, new, operation.new_name)
            flags = operation.flags & RENAME_NOREPLACE
            if flags or operation.replaced:
                syscalls.rename(*names, flags)
            else:
                syscalls.rename_onto_nothing(*names)
        name_changed(self._tree, operation.parent, time_ns)
        if operation.new_parent != operation.parent:
            name_changed(self._tree, operation.new_parent, time_ns)
        return NOTHING_MADE

    def _is_at_home(self, operation: Rename, redo: bool) -> bool:
        """Returns True if the file has its old name yet."""
        if not redo:
            return True
        found = self._tree.probe_name(operation.parent, operation.name)
        return found is not None and found.fid == operation.fid

    def _exchange(self, operation: Rename, redo: bool) -> None:
        """Exchange two names, at once or, where the file system cannot, by steps."""
        tree = self._tree
        is_half_done = redo and None in (
            tree.probe_name(operation.parent, operation.name),
            tree.probe_name(operation.new_parent, operation.new_name),
        )
        if not is_half_done and (
            not self._is_at_home(operation, redo) or self._exchange_at_once(operation)
        ):
            return
        with tree.staging() as staging:
            if not is_half_done and can_exchange(staging):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # for another reason
            exchange_by_steps(tree, operation, staging, is_half_done=is_half_done)

    def _exchange_at_once(self, operation: Rename) -> bool:
        """Returns False where that is refused as invalid."""
        mtimes = self._exchanged_mtimes(operation)
        old, new = self._tree.pair(operation.parent, operation.new_parent)
        failpoints.reached("apply.exchange")
        try:
            syscalls.rename(old, operation.name, new, operation.new_name, RENAME_EXCHANGE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        for fid, mtime_ns in mtimes:
            name_changed(self._tree, fid, mtime_ns)
        return True

    def _exchanged_mtimes(self, operation: Rename) -> list[tuple[Fid, int]]:
        """XFS changes the mtime of a directory that an exchange gives another parent: what is to be
        set again. Source: fs/xfs/xfs_inode.c, xfs_cross_rename."""
        if operation.parent == operation.new_parent:
            return []
        stats = ((fid, self._tree.stat(fid)) for fid in (operation.fid, operation.replaced))
        return [(fid, stat.st_mtime_ns) for fid, stat in stats if S_ISDIR(stat.st_mode)]

    def _whiteout(
        self, operation: Whiteout, time_ns: int, _: bytes | memoryview, redo: bool
    ) -> Made:
        with self._tree.staging() as staging:
            steps = WhiteoutSteps(
                self._tree,
                operation,
                staging,
                lambda name: self._maker.make_whiteout(operation.making, staging, name, time_ns),
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
            name_changed(self._tree, operation.fid, steps.mtimes[operation.fid])
        name_changed(self._tree, operation.parent, time_ns)
        if operation.new_parent != operation.parent:
            name_changed(self._tree, operation.new_parent, time_ns)
        return made
