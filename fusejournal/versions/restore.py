"""Restore of a version: the tree, a directory or a file, made from the version's records and chunks
alone. A restore that was stopped goes on where it was, as every one does (replay/restore.py)."""

import errno
import os
from contextlib import closing, suppress
from pathlib import Path
from stat import S_IFDIR, S_IMODE
from uuid import UUID

from fusejournal.backing.set_flags import set_locks, set_what_can_be
from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, XFS_OWN_XATTRS
from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import PrivilegeError, TargetError, TargetFullError
from fusejournal.file_operations import LOCKING_FLAGS
from fusejournal.replay.made_aside import Filled, Restored, check_names_directory, make_aside
from fusejournal.replay.root_attributes import RootAttributes
from fusejournal.replay.scratch import Scratch, Spot
from fusejournal.replay.staged_tree import StagedTree
from fusejournal.types import ROOT_FID, Progress
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.chunker import RULE
from fusejournal.versions.make_files import FileMaker
from fusejournal.versions.make_tree import Marks, make_tree
from fusejournal.versions.manifest import Version, root_hash
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.selection import (
    UNITS_FORMAT,
    OneFile,
    PartOfTree,
    Selection,
    WholeTree,
)
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree

_REFUSED = frozenset({errno.EPERM, errno.EACCES})


def restore_version(
    blocks: BlockReader, version: Version, path: bytes, target: Path, progress: Progress
) -> Restored:
    """Restores *path* of *version*: see :func:`restore_trees`."""
    return restore_trees(blocks, version.uuid, version.trees, path, target, progress)


def restore_trees(
    blocks: BlockReader, uuid: UUID, trees: Trees, path: bytes, target: Path, progress: Progress
) -> Restored:
    """Restores a part of a version, or all of it, as a new directory; one file lies in it by its
    name.

    Args:
        blocks: where the version lies.
        uuid, trees: the volume, and its trees as the version has them.
        path: of the part; ``b""``: the whole tree.
        target: the directory.
        progress: gets the files done.

    Raises PathNotFoundError, StoreDamagedError, StoreError, and what make_aside raises; *target*
    is not there then."""
    tree = VersionTree(blocks.by_windows(), trees)
    record = tree.find(path)
    name = path.rpartition(b"/")[2]
    # To flush all of a file system that others write to is a lot more than one file.
    is_one = record.type != S_IFDIR
    if is_one:
        check_names_directory(target, name)
    purpose = {
        "restore": path.decode("utf-8", "surrogateescape"),
        "volume": str(uuid),
        "version": root_hash(uuid, RULE, trees),
        "units": UNITS_FORMAT,
    }

    def open_stage(_: Spot, scratch: Scratch) -> StagedTree:
        return StagedTree.within(scratch, purpose)

    def fill(stage: StagedTree) -> Filled:
        stage.clear_acls()
        selection: Selection
        if is_one:
            selection = OneFile(record, name)
        elif record.fid == ROOT_FID:
            selection = WholeTree(tree)
        else:
            selection = PartOfTree(tree, record.fid)
        try:
            with closing(Marks(stage.open_marks(), selection.units)) as marks:
                made = make_tree(tree, selection, stage.root_fd, marks, progress, flush=is_one)
            if not is_one:
                _set_root(stage, record)
        except OSError as error:
            raise _error(stage, error) from None

        def lock() -> None:
            if not is_one and record.file_flags & LOCKING_FLAGS:
                with suppress(OSError):  # as far as the file system has that
                    set_locks(stage.root_fd, record.file_flags)
            with closing(FileMaker(tree, selection, stage.root_fd)) as maker:
                for locked in made.locked:
                    maker.lock(locked)

        filled = os.fsdecode(name) if is_one else ""
        return Filled(filled, made.names, lock, is_flushed=is_one)

    return make_aside(target, purpose, open_stage, fill)


def _error(stage: StagedTree, error: OSError) -> Exception:
    """Returns the error that a failed call is for the user."""
    reason = error.strerror or str(error)
    if error.errno in NO_SPACE:
        return TargetFullError(stage.path, "no space left; make some and run the same again")
    if error.errno in _REFUSED:
        return PrivilegeError(f"{stage.path}: {reason}")
    if error.errno == errno.EOPNOTSUPP:
        return TargetError(stage.path, "its file system cannot hold what the version has")
    return TargetError(stage.path, f"{reason}: run the same again to go on")


def _set_root(stage: StagedTree, record: InodeRecord) -> None:
    """Gives the target's root what its record has. Mode, owner and ACL are for the end. Raises
    OSError."""
    if record.mode is None:
        return
    assert record.uid is not None
    assert record.gid is not None
    acl = None
    for name, value in record.xattrs:
        if name == ACCESS_ACL_XATTR:
            acl = value
        elif name not in XFS_OWN_XATTRS:
            os.setxattr(stage.root_fd, name, value)
    if record.file_flags:
        set_what_can_be(stage.root_fd, record.file_flags)
    # What is made below leaves the mtime as it is.
    syscalls.set_times(stage.root_fd, None, record.mtime_ns)
    stage.keep_root(RootAttributes(S_IMODE(record.mode), record.uid, record.gid, acl))
