"""Setting what a file has of chattr(1)'s flags, as far as its file system has them.

Source: ioctl_iflags(2)."""

import errno
from typing import Final

from fusejournal.disk import syscalls
from fusejournal.file_operations import JOURNALED_FLAGS, LOCKING_FLAGS

_NO_WAY: Final = frozenset(
    (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EPERM)
)
"""The file system has no such flag, not for this file, or no flags at all."""


def set_what_can_be(fd: int, flags: int) -> None:
    """Have file *fd* have those of the journaled *flags* that its file system has. Raises
    OSError."""
    try:
        set_flags(fd, flags)
    except OSError as error:
        if error.errno not in _NO_WAY:
            raise
    else:
        return
    left = JOURNALED_FLAGS & ~LOCKING_FLAGS
    while left:
        flag = left & -left
        left ^= flag
        try:
            has = syscalls.get_file_flags(fd)
            syscalls.set_file_flags(fd, has & ~flag | flags & flag)
        except OSError as error:
            if error.errno not in _NO_WAY:
                raise


def set_flags(fd: int, flags: int) -> None:
    """Has file *fd* have the journaled *flags*, but for locks. Raises OSError."""
    has = syscalls.get_file_flags(fd)
    # Where root has locked the file in the backing, only the layer's lock counts from now on.
    wanted = has & ~JOURNALED_FLAGS | flags & JOURNALED_FLAGS & ~LOCKING_FLAGS
    if wanted != has:
        syscalls.set_file_flags(fd, wanted)


def set_locks(fd: int, flags: int) -> None:
    """Makes the file or directory that *fd* is open on immutable or append-only, as *flags* say, or
    neither. Raises OSError."""
    left = syscalls.get_file_flags(fd) & ~LOCKING_FLAGS
    syscalls.set_file_flags(fd, left | flags & LOCKING_FLAGS)
