"""System calls that Python's ``os`` lacks, or lacks a flag of, each as one function that raises
OSError: those of native/kernel.c, and what is made of them.

Keeps no state. A *handle* is what name_to_handle_at(2) gives, as bytes: its type (little-endian 32
bits) and then the file system's own bytes. It stays good for the life of the inode, through renames
and restarts.

Source: open_by_handle_at(2), utimensat(2), renameat2(2), prctl(2), ioctl_iflags(2),
capabilities(7).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, ParamSpec, TypeVar

from fusejournal.native import kernel
from fusejournal.native.kernel import (
    birth_time,
    chown,
    handle_of,
    link,
    mount_id,
    open_by_handle,
    rename,
    set_times,
)

__all__ = (
    "AT_FDCWD",
    "as_user",
    "birth_time",
    "chown",
    "descriptor_path",
    "drop_resource_capability",
    "fuse_handle",
    "handle_of",
    "is_casefolded",
    "link",
    "list_directory",
    "mark_thread_as_io_flusher",
    "missing",
    "mount_id",
    "open_by_handle",
    "rename",
    "rename_onto_nothing",
    "set_times",
    "unlocked",
)

P = ParamSpec("P")
R = TypeVar("R")

AT_FDCWD: Final = -100

_RENAME_NOREPLACE: Final = 1
_FUSE_HANDLE = struct.Struct("<iIII")
_FILEID_INO64_GEN: Final = 0x81


def list_directory(fd: int) -> list[bytes]:
    """Returns the names in directory *fd* as they are now. Raises OSError.

    On btrfs a descriptor lists the names up to the last one that was there when it was opened, or
    was put back to its beginning: os.listdir alone, on one that is kept, misses what came after.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    return [os.fsencode(name) for name in os.listdir(fd)]


def fuse_handle(node_id: int, generation: int) -> bytes:
    """Returns the handle that a FUSE mount's file *node_id* of *generation* has."""
    return _FUSE_HANDLE.pack(_FILEID_INO64_GEN, node_id >> 32, node_id & 0xFFFFFFFF, generation)


def rename_onto_nothing(old_dir: int, old: bytes, new_dir: int, new: bytes) -> None:
    """Renames to a name that nothing has. Raises FileExistsError for what is there all the same,
    and OSError."""
    try:
        rename(old_dir, old, new_dir, new, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        return
    # There are file systems without this flag, for targets of a replay.
    try:
        os.stat(new, dir_fd=new_dir, follow_symlinks=False)
    except FileNotFoundError:
        rename(old_dir, old, new_dir, new, 0)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FLAGS_LOCKED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL


@contextmanager
def unlocked(fd: int) -> Iterator[None]:
    """Makes the file or directory that *fd* is open on neither immutable nor append-only until the
    end of the block. Raises OSError: PermissionError if it is neither already. (A process that is
    killed inside leaves it so.)"""
    flags = get_file_flags(fd)
    if not flags & _FLAGS_LOCKED:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    set_file_flags(fd, flags & ~_FLAGS_LOCKED)
    try:
        yield
    finally:
        set_file_flags(fd, flags)


def get_file_flags(fd: int) -> int:
    """Returns the flags (FS_*_FL) of the file or directory that *fd* is open on. Raises OSError.
    Source: ioctl_iflags(2)."""
    return int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)), "little")


def set_file_flags(fd: int, flags: int) -> None:
    """Makes *flags* those of the file or directory that *fd* is open on. Raises OSError."""
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags.to_bytes(4, "little"))


def is_locked(fd: int) -> bool:
    """Returns True if the file or directory that *fd* is open on is immutable or append-only."""
    return bool(_attribute_flags(fd) & _FLAGS_LOCKED)


def _attribute_flags(fd: int) -> int:
    try:
        return get_file_flags(fd)
    except OSError:
        return 0  # a file system without flags has none of them


_FS_IOC_FSGETXATTR, _FSXATTR_BYTES = 0x801C581F, 28


def ask_extended_flags(fd: int) -> bytes:
    """Returns what the file system says of the file that *fd* is open on, as a struct fsxattr.
    Raises OSError. Source: ioctl_xfs_fsgetxattr(2)."""
    return fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR_BYTES))


_FS_CASEFOLD_FL = 0x40000000


def is_casefolded(fd: int) -> bool:
    """Returns True if names in the directory of *fd* are looked up without regard to case."""
    return bool(_attribute_flags(fd) & _FS_CASEFOLD_FL)


def descriptor_path(fd: int) -> str:
    """Returns a path that reaches *fd*'s file itself, for calls that take no O_PATH descriptor."""
    return f"/proc/self/fd/{fd}"


_CAP_SYS_RESOURCE = 24
_PR_SET_IO_FLUSHER = 57


def mark_thread_as_io_flusher() -> None:
    """Declares to the kernel that this thread, and those it starts, clean other file systems'
    pages.

    The kernel throttles a writer while too many pages of any file system are dirty. Those of an NFS
    client on this machine wait for the layer, which must not wait for them in turn (seen: half a
    minute, until the client gave up its connection). A flusher is throttled by the disk that it
    writes to alone, and never needs memory that a flush has to free. Needs CAP_SYS_RESOURCE.
    Source: prctl(2), PR_SET_IO_FLUSHER; the kernel's mm/page-writeback.c, PF_LOCAL_THROTTLE."""
    with suppress(OSError):  # a kernel without it (before 5.6) does as it did
        kernel.prctl(_PR_SET_IO_FLUSHER, 1)


def drop_resource_capability() -> None:
    """Gives up CAP_SYS_RESOURCE for this thread and those it starts: with it, writes go past the
    quotas of the files' owners, and past what a file system keeps back. (ext4 gives that to root's
    file-system uid as well: see :func:`as_user`.)"""
    kernel.drop_capability(_CAP_SYS_RESOURCE)


_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_NO_SETUID_FIXUP = 1 << 2


def as_user(uid: int, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Does *call* in this thread with the file-system uid *uid* and all capabilities, so that
    its rights stay the same, but it uses no space that is reserved for root. Where the process may
    not change the uid, *call* is done with the present one."""
    try:
        bits = kernel.prctl(_PR_GET_SECUREBITS)
        kernel.prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP)
    except OSError:
        return call(*args, **kwargs)
    # Capabilities follow the uid in both directions, if at all: not before it is root's again.
    kernel.setfsuid(uid)
    try:
        return call(*args, **kwargs)
    finally:
        kernel.setfsuid(0)
        kernel.prctl(_PR_SET_SECUREBITS, bits)


def missing(error: OSError) -> bool:
    """Returns True if an xattr call failed only because the attribute, or support for it, is not
    there."""
    return error.errno in (errno.ENODATA, errno.EOPNOTSUPP)
