"""The system calls that Python's ``os`` lacks, or lacks a flag of, each as one function that
raises OSError.

Owns nothing and keeps no state but three scratch buffers, so it may only be called from the thread
that runs the event loop, or from one thread at a time.

A *handle* is what name_to_handle_at(2) gives, as bytes: its type (little-endian 32 bits) and then
the file system's own bytes. It stays good for the life of the inode, through renames and restarts.

Source: open_by_handle_at(2), utimensat(2), futimens(3), renameat2(2), fchownat(2), prctl(2),
statx(2), ioctl_iflags(2), capabilities(7).
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000

_HANDLE_BYTES_MAX = 128
_UTIME_OMIT = (1 << 30) - 2
_RENAME_NOREPLACE = 1
_HANDLE_HEAD = struct.Struct("<Ii")
_FUSE_HANDLE = struct.Struct("<iIII")
_FILEID_INO64_GEN = 0x81
_TIMES = struct.Struct("<qqqq")
_NANO = 10**9
_STATX_BYTES = 256
_STATX_BTIME = 0x800
_STATX_BTIME_AT = struct.Struct("<I76xqI")
"""The mask of what is known, and the time of birth, in a struct statx."""
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_MNT_ID_AT = 144

_libc = ctypes.CDLL(None, use_errno=True)
_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
]
_open_by_handle_at = _libc.open_by_handle_at
_open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_futimens = _libc.futimens
_futimens.argtypes = [ctypes.c_int, ctypes.c_char_p]
_utimensat = _libc.utimensat
_utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_renameat2 = _libc.renameat2
_renameat2.argtypes = [
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
]
_fchownat = _libc.fchownat
_fchownat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int]
_statx = _libc.statx
_statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
_linkat = _libc.linkat
_linkat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]

_handle_buffer = ctypes.create_string_buffer(_HANDLE_HEAD.size + _HANDLE_BYTES_MAX)
_handle_address = ctypes.addressof(_handle_buffer)
_statx_buffer = ctypes.create_string_buffer(_STATX_BYTES)
_mount_id = ctypes.c_int()
_mount_id_address = ctypes.addressof(_mount_id)


def _fail() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def handle_of(fd: int, name: bytes = b"") -> bytes:
    """Returns the handle of *name* in directory *fd* (not followed), or of *fd* itself when *name*
    is empty."""
    _HANDLE_HEAD.pack_into(_handle_buffer, 0, _HANDLE_BYTES_MAX, 0)
    flags = 0 if name else AT_EMPTY_PATH
    if _name_to_handle_at(fd, name, _handle_address, _mount_id_address, flags) != 0:
        raise _fail()
    length = _HANDLE_HEAD.unpack_from(_handle_buffer)[0]
    return ctypes.string_at(_handle_address + 4, 4 + length)


def list_directory(fd: int) -> list[bytes]:
    """Returns the names in directory *fd* as they are now. Raises OSError.

    On btrfs a descriptor lists the names up to the last one that was there when it was opened, or
    was put back to its beginning: os.listdir alone, on one that is kept, misses what came after.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    return [os.fsencode(name) for name in os.listdir(fd)]


def mount_id(fd: int) -> int:
    """Returns the number of the mount that *fd* was opened in: never given twice in a boot where
    the kernel has such numbers (6.8), else not while it is mounted. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _statx(fd, b"", AT_EMPTY_PATH, _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE, buffer) != 0:
        raise _fail()
    return int.from_bytes(buffer.raw[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8], "little")


def birth_time(fd: int) -> int | None:
    """Returns when the file that *fd* is open on was made, in nanoseconds; None where its file
    system does not keep that. Raises OSError."""
    if _statx(fd, b"", AT_EMPTY_PATH, _STATX_BTIME, _statx_buffer) != 0:
        raise _fail()
    known, seconds, part_ns = _STATX_BTIME_AT.unpack_from(_statx_buffer)
    return seconds * _NANO + part_ns if known & _STATX_BTIME else None


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Returns a new descriptor of the file that *handle* names, on the file system of *mount_fd*.
    ESTALE when it is gone."""
    fd: int = _open_by_handle_at(
        mount_fd, (len(handle) - 4).to_bytes(4, "little") + handle, flags | os.O_CLOEXEC
    )
    if fd < 0:
        raise _fail()
    return fd


def fuse_handle(node_id: int, generation: int) -> bytes:
    """Returns the handle that a FUSE mount's file *node_id* of *generation* has."""
    return _FUSE_HANDLE.pack(_FILEID_INO64_GEN, node_id >> 32, node_id & 0xFFFFFFFF, generation)


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Sets the given times of *fd*, which may be an O_PATH descriptor; None leaves one as it is."""
    asec, ansec = (0, _UTIME_OMIT) if atime_ns is None else divmod(atime_ns, _NANO)
    msec, mnsec = (0, _UTIME_OMIT) if mtime_ns is None else divmod(mtime_ns, _NANO)
    times = _TIMES.pack(asec, ansec, msec, mnsec)
    if _futimens(fd, times) == 0:
        return
    # Only O_PATH is refused so; the call that takes it looks the file up, which costs.
    if ctypes.get_errno() != errno.EBADF or _utimensat(fd, b"", times, AT_EMPTY_PATH) != 0:
        raise _fail()


def chown(fd: int, uid: int, gid: int) -> None:
    """Sets owner and group of *fd*, which may be an O_PATH descriptor of a symlink."""
    if _fchownat(fd, b"", uid, gid, AT_EMPTY_PATH) != 0:
        raise _fail()


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2) between two directory descriptors."""
    if _renameat2(old_dir, old, new_dir, new, flags) != 0:
        raise _fail()


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


def link(fd: int, new_dir: int, name: bytes) -> None:
    """Gives the file that *fd* is open on (O_PATH will do) a further name."""
    if _linkat(fd, b"", new_dir, name, AT_EMPTY_PATH) != 0:
        raise _fail()


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FLAGS_LOCKED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL


@contextmanager
def unlocked(fd: int) -> Iterator[None]:
    """Makes the file or directory that *fd* is open on neither immutable nor append-only until the
    end of the block. Raises OSError: PermissionError if it is neither already. (A process that is
    killed inside leaves it so.)"""
    flags = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)), "little")
    if not flags & _FLAGS_LOCKED:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags & ~_FLAGS_LOCKED).to_bytes(4, "little"))
    try:
        yield
    finally:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags.to_bytes(4, "little"))


def is_locked(fd: int) -> bool:
    """Returns True if the file or directory that *fd* is open on is immutable or append-only."""
    return bool(_attribute_flags(fd) & _FLAGS_LOCKED)


def _attribute_flags(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)), "little")
    except OSError:
        return 0  # a file system without flags has none of them


_FS_CASEFOLD_FL = 0x40000000


def is_casefolded(fd: int) -> bool:
    """Returns True if names in the directory of *fd* are looked up without regard to case."""
    return bool(_attribute_flags(fd) & _FS_CASEFOLD_FL)


def descriptor_path(fd: int) -> str:
    """Returns a path that reaches *fd*'s file itself, for calls that take no O_PATH descriptor."""
    return f"/proc/self/fd/{fd}"


_CAP_SYS_RESOURCE = 24
_PR_SET_IO_FLUSHER = 57
_CAP_VERSION_3 = 0x20080522


def mark_thread_as_io_flusher() -> None:
    """Declares to the kernel that this thread, and those it starts, clean other file systems'
    pages.

    It lets who writes wait while too many pages anywhere are dirty. Those of an NFS client on this
    machine wait for the layer, which must not wait for them in turn (seen: half a minute, until
    the client gave up its connection). A flusher waits for the disk it writes to alone, and never
    needs memory that a flush has to free. Needs CAP_SYS_RESOURCE. Source: prctl(2),
    PR_SET_IO_FLUSHER; the kernel's mm/page-writeback.c, PF_LOCAL_THROTTLE."""
    # A kernel without it (before 5.6) does as it did.
    _libc.prctl(_PR_SET_IO_FLUSHER, *(ctypes.c_ulong(word) for word in (1, 0, 0, 0)))


def drop_resource_capability() -> None:
    """Gives up CAP_SYS_RESOURCE for this thread and those it starts: with it, writes go past the
    quotas of the files' owners, and past what a file system keeps back. (ext4 gives that to root's
    file-system uid as well: see :func:`as_user`.)"""
    header = struct.pack("<Ii", _CAP_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        raise _fail()
    words = list(struct.unpack("<6I", data.raw))
    words[0] &= ~(1 << _CAP_SYS_RESOURCE)  # effective, low word
    if _libc.capset(header, struct.pack("<6I", *words)) != 0:
        raise _fail()


_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_NO_SETUID_FIXUP = 1 << 2


def as_user(uid: int, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Does *call* in this thread with the file-system uid *uid* and all capabilities, so that it
    may what it may, but takes no space that is kept back for root. Where the process may not do
    that, it is done as it is."""
    bits = _libc.prctl(_PR_GET_SECUREBITS)
    if bits < 0 or _libc.prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP) != 0:
        return call(*args, **kwargs)
    # Capabilities follow the uid in both directions, if at all: not before it is root's again.
    _libc.setfsuid(uid)
    try:
        return call(*args, **kwargs)
    finally:
        _libc.setfsuid(0)
        _libc.prctl(_PR_SET_SECUREBITS, bits)


def missing(error: OSError) -> bool:
    """Returns True if an xattr call failed only because the attribute, or support for it, is not
    there."""
    return error.errno in (errno.ENODATA, errno.EOPNOTSUPP)
