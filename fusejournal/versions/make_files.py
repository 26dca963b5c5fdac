"""The making of a version's files in a new directory, by one process: each in one go, from its
record and its chunks.

Nothing here asks what a file was made of before. A directory is made when the first name in it is,
closed to all but root; what it is to have comes when all names are there, because each of them
changes its mtime. A file is opened, written, and given owner, xattrs, mode and times, in that
order: a change of owner takes capabilities away, and an ACL brings a mode.

Source: open(2), mknod(2), chown(2), xattr(7), acl(5), utimensat(2)."""

import os
from collections.abc import Iterator
from contextlib import suppress
from stat import S_IFDIR, S_IFLNK, S_IFREG, S_IMODE
from typing import TYPE_CHECKING, NamedTuple

from fusejournal.backing.set_flags import set_locks, set_what_can_be
from fusejournal.disk import calls, failpoints, syscalls
from fusejournal.disk.acls import XFS_OWN_XATTRS
from fusejournal.errors import TargetError
from fusejournal.file_operations import LOCKING_FLAGS
from fusejournal.types import Fid
from fusejournal.versions.read_ahead import ReadingThreads, pieces_of, read_ahead
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.selection import Selection
from fusejournal.versions.version_tree import VersionTree

if TYPE_CHECKING:
    from fusejournal.history.name_changes import Dentry

_FLAGS_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_DESCRIPTORS_MAX = 256


class MadeFiles(NamedTuple):
    """The made files that are to be seen to later."""

    directories: list[Fid]
    locked: list[Fid]
    """The files that are to be immutable or append-only at the end."""


class FileMaker:
    """Makes files of *tree*, which *selection* has, in the directory that *root_fd* is open on. All
    methods raise OSError, TargetError, StoreDamagedError, StoreError."""

    def __init__(
        self, tree: VersionTree, selection: Selection, root_fd: int, *, flush: bool = False
    ) -> None:
        """*flush*: each regular file is to be on the disk when it is made."""
        self._flush = flush
        self._tree = tree
        self._selection = selection
        self._root_fd = root_fd
        self._top = selection.top
        self._open: dict[Fid, int] = {}
        """Descriptors of directories, those used last at the end."""

    def close(self) -> None:
        """Closes the descriptors."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def make(
        self,
        records: Iterator[InodeRecord],
        pool: ReadingThreads,
        *,
        is_done: bool = False,
        again: bool = False,
    ) -> MadeFiles:
        """Makes the files with *records*, each under all its names; of directories the names alone.
        *pool* reads their contents ahead. *again*: some of them may be there, in part: they are
        made anew. *is_done*: they are there, and are only listed."""
        made = MadeFiles([], [])
        wanted = self._listed(records, made)
        if is_done:
            for _ in wanted:
                pass
            return made
        fd = -1
        pieces = (piece for record in wanted for piece in pieces_of(self._tree, record))
        for record, start, data, is_last in read_ahead(self._tree.blocks, pieces, pool):
            if record.type != S_IFREG:
                self._make_other(record, again)
                continue
            if fd < 0:
                fd = self._create(record, again)
            try:
                if data:
                    calls.write_all("restore.write", fd, data, start)
                if is_last:
                    self._finish_file(record, fd, start + len(data))
            except BaseException:
                os.close(fd)
                raise
            if is_last:
                os.close(fd)
                fd = -1
                if len(record.links) > 1:
                    self._link(record, again)
        return made

    def _listed(self, records: Iterator[InodeRecord], made: MadeFiles) -> Iterator[InodeRecord]:
        """Yields those that are no directories, and notes in *made* what is to be seen to later."""
        for record in records:
            if record.fid == self._top:
                continue
            if record.file_flags & LOCKING_FLAGS:
                made.locked.append(record.fid)
            if record.type == S_IFDIR:
                self._directory(record.fid)
                made.directories.append(record.fid)
            else:
                yield record

    def _names(self, record: InodeRecord) -> "list[Dentry]":
        if len(record.links) == 1:
            return list(record.links)
        return [link for link in record.links if self._selection.is_within(link[0])]

    def _create(self, record: InodeRecord, again: bool) -> int:
        """Returns a descriptor of the new regular file."""
        parent, name = self._names(record)[0]
        directory = self._directory(parent)
        if again:
            _remove(name, directory)
        failpoints.reached("restore.create")
        return os.open(name, _FLAGS_NEW, 0o600, dir_fd=directory)

    def _finish_file(self, record: InodeRecord, fd: int, written: int) -> None:
        if written != record.size:
            calls.ftruncate("restore.truncate", fd, record.size)
        _set_attributes(record, fd, fd)
        if self._flush:
            calls.fsync("restore.sync", fd)

    def _make_other(self, record: InodeRecord, again: bool) -> None:
        """Makes a symlink or a node."""
        parent, name = self._names(record)[0]
        directory = self._directory(parent)
        if again:
            _remove(name, directory)
        failpoints.reached("restore.node")
        if record.target is not None:
            os.symlink(record.target, name, dir_fd=directory)
        else:
            os.mknod(name, record.type | 0o600, record.rdev, dir_fd=directory)
        fd = os.open(name, _FLAGS_PATH, dir_fd=directory)
        try:
            _set_attributes(record, fd, syscalls.descriptor_path(fd))
        finally:
            os.close(fd)
        self._link(record, again)

    def _link(self, record: InodeRecord, again: bool) -> None:
        """Gives the file its further names."""
        (parent, name), *others = self._names(record)
        if not others:
            return
        # Its own descriptor: the way to another directory may take all that are kept.
        here = os.dup(self._directory(parent))
        try:
            for other_parent, other in others:
                there = self._directory(other_parent)
                if again:
                    _remove(other, there)
                failpoints.reached("restore.link")
                os.link(name, other, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
        finally:
            os.close(here)

    def finish_directory(self, fid: Fid) -> int:
        """Gives directory *fid*, in which all names are, what it is to have. Returns how many there
        are. Raises TargetError where they are others than the version has."""
        fd = self._directory(fid)
        names = self._check_names(fid, fd)
        if fid != self._top:
            failpoints.reached("restore.directory.finish")
            _set_attributes(self._selection.record(fid), fd, fd)
        return names

    def _check_names(self, fid: Fid, fd: int) -> int:
        """Returns how many names are in directory *fid*. Raises TargetError where they are others
        than the version has."""
        found = set(syscalls.list_directory(fd))
        wanted = self._selection.names(fid)
        if found != wanted:
            shown = os.fsdecode(min(found ^ wanted))
            raise TargetError(
                os.fsdecode(shown), "is not as made: another process was at work on the target"
            )
        return len(found)

    def lock(self, fid: Fid) -> None:
        """Makes *fid* immutable or append-only, as its record says, as far as its file system has
        that."""
        record = self._selection.record(fid)
        parent, name = self._names(record)[0]
        fd = os.open(name, _FLAGS_READ, dir_fd=self._directory(parent))
        try:
            with suppress(OSError):
                set_locks(fd, record.file_flags)
        finally:
            os.close(fd)

    def _directory(self, fid: Fid) -> int:
        """Returns a descriptor of directory *fid*, which is made if it is not there, with those
        above it. Good until the next call."""
        if fid == self._top:
            return self._root_fd
        fd = self._open.pop(fid, -1)
        if fd >= 0:
            self._open[fid] = fd
            return fd
        way: list[Dentry] = []
        at = fid
        while at != self._top and at not in self._open:
            parent, name = self._tree.record(at).links[0]
            way.append((at, name))
            at = parent
        fd = self._root_fd if at == self._top else self._open[at]
        for at, name in reversed(way):
            fd = _make_directory(name, fd)
            self._open[at] = fd
            if len(self._open) > _DESCRIPTORS_MAX:
                os.close(self._open.pop(next(iter(self._open))))
        return fd


def _make_directory(name: bytes, above: int) -> int:
    """Returns a descriptor of directory *name*, which others may be making as well."""
    try:
        return os.open(name, _FLAGS_DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        failpoints.reached("restore.directory")
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
    return os.open(name, _FLAGS_DIRECTORY, dir_fd=above)


def _set_attributes(record: InodeRecord, fd: int, path: int | str) -> None:
    """Gives the file open as *fd*, which is found by *path* too, what its record has, but for
    locks."""
    assert record.mode is not None
    assert record.uid is not None
    assert record.gid is not None
    failpoints.reached("restore.attributes")
    syscalls.chown(fd, record.uid, record.gid)
    for name, value in record.xattrs:
        if name not in XFS_OWN_XATTRS:  # of an import of an earlier version's
            os.setxattr(path, name, value)
    if record.type != S_IFLNK:
        os.chmod(path, S_IMODE(record.mode))
    if record.file_flags and record.type in (S_IFREG, S_IFDIR):
        set_what_can_be(fd, record.file_flags)
    syscalls.set_times(fd, None, record.mtime_ns)


def _remove(name: bytes, directory: int) -> None:
    with suppress(FileNotFoundError):
        failpoints.reached("restore.remove")
        os.unlink(name, dir_fd=directory)
