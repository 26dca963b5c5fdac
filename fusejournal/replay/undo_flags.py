"""File flags, over an undo: files that are immutable or append-only are neither while it works, and
in the end all have the flags that they are to have.

They are set through the mount, as everything that an undo does: where one is stopped in between,
the next takes back what it has done of that, too."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from fusejournal.disk import syscalls
from fusejournal.errors import ConflictError
from fusejournal.file_operations import JOURNALED_FLAGS, LOCKING_FLAGS
from fusejournal.history.name_changes import Dentry
from fusejournal.replay.undo_files import UndoFiles
from fusejournal.replay.wanted import WantedFiles
from fusejournal.types import Fid

_FLAGS_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class UndoFlags:
    """The flags of *files*, as they are, and as they are to be by *wanted*."""

    def __init__(self, files: UndoFiles, wanted: WantedFiles) -> None:
        self._files = files
        self._wanted = wanted
        self._now: dict[Fid, int] = {}

    @contextmanager
    def lifted(self, fids: Collection[Fid]) -> Iterator[None]:
        """Keeps *fids*, which are there, from being immutable or append-only during the block.
        After a failure they are as they were. Raises ConflictError, OSError."""
        before = self._wanted.flags_now(fids)
        self._now = dict(before)
        try:
            for fid, flags in before.items():
                if flags & LOCKING_FLAGS:
                    self._files.step("unlock")
                    self._change(fid, flags & ~LOCKING_FLAGS)
            yield
        except BaseException:
            for fid, flags in before.items():
                with suppress(ConflictError, OSError):  # what has failed is the first thing to say
                    self._change(fid, flags)
            raise

    def set(self, new: dict[Fid, Dentry]) -> None:
        """Give all flags that they are to have: those of :meth:`lifted`, where they are there, and
        the *new* files, by their names. Raises ConflictError, OSError."""
        wanted = self._wanted.flags({*self._now, *new})
        for fid, flags in wanted.items():
            dentry = new.get(fid)
            if dentry is None and flags != self._now[fid]:
                self._files.step("flags")
                with suppress(ConflictError):  # it may be gone, which was wanted
                    self._change(fid, flags)
            elif dentry is not None and flags:
                self._files.step("flags")
                directory = self._files.directory(dentry[0])
                fd = os.open(dentry[1], _FLAGS_OPEN, dir_fd=directory)
                try:
                    _set(fd, flags)
                finally:
                    os.close(fd)

    def _change(self, fid: Fid, flags: int) -> None:
        with self._files.opened(fid, _FLAGS_OPEN) as fd:
            self._files.change(fid, fd, partial(_set, fd, flags))
        self._now[fid] = flags


def _set(fd: int, flags: int) -> None:
    syscalls.set_file_flags(fd, syscalls.get_file_flags(fd) & ~JOURNALED_FLAGS | flags)
