"""SETFLAGS: what chattr(1) sets.

Immutable and append-only are no flags of the backing's files. The layer itself keeps its callers
from what they forbid (layer/file_flags.py), and the catalog has them: so neither recovery, nor a
mirror, nor a restore is ever refused by a file that it has to put right. What is set are the other
flags, as far as the file system takes them. Where it lacks some, a caller is refused as without a
layer; an entry that another node made holds all the same.

Source: ioctl_iflags(2)."""

import errno
from typing import Final

from fusejournal.backing.apply_results import NOTHING_MADE, Made
from fusejournal.backing.tree import Tree
from fusejournal.disk import failpoints, syscalls
from fusejournal.file_operations import JOURNALED_FLAGS, LOCKING_FLAGS, SetFlags

_NO_WAY: Final = frozenset(
    (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF, errno.EPERM)
)
"""The file system has no such flag, not for this file, or no flags at all."""


class FlagsApplier:
    """Applies SETFLAGS to *tree*."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def set_flags(self, operation: SetFlags, _: int, __: bytes | memoryview, redo: bool) -> Made:
        """Applies a SETFLAGS: see Applier.apply. With *redo*, which is given for entries of other
        nodes as well, flags that the file system lacks are left out."""
        fd = self._tree.descriptor(operation.fid)
        failpoints.reached("apply.flags")
        if redo:
            set_what_can_be(fd, operation.flags)
        else:
            _set(fd, operation.flags)
        return NOTHING_MADE


def set_what_can_be(fd: int, flags: int) -> None:
    """Have file *fd* have those of the journaled *flags* that its file system has. Raises
    OSError."""
    try:
        _set(fd, flags)
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


def _set(fd: int, flags: int) -> None:
    has = syscalls.get_file_flags(fd)
    # Where root has locked the file in the backing, only the layer's lock counts from now on.
    wanted = has & ~JOURNALED_FLAGS | flags & JOURNALED_FLAGS & ~LOCKING_FLAGS
    if wanted != has:
        syscalls.set_file_flags(fd, wanted)
