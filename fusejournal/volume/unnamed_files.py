"""Files that are made without a name (O_TMPFILE), and may get one later (linkat).

As long as such a file has no name, nothing that is done to it is journaled, as with one that has
lost its last name: no other process sees it. When it gets a name, entries record what it is by
then: a CREATE under that name, which in the backing is but a further link, then WRITEs of all its
content, its attributes, and its mtime. They come in one go, or, of a large file, in pieces between
which others are served; the caller is answered when the last is there.

A process may die in the midst of that. So the file keeps its name in the hidden directory until all
is journaled; the next process finds it there, and journals it all again. (Its mtime is then that of
the entry in which the first one died, which recovery has carried out.)

Its fid is the kernel's name for it from the beginning, so fids are reserved in the journal
beforehand, many at once.

Called from the event loop's thread only; on primaries only.

Source: open(2), linkat(2), fuse(4)."""

import os
from collections.abc import Iterator
from contextlib import suppress
from stat import S_IMODE
from typing import Final

from fusejournal.backing.fid_tag import xattr_names
from fusejournal.disk import calls, syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR
from fusejournal.errors import ApplyBrokenError
from fusejournal.file_operations import SetFlags
from fusejournal.operations import Create, Setattr, Setxattr, Truncate, Unlink, Write
from fusejournal.types import SYSTEM_CALLER, Caller, Fid, clamp_time
from fusejournal.volume.volume import Volume

_RESERVED_FIDS: Final = 1024
_PIECE_BYTES: Final = 1 << 20


class UnnamedFiles:
    """The files of *volume* that have no name yet."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._next = self._end = Fid(0)

    def new_fid(self) -> Fid:
        """Returns a fid for a new one, which is never given again. Raises OSError."""
        if self._next >= self._end:
            self._next = self._volume.reserve_fids(_RESERVED_FIDS)
            self._end = Fid(self._next + _RESERVED_FIDS)
        self._next = Fid(self._next + 1)
        return Fid(self._next - 1)

    def name(self, fid: Fid, parent: Fid, name: bytes, who: Caller) -> Iterator[None]:
        """Give *fid* the first name. Yields between pieces of its content: a caller that begins
        must go on to the end. Raises OSError, and the file has no name then."""
        volume, fd = self._volume, self._volume.tree.descriptor(fid)
        stat, acl = os.fstat(fd), _xattr(fd, ACCESS_ACL_XATTR)
        made = Create(fid, parent, name, stat.st_mode, stat.st_uid, stat.st_gid, 0, acl)
        volume.commit(made, who)
        with volume.coming_in_pieces():
            try:
                yield from self._journal(fid, who)
            except OSError as error:
                self._take_back(Unlink(fid, parent, name), who, error)
                raise
        self._end_hiding(fid)

    def _take_back(self, naming: Unlink, who: Caller, error: OSError) -> None:
        """Take the name away again, because of *error*; where that cannot be, the volume fails."""
        try:
            self._volume.commit(naming, who)  # a removal needs no space but the reserve's
        except OSError as refusal:
            self._volume.fail(f"fid {naming.fid} is named, not journaled: {error}; {refusal}")
        else:
            self._volume.tree.unnamed.add(naming.fid)

    def _end_hiding(self, fid: Fid) -> None:
        """Take the hidden directory's name away, unless *fid* has lost its name meanwhile."""
        tree = self._volume.tree
        try:
            if not tree.is_orphan(fid):
                tree.reveal(fid)
        except ApplyBrokenError as error:
            self._volume.fail(str(error))

    def finish(self, fid: Fid) -> None:
        """Journal *fid*, which a process that died has given its first name. Where that cannot be,
        the volume fails."""
        try:
            for _ in self._journal(fid, SYSTEM_CALLER):
                pass
        except OSError as error:
            self._volume.fail(f"fid {fid}, which was given a name, could not be journaled: {error}")
        else:
            self._end_hiding(fid)

    def _journal(self, fid: Fid, who: Caller) -> Iterator[None]:
        """Append entries that tell content, xattrs, mode and mtime of *fid*; ends where others have
        taken its name away meanwhile."""
        volume = self._volume
        at = 0
        while (piece := _next_piece(volume.tree.descriptor(fid), at)) is not None:
            offset, data = piece
            volume.journal_existing(Write(fid, offset, None), data=data, who=who)
            at = offset + len(data)
            yield
            if volume.catalog.node(fid) is None:
                return
        fd = volume.tree.descriptor(fid)
        stat = os.fstat(fd)
        if stat.st_size != at:
            volume.journal_existing(Truncate(fid, stat.st_size, None), who=who)
        for name in xattr_names(fd):
            if name != ACCESS_ACL_XATTR:
                volume.journal_existing(Setxattr(fid, name, os.getxattr(fd, name)), who=who)
        mtime_ns = clamp_time(stat.st_mtime_ns)
        if mtime_ns != stat.st_mtime_ns:
            syscalls.set_times(fd, None, mtime_ns)
        mode = S_IMODE(stat.st_mode)
        volume.journal_existing(Setattr(fid, mode, None, None, None, mtime_ns), who=who)
        if flags := volume.tree.node(fid).file_flags:
            volume.journal_existing(SetFlags(fid, flags), who=who)


def _next_piece(fd: int, at: int) -> tuple[int, bytes] | None:
    """The next data from *at* on, and where it is; None where only a hole is left."""
    found = next(calls.data_ranges(fd, at, os.fstat(fd).st_size), None)
    if found is None:
        return None
    start, end = found
    data = os.pread(fd, min(_PIECE_BYTES, end - start), start)
    return (start, data) if data else None


def _xattr(fd: int, name: bytes) -> bytes | None:
    with suppress(OSError):
        return os.getxattr(fd, name)
    return None
