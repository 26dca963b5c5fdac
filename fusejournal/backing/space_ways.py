"""The ways of fallocate(2) that a backing's file system has, and space that is taken ahead of an
allocation.

A caller is refused what the backing cannot do, as without a layer: some programs then take another
way of their own. (An entry of another node is carried out in any case: apply_space.py.)

tmpfs takes a second for a gigabyte, ext4 for 300 (measured), and an entry is carried out without a
pause. So the space of a large one is taken before, piece by piece, and others are served in
between: blocks that no caller sees are no change.

Source: fallocate(2), open(2) (O_TMPFILE)."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from fusejournal.backing.limits import unnamed_file
from fusejournal.disk import calls

_NO_WAY = frozenset((errno.EOPNOTSUPP, errno.ENOSYS))
_TRIED_BYTES = 1 << 16
AT_ONCE_BYTES_MAX: Final = 32 << 20
"""The length of an allocation up to which no space is taken ahead."""
_PIECE_BYTES: Final = 8 << 20
_PIECE_SECONDS: Final = 0.004
_LEFT_BYTES: Final = 256 << 20
"""The space that must be left, or the file system alone decides about the whole."""


class SpaceWays:
    """The ways of the file system that directory *root_fd* is on. Each is tried when it is asked
    for first, on a file that has no name."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._known: dict[int, bool] = {}

    def has(self, flags: int) -> bool:
        """Returns whether fallocate(2) takes *flags*; True also where that cannot be tried now."""
        known = self._known.get(flags)
        if known is None:
            try:
                with unnamed_file(self._root_fd) as fd:
                    known = self._known[flags] = _takes(fd, flags)
            except OSError:
                return True  # a full disk, for instance
        return known

    def take_ahead(self, fd: Callable[[], int], offset: int, length: int) -> Iterator[bool]:
        """Take space for *length* bytes at *offset* of the file that *fd* gives a descriptor of,
        without another size. Yields, after pieces of some milliseconds each, whether that was all.
        Ends where the file system refuses: what was asked for will tell why, and as without this
        may leave a part allocated."""
        space = os.fstatvfs(self._root_fd)
        if space.f_bavail * space.f_frsize < length + _LEFT_BYTES:
            return
        end, piece = offset + length, _PIECE_BYTES
        with suppress(OSError):
            while offset < end:
                began = time.perf_counter()
                calls.fallocate("space.ahead", fd(), offset, min(piece, end - offset))
                offset += piece
                is_quick = time.perf_counter() - began < _PIECE_SECONDS
                piece = piece * 2 if is_quick else max(piece // 2, _TRIED_BYTES)
                yield offset >= end


def _takes(fd: int, flags: int) -> bool:
    try:
        calls.fallocate("space.try", fd, 0, _TRIED_BYTES, flags)
    except OSError as error:
        if error.errno in _NO_WAY:
            return False
        raise
    return True
