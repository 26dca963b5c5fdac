"""Restore of a version: the tree, a directory or a file, made from the version's records and chunks
alone. A restore that was stopped goes on where it was, as every one does (replay/restore.py)."""

import errno
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from stat import S_IFDIR, S_IMODE
from uuid import UUID

from fusejournal.disk.errnos import NO_SPACE
from fusejournal.errors import PrivilegeError, TargetError, TargetFullError
from fusejournal.file_operations import SetFlags
from fusejournal.operations import Setattr, Setxattr
from fusejournal.replay.fold import Step, carry_out
from fusejournal.replay.restore import Filled, Restored, restore_into
from fusejournal.replay.target import Target
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

    Raises PathNotFoundError, StoreDamagedError, StoreError, and what restore_into raises; *target*
    is not there then."""
    tree = VersionTree(blocks.by_windows(), trees)
    record = tree.find(path)
    purpose: dict[str, object] = {
        "restore": path.decode("utf-8", "surrogateescape"),
        "volume": str(uuid),
        "version": root_hash(uuid, RULE, trees),
        "units": UNITS_FORMAT,
    }

    def fill(stage: Target) -> Filled:
        stage.clear_acls()
        name = b""
        selection: Selection
        # To flush all of a file system that others write to is a lot more than one file.
        is_one = record.type != S_IFDIR
        if is_one:
            name = path.rpartition(b"/")[2]
            selection = OneFile(record, name)
        elif record.fid == ROOT_FID:
            selection = WholeTree(tree)
        else:
            selection = PartOfTree(tree, record.fid)
        try:
            with closing(Marks(stage.open_marks(), selection.units)) as marks:
                made = make_tree(tree, selection, stage.root_fd, marks, progress, flush=is_one)
        except OSError as error:
            raise _error(stage, error) from None
        if not is_one:
            carry_out(stage, _root_steps(record), progress)

        def lock() -> None:
            stage.lock()
            with closing(FileMaker(tree, selection, stage.root_fd)) as maker:
                for locked in made.locked:
                    maker.lock(locked)

        return Filled(name.decode("utf-8", "surrogateescape"), made.names, lock, is_flushed=is_one)

    return restore_into(target, purpose, fill)


def _error(stage: Target, error: OSError) -> Exception:
    """Returns the error that a failed call is for the user."""
    reason = error.strerror or str(error)
    if error.errno in NO_SPACE:
        return TargetFullError(stage.path, "no space left; make some and run the same again")
    if error.errno in _REFUSED:
        return PrivilegeError(f"{stage.path}: {reason}")
    if error.errno == errno.EOPNOTSUPP:
        return TargetError(stage.path, "its file system cannot hold what the version has")
    return TargetError(stage.path, f"{reason}: run the same again to go on")


def _root_steps(record: InodeRecord) -> Iterator[Step]:
    """Yields the steps to the attributes of the target's root."""
    if record.mode is None:
        return
    mode = S_IMODE(record.mode)
    yield Step(Setattr(ROOT_FID, mode, record.uid, record.gid, None, None), 0)
    for name, value in record.xattrs:
        yield Step(Setxattr(ROOT_FID, name, value), 0)
    # An ACL sets the mode, and what is made below leaves the mtime as it is.
    yield Step(Setattr(ROOT_FID, mode, None, None, None, record.mtime_ns), 0)
    if record.file_flags:
        yield Step(SetFlags(ROOT_FID, record.file_flags), 0)
