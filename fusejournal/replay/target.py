"""A target: a plain directory that operations are applied to, by the same applier as the layer's.

Files are found by their names (placed_tree.py), so any file system that takes the operations will
do, and nothing is left with the files. Which fid has which names is in a catalog in a scratch
directory beside the target.

While it is worked on, the target belongs to root and only root can enter it (staged_tree.py).

A target can be left half-way and gone on with: the scratch directory keeps the catalog, what is
being done, and the last seq that was carried out (progress_page.py). The one entry that was in
flight when a process died is redone after a look at what it has done."""

import errno
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_IFMT
from typing import Any

from fusejournal.backing.apply import Applier
from fusejournal.backing.apply_results import Made
from fusejournal.backing.catalog import Catalog
from fusejournal.backing.catalog_file import CatalogSpoiltError
from fusejournal.backing.catalog_store import COMMIT_CHANGES
from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, mode_of
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import (
    ApplyBrokenError,
    ConflictError,
    FusejournalError,
    PrivilegeError,
    TargetError,
    TargetFullError,
)
from fusejournal.file_operations import SetFlags
from fusejournal.journal.base import BaseTree
from fusejournal.operations import (
    MOVES,
    REMOVALS,
    RENAME_EXCHANGE,
    DataOperation,
    Import,
    ImportData,
    ImportLink,
    Kind,
    Moving,
    Removexattr,
    Setattr,
    Setxattr,
    TreeOperation,
)
from fusejournal.replay.placed_tree import PlacedTree
from fusejournal.replay.progress_page import ProgressPage
from fusejournal.replay.root_attributes import RootAttributes
from fusejournal.replay.scratch import REPLAY, Scratch, Spot, find_spot
from fusejournal.replay.staged_tree import StagedTree, check_root
from fusejournal.replay.target_root import is_empty, not_empty, open_root
from fusejournal.types import ROOT_FID, Fid, Seq, clamp_time

_DESCRIPTORS_MAX = 512
_PROGRESS_FILE = "progress"
_MTIME_KEPT = Import | ImportLink
_NOTED = MOVES | REMOVALS | {Kind.IMPORT, Kind.IMPORT_LINK, Kind.LINK}
"""Operations of which only a look at inode numbers or times tells whether they were done."""
_REFUSED = frozenset({errno.EPERM, errno.EACCES})


def _put_page(scratch: Scratch) -> None:
    """Puts the page of a target that is begun into its scratch directory. Raises OSError."""
    fd = scratch.open(_PROGRESS_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(fd, "wb") as file:
        file.write(ProgressPage.EMPTY)


def _stage_at(spot: Spot, purpose: dict[str, Any], from_seq: int | None) -> StagedTree:
    """The directory at *spot*, which may be made: see Target. Raises TargetError."""
    with ExitStack() as unused:
        scratch = Scratch.find(spot, REPLAY)
        if scratch is not None:
            unused.callback(scratch.close)
        root_fd = open_root(spot, from_seq, scratch)
        unused.callback(os.close, root_fd)
        scratch = scratch or Scratch.make(spot, REPLAY)
        unused.pop_all()
    return StagedTree(spot.path, root_fd, scratch, purpose, _put_page)


class Target:
    """A target that is worked on. Use as a context manager; :meth:`finish` when all is done."""

    def __init__(
        self,
        path: Path,
        purpose: dict[str, Any],
        *,
        from_seq: int | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        """Open the directory *path* and close it to all others until :meth:`finish`. *purpose* says
        what for, and must be the same when a target is gone on with. With *from_seq*, which is
        where a replay begins, a target for seq 1 is made if it is not there, or must be empty. With
        *scratch*, which goes over to this object, the target is the tree in that. Raises
        TargetError, PrivilegeError."""
        check_root()
        self._is_finished = False
        with ExitStack() as stack:
            if scratch is None:
                self._spot: Spot | None = stack.enter_context(find_spot(path))
                self.stage = _stage_at(self._spot, purpose, from_seq)
            else:
                self._spot = None
                self.stage = StagedTree.within(scratch, purpose, _put_page)
            stack.callback(self.stage.close)
            self.path = self.stage.path
            self.resumed = self.stage.resumed
            self._page = self._open_page()
            stack.callback(self._page.close)
            self.done_seq, self._begun_seq = self._page.read()
            if from_seq == 1 and not self._begun_seq:
                self._check_still_empty()
            self._open_catalog(stack)
            self._open = stack.pop_all()
        self.tree = PlacedTree(os.dup(self.stage.root_fd), self.catalog, _DESCRIPTORS_MAX)
        self._open.callback(self.tree.close)
        self._applier = Applier(self.tree)
        self._has_unbound = self.resumed
        """True if the catalog may have files whose inode numbers are not known."""

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what is done so far, to go on from there."""
        if not self._is_finished:
            # Without it, what was done since the last commit is recorded again.
            with suppress(OSError):
                self.catalog.commit()
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def finish(self, *, is_flushed: bool = False) -> None:
        """All is done: open the target to others, as the journal has it, flush it (its root alone,
        where the rest *is_flushed*) and delete the scratch directory, if it is the target's own:
        else :meth:`lock` is to follow, when the tree has its place. Raises OSError, TargetError."""
        try:
            self.stage.open_root()
            if self._spot is not None:
                self.lock()
        except OSError as error:
            raise TargetError(self.path, error.strerror or "cannot be changed") from None
        self.stage.flush(is_flushed=is_flushed)
        self._is_finished = True
        if self._spot is not None:
            self.stage.discard(self._spot)

    def lock(self) -> None:
        """Make files immutable and append-only that are to be, as far as the file system has that.
        Until then none is, so that nothing is in the way of the work. Raises OSError."""
        for fid, flags in self.catalog.locked_files():
            self.bind(fid)
            self.tree.lock(fid, flags)

    def discard(self, spot: Spot) -> None:
        """Delete the scratch directory beside *spot*, with a tree that is in it. Raises OSError."""
        self._is_finished = True
        self.stage.discard(spot)

    def _open_page(self) -> ProgressPage:
        try:
            return ProgressPage(self.stage.scratch.open(_PROGRESS_FILE, os.O_RDWR))
        except (OSError, ValueError):
            raise self._spoilt_error() from None

    def _spoilt_error(self) -> TargetError:
        return TargetError(
            self.path, f"cannot be gone on with: {self.stage.scratch.path} is spoilt; delete both"
        )

    def _open_catalog(self, stack: ExitStack) -> None:
        try:
            self.catalog = Catalog(self.stage.scratch.catalog)
            stack.callback(self.catalog.close)
            if self.catalog.node(ROOT_FID) is None:
                self.catalog.add_root(b"", os.fstat(self.stage.root_fd).st_ino)
        except OSError as error:
            raise self._scratch_error(error) from None
        except CatalogSpoiltError:
            raise self._spoilt_error() from None

    # -- the root directory ------------------------------------------------------------------------

    def _check_still_empty(self) -> None:
        """Raises TargetError, with all as it was before, if its owner has made a name in it between
        the first look and when it was closed to him."""
        if is_empty(self.stage.root_fd):
            return
        assert self._spot is not None
        try:
            self.stage.open_root()
            self.stage.discard(self._spot)
        except OSError as error:
            raise TargetError(self.path, error.strerror or "cannot be changed") from None
        raise not_empty(self.path)

    def _postpone(self, operation: TreeOperation) -> TreeOperation | None:
        """Keep what *operation* does to the root's mode, owner and ACL for the end; what is left of
        it to be done now, or None. Raises OSError."""
        match operation:
            case Setattr(fid, mode, uid, gid, atime_ns, mtime_ns) if fid == ROOT_FID:
                if mode is not None or uid is not None or gid is not None:
                    self.stage.keep_root(_after(self.stage.root, operation))
                if atime_ns is None and mtime_ns is None:
                    return None
                return Setattr(fid, None, None, None, atime_ns, mtime_ns)
            case Setxattr() | Removexattr() if operation.fid == ROOT_FID:
                if operation.name == ACCESS_ACL_XATTR:
                    self.stage.keep_root(_after(self.stage.root, operation))
                    return None
        return operation

    # -- operations --------------------------------------------------------------------------------

    def record(self, operation: TreeOperation, seq: Seq, time_ns: int) -> None:
        """Take in an entry that the target has already."""
        self.catalog.record(operation, seq, time_ns)
        self._has_unbound = True
        self._commit_in_time()

    def record_base(self, tree: BaseTree) -> None:
        """Take in the tree at a journal's base, which the target has already."""
        for node in tree.nodes():
            self.catalog.record_base(node, tree.base)
            self._commit_in_time()
        self.catalog.end_base(tree.base)
        self._has_unbound = True

    def apply(
        self, operation: TreeOperation, seq: Seq, time_ns: int, data: bytes | memoryview
    ) -> None:
        """Carry out one operation. Raises ConflictError, TargetFullError, PrivilegeError,
        TargetError; the operation is then not done, and may be tried again."""
        if isinstance(operation, Moving) and not operation.flags & RENAME_EXCHANGE:
            # What it replaced in the journal's own tree may be missing here.
            there = self.catalog.lookup(operation.new_parent, operation.new_name)
            operation = operation._replace(replaced=there or Fid(0))
        if seq <= self.done_seq:
            # Done before the process died, after the catalog's last commit.
            self.record(operation, seq, time_ns)
            return
        redo = seq == self._begun_seq
        try:
            if redo:
                self._recall(operation)
            if self._has_unbound:
                self._bind(operation)
            if not redo and operation.kind in _NOTED:
                self._note(operation)
            self._page.write(self.done_seq, seq)
            self.tree.expect_redone(_moved_by(operation) if redo else ())
            now = self._postpone(operation)
            made = Made() if now is None else self._carry_out(now, time_ns, data, redo)
        except (OSError, ApplyBrokenError) as error:
            self._begun_seq = seq  # it may be tried again by this very process
            raise self._error(operation, seq, error) from error
        self.catalog.record(operation, seq, time_ns, made.handle, made.ino)
        if self.catalog.node(operation.fid) is None:
            self.tree.forget_descriptor(operation.fid)
        if isinstance(operation, Moving) and self.catalog.node(operation.replaced) is None:
            self.tree.forget_descriptor(operation.replaced)
        self.done_seq = seq
        self._page.write(seq, seq)
        self._commit_in_time()

    def _carry_out(
        self, operation: TreeOperation, time_ns: int, data: bytes | memoryview, redo: bool
    ) -> Made:
        # Flags that the file system lacks are left out: see apply_flags.py.
        redo = redo or isinstance(operation, SetFlags)
        try:
            return self._applier.apply(operation, time_ns, data, redo)
        except PermissionError:
            # An earlier replay may have left it locked.
            if not self.tree.unlock({*operation.touched_fids, *_moved_by(operation)}):
                raise
        return self._applier.apply(operation, time_ns, data, redo)

    def _commit_in_time(self) -> None:
        if self.catalog.changes >= COMMIT_CHANGES:
            try:
                self.catalog.commit()
            except OSError as error:
                raise self._scratch_error(error) from None

    def _scratch_error(self, error: OSError) -> TargetError:
        if error.errno in NO_SPACE:
            return TargetFullError(self.path, "no space left beside it; run the same again")
        return TargetError(self.stage.scratch.path, error.strerror or "cannot be written")

    def _note(self, operation: TreeOperation) -> None:
        """Keep what it takes to tell, after a kill, whether the operation was done: the inode
        numbers of what it is about, and the mtime of a directory that is to keep it."""
        node = self.catalog.node(operation.fid)
        other = self.catalog.node(operation.replaced) if isinstance(operation, Moving) else None
        mtime_ns = 0
        if isinstance(operation, _MTIME_KEPT):
            stat = self.tree.stat(operation.parent)
            mtime_ns = clamp_time(stat.st_mtime_ns)
        ino, other_ino = (one.ino if one is not None else 0 for one in (node, other))
        self._page.note(ino, other_ino, mtime_ns)

    def _recall(self, operation: TreeOperation) -> None:
        """Recalls, before an operation is redone, what :meth:`_note` kept. Its names may be others
        by now, so the inode numbers cannot be had from them. Raises OSError."""
        self._has_unbound = True
        if operation.kind not in _NOTED:
            return
        *inos, mtime_ns = self._page.recall()
        fids = (operation.fid, getattr(operation, "replaced", Fid(0)))
        for fid, ino in zip(fids, inos, strict=True):
            node = self.catalog.node(fid)
            if node is not None and ino:
                self.catalog.note_object(node, node.handle, ino)
        if isinstance(operation, _MTIME_KEPT):
            directory = operation.parent
            self.bind(directory)
            syscalls.set_times(self.tree.descriptor(directory), None, mtime_ns)

    def _bind(self, operation: TreeOperation) -> None:
        """Make sure of the files that were in the target before: their inode numbers are not
        known yet. Raises OSError."""
        for fid in operation.touched_fids:
            self.bind(fid)
        if isinstance(operation, Moving) and operation.replaced:
            self.bind(operation.replaced)

    def bind(self, fid: Fid) -> None:
        """Check that *fid* is where the catalog says and of the right type. Raises OSError."""
        node = self.catalog.node(fid)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if node.ino == 0:
            dentry = self.catalog.dentry(node)
            if dentry is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            stat = self.tree.stat_name(*dentry)
            if S_IFMT(stat.st_mode) != node.type:
                raise OSError(errno.EEXIST, "a file of another type")
            self.catalog.note_object(node, node.handle, stat.st_ino)

    def _error(
        self, operation: TreeOperation, seq: Seq, error: OSError | ApplyBrokenError
    ) -> FusejournalError:
        """Returns the error that an operation's failure is for the user."""
        number = (error.errno if isinstance(error, OSError) else error.number) or errno.EIO
        path = self._where(operation)
        reason = os.strerror(number)
        if number in NO_SPACE:
            return TargetFullError(
                self.path, f"no space left at seq {seq} ({path}); make some and run the same again"
            )
        if number in _REFUSED:
            return PrivilegeError(f"{path}: {reason} (seq {seq})")
        if number == errno.EOPNOTSUPP:
            return TargetError(self.path, f"its file system cannot hold what seq {seq} sets")
        if isinstance(error, ApplyBrokenError) or number == errno.EIO:
            return TargetError(path, f"seq {seq}: {error}")
        return ConflictError(
            f"seq {seq} ({operation.kind.name.lower()} {path}): {reason}; the target is not as the "
            "journal had it"
        )

    def _where(self, operation: TreeOperation) -> str:
        """The path in the target that *operation* is about, for messages."""
        if isinstance(operation, DataOperation | ImportData):
            path = self.catalog.path(operation.fid)
        else:
            directory = self.catalog.path(operation.parent)
            path = None if directory is None else os.path.join(directory, operation.name)
        return os.fsdecode(os.path.join(os.fsencode(self.path), path or b"?"))


def _after(root: RootAttributes, operation: Setattr | Setxattr | Removexattr) -> RootAttributes:
    """Returns what the root is to have after *operation*, too. It changes as the kernel's own do:
    an ACL brings the permission bits, which are its owner's, its mask's and others'."""
    if isinstance(operation, Setattr):
        return RootAttributes(
            root.mode if operation.mode is None else operation.mode,
            root.uid if operation.uid is None else operation.uid,
            root.gid if operation.gid is None else operation.gid,
            root.acl,
        )
    if isinstance(operation, Removexattr):
        return root._replace(acl=None)
    return root._replace(acl=operation.value, mode=root.mode & 0o7000 | mode_of(operation.value))


def _moved_by(operation: TreeOperation) -> tuple[Fid, ...]:
    """The file that *operation* is about, and the one that a Moving replaces."""
    if isinstance(operation, Moving):
        return operation.fid, operation.replaced
    return (operation.fid,)
