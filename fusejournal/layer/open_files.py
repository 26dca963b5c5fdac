"""The open files of a mount: for each handle that the kernel has, the file and who opened it.

A WRITE request says neither who writes nor to which file, only by which handle; so what the handles
mean must outlast the process where the mount does. They are kept in a table in memory that belongs
to no process (memfd_create(2)): connection.py hands it on together with the mount. With the
machine it is gone, as the mount is.

The answer to an OPEN may be lost with the process that made it; then no process will ever use or
close the handle. So a handle counts as open only once its answer has gone out; what the process
before this one left unanswered is kept in doubt until the kernel names it."""

import errno
import mmap
import os
import struct

from fusejournal.types import Caller, Fid

_SLOT = struct.Struct("<QIIqB7x")
"""Fid (0: free), uid, gid, pid of the opener, 1 once it is answered; the handle is the slot's
number and one more."""
_ANSWERED_OFFSET = 24
assert _SLOT.size == 32  # a page holds whole slots
_SLOTS = 1 << 20
"""More than a machine can have open; what is beyond is not kept. Only what is used takes memory."""


def new_table() -> int:
    """The descriptor of an empty table."""
    fd = os.memfd_create("fusejournal-opens")
    os.ftruncate(fd, _SLOTS * _SLOT.size)
    return fd


class OpenFiles:
    """The open files by the table *fd*. A handle is free again when it was released."""

    def __init__(self, fd: int) -> None:
        self._table = mmap.mmap(fd, _SLOTS * _SLOT.size)
        self._files: dict[int, tuple[Fid, Caller]] = {}
        self._counts: dict[Fid, int] = {}
        self._doubtful: dict[int, tuple[Fid, Caller]] = {}
        self._free: list[int] = []
        self._next = 1
        self._load(fd)

    def _load(self, fd: int) -> None:
        """Go on from what the process before this one left."""
        # Handles are given from 1 on: what was ever used lies before the first hole.
        used = os.pread(fd, os.lseek(fd, 0, os.SEEK_HOLE), 0)
        for number, (fid, *who, answered) in enumerate(_SLOT.iter_unpack(used)):
            if fid:
                self._free += range(self._next, number + 1)
                self._next = number + 2
                if answered:
                    self._keep(number + 1, Fid(fid), Caller(*who))
                else:
                    self._doubtful[number + 1] = Fid(fid), Caller(*who)

    def _keep(self, handle: int, fid: Fid, who: Caller) -> None:
        self._files[handle] = fid, who
        self._counts[fid] = self._counts.get(fid, 0) + 1

    def __getitem__(self, handle: int) -> tuple[Fid, Caller]:
        """The file that *handle* is open on, and who opened it. Raises OSError ESTALE where that is
        not known: the process that opened it had no room to keep it."""
        try:
            return self._files[handle]
        except KeyError:
            if handle not in self._doubtful:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        self._keep(handle, *self._doubtful.pop(handle))
        self.answered(handle)
        return self._files[handle]

    def __contains__(self, fid: Fid) -> bool:
        """Returns True if *fid* is open."""
        return fid in self._counts

    def fids(self) -> set[Fid]:
        """The files that are open, or may be: all that the process before this one left."""
        return {*self._counts, *(fid for fid, _ in self._doubtful.values())}

    def add(self, fid: Fid, who: Caller) -> int:
        """A new handle for *fid*, opened by *who*; :meth:`answered` follows."""
        if self._free:
            handle = self._free.pop()
        else:
            handle = self._next
            self._next += 1
        self._keep(handle, fid, who)
        if handle <= _SLOTS:
            _SLOT.pack_into(self._table, (handle - 1) * _SLOT.size, fid, *who, 0)
        return handle

    def answered(self, handle: int) -> None:
        """The kernel has got *handle*. Harmless when it was closed since."""
        if handle <= _SLOTS and handle in self._files:
            self._table[(handle - 1) * _SLOT.size + _ANSWERED_OFFSET] = 1

    def remove(self, handle: int) -> tuple[Fid, bool]:
        """Let *handle* go; its fid, and whether that is still open by another. Raises OSError
        ESTALE."""
        fid, _ = self[handle]
        del self._files[handle]
        self._free.append(handle)
        left = self._counts[fid] - 1
        if left:
            self._counts[fid] = left
        else:
            del self._counts[fid]
        if handle <= _SLOTS:
            _SLOT.pack_into(self._table, (handle - 1) * _SLOT.size, 0, 0, 0, 0, 0)
        return fid, left > 0
