"""The making of what an undo brings back: files that are gone, made anew in its private directory,
whole, before they get their names. Of a tree only the topmost directory is to be moved then, so
that all of it is there at once."""

import os
import stat
from collections.abc import Collection, Iterator
from itertools import count, islice

from fusejournal.backing.apply_new import FLAGS_PATH
from fusejournal.disk import calls, syscalls
from fusejournal.history.file_states import rdev_of, target_of, type_of
from fusejournal.history.name_changes import Dentry
from fusejournal.replay.attributes import attribute_changes, set_new_attributes
from fusejournal.replay.undo_files import FLAGS_DIRECTORY, UndoFiles
from fusejournal.replay.wanted import WantedFile, WantedFiles
from fusejournal.types import ROOT_FID, Fid

_BATCH_FILES = 2048
_FLAGS_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class UndoMaker:
    """Makes files anew in the volume of *files*, as *wanted* has them."""

    def __init__(self, files: UndoFiles, wanted: WantedFiles) -> None:
        self._files = files
        self._wanted = wanted
        self._numbers = count()
        self.mtimes: dict[Fid, int] = {}
        """The mtimes that new directories are to have, by their fids in the plan."""

    def make(self, wanted: dict[Dentry, Fid | None], new: set[Fid]) -> dict[Dentry, bytes]:
        """Make all that is gone: what has its place in a new directory there, and all else in the
        private directory. Returns the names in that, by the dentries that they are for."""
        inside: dict[Fid, list[tuple[bytes, Fid]]] = {}
        staged: dict[Dentry, bytes] = {}
        for dentry, fid in wanted.items():
            if fid is None:
                continue
            if dentry[0] in new and fid in new:
                inside.setdefault(dentry[0], []).append((dentry[1], fid))
            elif fid in new:
                staged[dentry] = self.name(fid)
        directories: list[Fid] = []
        files: list[tuple[Fid, bytes, Fid]] = []
        # ROOT_FID stands for the private directory here.
        level = [(ROOT_FID, name, wanted[dentry]) for dentry, name in staged.items()]
        while level:
            below: list[tuple[Fid, bytes, Fid | None]] = []
            for parent, name, fid in level:
                assert fid is not None
                if self._files.types[fid] != stat.S_IFDIR:
                    files.append((parent, name, fid))
                    continue
                self._files.step("mkdir")
                self._make_directory(parent, name, fid)
                directories.append(fid)
                below += [(fid, child, one) for child, one in inside.get(fid, ())]
            level = below
        self._make_files(files)
        self._finish_directories(directories)
        return staged

    def name(self, fid: Fid) -> bytes:
        """A new name for *fid* in the private directory."""
        return b"%d.%d" % (fid, next(self._numbers))

    def _parent(self, fid: Fid) -> int:
        return self._files.staging if fid == ROOT_FID else self._files.directory(fid)

    def _make_directory(self, parent: Fid, name: bytes, fid: Fid) -> None:
        directory = self._parent(parent)
        os.mkdir(name, 0o700, dir_fd=directory)
        fd = os.open(name, FLAGS_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        self._files.note_made(fid, fd)

    def _finish_directories(self, fids: list[Fid]) -> None:
        """Attributes, last, because what is made in a directory would inherit them and change its
        mtime."""
        self.mtimes = times = self._wanted.mtimes(fids)
        for batch in batches(fids):
            wanted = self._wanted.files(batch, self._files.tick)
            for fid in batch:
                self._files.step("attributes")
                fd = self._files.directory(fid)
                for change in attribute_changes(fd, wanted[fid].state):
                    change()
                if fid in times:
                    syscalls.set_times(fd, None, times[fid])

    def _make_files(self, files: list[tuple[Fid, bytes, Fid]]) -> None:
        """Make files at (directory, name, fid); those with several dentries are linked."""
        first: dict[Fid, tuple[Fid, bytes]] = {}
        links: list[tuple[Fid, bytes, Fid]] = []
        for parent, name, fid in files:
            if fid in first:
                links.append((parent, name, fid))
            else:
                first[fid] = parent, name
        for batch in batches(first):
            wanted = self._wanted.files(batch, self._files.tick, with_data=True)
            for fid in batch:
                self._files.step("make")
                parent, name = first[fid]
                self._make_file(wanted.pop(fid), self._parent(parent), name)
        for parent, name, fid in links:
            self._files.step("link")
            there, known = first[fid]
            os.link(
                known, name, src_dir_fd=self._parent(there), dst_dir_fd=self._parent(parent),
                follow_symlinks=False,
            )  # fmt: skip

    def _make_file(self, wanted: WantedFile, directory: int, name: bytes) -> None:
        """Make a file that is no directory, as it is *wanted*."""
        state = wanted.state
        assert state.maker is not None
        kind, mode = type_of(state.maker), state.permissions().mode or 0
        # The mode as far as it can be now: a later write or chown would clear the rest.
        mode &= 0o777
        target = target_of(state.maker)
        if kind == stat.S_IFREG:
            fd = os.open(name, _FLAGS_NEW, mode, dir_fd=directory)
        else:
            if target is not None:
                os.symlink(target, name, dir_fd=directory)
            else:
                os.mknod(name, kind | mode, rdev_of(state.maker), dir_fd=directory)
            fd = os.open(name, FLAGS_PATH, dir_fd=directory)
        try:
            if kind == stat.S_IFREG:
                end = 0
                for offset, data in wanted.pieces():
                    self._files.step("write")
                    calls.write_all("undo.make.write", fd, data, offset)
                    end = max(end, offset + len(data))
                if state.size != end:
                    calls.ftruncate("undo.make.truncate", fd, state.size)
            set_new_attributes(fd, state, mode)
            assert state.mtime_ns is not None
            syscalls.set_times(fd, None, state.mtime_ns)
        finally:
            os.close(fd)


def batches(fids: Collection[Fid]) -> Iterator[list[Fid]]:
    """Yields *fids*, so many at a time that what is read about them is no burden."""
    left = iter(fids)
    while batch := list(islice(left, _BATCH_FILES)):
        yield batch
