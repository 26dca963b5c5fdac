"""FALLOCATE: space taken for a file, holes punched in it, ranges zeroed.

What every tree must have in common is what is read: the file's size, and zeros where something was
punched or zeroed. Blocks are taken and given back as far as the file system can: where it lacks a
way (as that of a mirror or of a replay's target may), nothing is allocated, and zeros are written
over what is there. The layer itself asks the backing beforehand, and refuses its callers
(space_ways.py).

Space is taken first, because that is what a full disk or a quota refuses, and without a new size,
because ext4 lets a file grow as far as it got before it refuses. Only then the file grows, and only
then anything is overwritten. All of it can be done again, so a process that died in between is no
matter.

Source: fallocate(2); the kernel's fs/ext4/extents.c (ext4_fallocate, ext4_alloc_file_blocks)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from fusejournal.backing.apply_data import DataApplier
from fusejournal.backing.apply_new import remove_if_there
from fusejournal.backing.apply_results import NOTHING_MADE, Made, MustWork
from fusejournal.backing.tree import Tree
from fusejournal.disk import calls, failpoints
from fusejournal.disk.acls import CAPABILITY_XATTR
from fusejournal.file_operations import FALLOC_KEEP_SIZE, Fallocate

_ALLOCATION: Final = MustWork("mode and mtime after an allocation")
_REFUSED: Final = MustWork("what a refused allocation changed")
_HALF_EMPTY: Final = MustWork("a range that is half zeroed")
_NO_WAY: Final = frozenset((errno.EOPNOTSUPP, errno.ENOSYS))
"""The file system cannot do it, or not to this file."""
_AT_ONCE: Final = frozenset(
    (errno.EPERM, errno.EINVAL, errno.EBADF, errno.ETXTBSY, errno.EFBIG, errno.EROFS, errno.ENODEV)
)
"""The errors of a call that was refused before it began."""
_ZEROS: Final = memoryview(bytes(1 << 20))


class SpaceApplier:
    """Applies FALLOCATE to *tree*."""

    def __init__(self, tree: Tree, data: DataApplier) -> None:
        self._tree = tree
        self._data = data
        self._taken: Fallocate | None = None
        """An operation for all of which space was taken ahead."""

    @contextmanager
    def taken_ahead(self, operation: Fallocate) -> Iterator[None]:
        """The block applies *operation*, all of whose space is taken already (space_ways.py)."""
        self._taken = operation
        try:
            yield
        finally:
            self._taken = None

    def fallocate(
        self, operation: Fallocate, time_ns: int, _: bytes | memoryview, __: bool
    ) -> Made:
        """Applies a FALLOCATE: see Applier.apply."""
        fd = self._tree.writable(operation.fid)
        node = self._tree.node(operation.fid)
        before = os.fstat(fd)
        capability = self._tree.capability(node, fd)
        try:
            failpoints.reached("apply.fallocate")
            change_space(fd, operation, is_taken=operation is self._taken)
        except OSError:
            with _REFUSED:
                if os.fstat(fd).st_size != before.st_size:
                    os.ftruncate(fd, before.st_size)
                self._data.undo_write(fd, before.st_mtime_ns, capability)
            raise
        with _ALLOCATION:
            if capability is not None:
                remove_if_there(fd, CAPABILITY_XATTR)
            self._data.end_write(operation.fid, fd, operation.mode, time_ns)
        node.capability = b""
        return NOTHING_MADE


def change_space(fd: int, operation: Fallocate, *, is_taken: bool = False) -> None:
    """Do to file *fd* what *operation* says of space, size and content. *is_taken*: the space is
    taken. Raises OSError: refused, and nothing is different but perhaps the size; or
    ApplyBrokenError."""
    offset, length = operation.offset, operation.length
    if not operation.punches:
        if not is_taken:
            try:
                calls.fallocate("apply.fallocate.take", fd, offset, length)
            except OSError as error:
                if error.errno not in _NO_WAY:
                    raise
        if operation.size_after(os.fstat(fd).st_size) > os.fstat(fd).st_size:
            calls.ftruncate("apply.fallocate.grow", fd, operation.end)
    if operation.empties:
        _empty(fd, operation)


def _empty(fd: int, operation: Fallocate) -> None:
    """Have zeros in the range. Raises as :func:`change_space`."""
    flags = operation.flags | FALLOC_KEEP_SIZE
    try:
        calls.fallocate("apply.fallocate.empty", fd, operation.offset, operation.length, flags)
    except OSError as error:
        if error.errno in _AT_ONCE:
            raise
        # Where some of it is done already, that is how to go on.
        _write_zeros(fd, operation, has_begun=error.errno not in _NO_WAY)


def _write_zeros(fd: int, operation: Fallocate, *, has_begun: bool) -> None:
    """Write zeros over what is there. Raises OSError with nothing written, unless it *has_begun*;
    else ApplyBrokenError."""
    end = min(operation.end, os.fstat(fd).st_size)
    for start, stop in calls.data_ranges(fd, operation.offset, end):
        at = start
        while at < stop:
            with _HALF_EMPTY if has_begun else nullcontext():
                failpoints.reached("apply.fallocate.zeros")
                at += os.pwrite(fd, _ZEROS[: stop - at], at)
            has_begun = True
