"""The kernel's side of FUSE as bytes: requests decoded into the arguments of a call. Pure; it knows
neither descriptors nor the volume. (Replies are in kernel_replies.py.)

A request is ``fuse_in_header``, then a struct of its opcode's own, then names and data. All
integers are the machine's own; both sides are on one machine. Names end with a NUL. What is decoded
is checked as far as its own shape goes: whatever is shorter or longer than it says is a
MalformedRequestError.

========================  =====  ==================================================================
struct                    bytes  fields
========================  =====  ==================================================================
fuse_in_header               40  len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
fuse_forget_in                8  nlookup
fuse_batch_forget_in          8  count, dummy; then fuse_forget_one (nodeid, nlookup) each
fuse_setattr_in              88  valid, padding, fh, size, lock_owner, atime, mtime, ctime,
                                 atimensec, mtimensec, ctimensec, mode, unused4, uid, gid, unused5
fuse_mknod_in                16  mode, rdev, umask, padding; then the name
fuse_mkdir_in                 8  mode, umask; then the name
fuse_rename_in                8  newdir; then both names
fuse_rename2_in              16  newdir, flags, padding; then both names
fuse_link_in                  8  oldnodeid; then the name
fuse_open_in                  8  flags, open_flags
fuse_create_in               16  flags, mode, umask, open_flags; then the name
fuse_release_in              24  fh, flags, release_flags, lock_owner
fuse_read_in                 40  fh, offset, size, read_flags, lock_owner, flags, padding
fuse_write_in                40  fh, offset, size, write_flags, lock_owner, flags, padding; then
                                 the data
fuse_fsync_in                16  fh, fsync_flags, padding
fuse_setxattr_in              8  size, flags; with FUSE_SETXATTR_EXT setxattr_flags, padding too;
                                 then name and value
fuse_getxattr_in              8  size, padding; then the name (none for LISTXATTR)
fuse_lseek_in                24  fh, offset, whence, padding
fuse_interrupt_in             8  unique; that of the request that is interrupted
fuse_statx_in                24  getattr_flags, reserved, fh, sx_flags, sx_mask
fuse_ioctl_in                32  fh, flags, cmd, arg, in_size, out_size
fuse_fallocate_in            32  fh, offset, length, mode, padding
fuse_copy_file_range_in      56  fh_in, off_in, nodeid_out, fh_out, off_out, len, flags
========================  =====  ==================================================================

Source: include/uapi/linux/fuse.h; fs/fuse/dev.c (fuse_dev_do_read, fuse_dev_do_write)."""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

from fusejournal.errors import FusejournalError
from fusejournal.types import Fid

Data: TypeAlias = bytes | memoryview

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_FORGET_IN: Final = struct.Struct("=Q")
_BATCH_FORGET_IN: Final = struct.Struct("=II")
_FORGET_ONE: Final = struct.Struct("=QQ")
_SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
_MKNOD_IN: Final = struct.Struct("=IIII")
_MKDIR_IN: Final = struct.Struct("=II")
_RENAME_IN: Final = struct.Struct("=Q")
_RENAME2_IN: Final = struct.Struct("=QII")
_LINK_IN: Final = struct.Struct("=Q")
_OPEN_IN: Final = struct.Struct("=II")
_CREATE_IN: Final = struct.Struct("=IIII")
_RELEASE_IN: Final = struct.Struct("=QIIQ")
_READ_IN: Final = struct.Struct("=QQIIQII")
_WRITE_IN: Final = struct.Struct("=QQIIQII")
_FSYNC_IN: Final = struct.Struct("=QII")
_SETXATTR_IN: Final = struct.Struct("=II")
_SETXATTR_EXT_IN: Final = struct.Struct("=IIII")
_GETXATTR_IN: Final = struct.Struct("=II")
_LSEEK_IN: Final = struct.Struct("=QqII")
_INTERRUPT_IN: Final = struct.Struct("=Q")
_STATX_IN: Final = struct.Struct("=IIQII")
_IOCTL_IN: Final = struct.Struct("=QIIQII")
_FALLOCATE_IN: Final = struct.Struct("=QQQII")
_COPY_FILE_RANGE_IN: Final = struct.Struct("=QQQQQQQ")

EXTENSION_BYTES: Final = 8
"""The unit of ``total_extlen``: what follows a request's own names and data."""

_BODY: Final = IN_HEADER.size
assert (IN_HEADER.size, _SETATTR_IN.size, _LSEEK_IN.size, _STATX_IN.size) == (40, 88, 24, 24)
assert (_READ_IN.size, _WRITE_IN.size) == (40, 40)


class Opcode(IntEnum):
    """The requests that are answered with more than ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    OPENDIR = 27
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52


UNANSWERED: Final = frozenset((Opcode.FORGET, Opcode.INTERRUPT, Opcode.BATCH_FORGET))
"""Requests that the kernel expects no reply to, not even an error. (To an INTERRUPT it takes two,
that it would be wrong to give: EAGAIN would have it ask again, ENOSYS never again.)"""
CHANGING_NAMES: Final = frozenset(
    (
        Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME,
        Opcode.LINK, Opcode.CREATE, Opcode.RENAME2,
    )
)  # fmt: skip
"""Requests that make or remove a name, which the kernel asks for by what it remembers of it."""

SETXATTR_EXT: Final = 1 << 29
"""A flag of INIT: SETXATTR has further fields."""
HANDLE_KILLPRIV_V2: Final = 1 << 28
"""A flag of INIT: OPEN, WRITE and SETATTR say whether they take setuid and setgid away."""

_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FATTR_ATIME, _FATTR_MTIME = 1 << 4, 1 << 5
_FATTR_ATIME_NOW, _FATTR_MTIME_NOW = 1 << 7, 1 << 8
_FATTR_KILL_SUIDGID = 1 << 11
_OPEN_KILL_SUIDGID = 1 << 0
_WRITE_CACHE, _WRITE_KILL_SUIDGID = 1 << 0, 1 << 2

_SECOND_NS: Final = 1_000_000_000


class MalformedRequestError(FusejournalError):
    """A request is not what its opcode says."""


class AttributeChange(NamedTuple):
    """A SETATTR's request: what is to be set; None for what stays. Times are in nanoseconds."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None
    sets_times: bool = False
    """True if a time is the caller's own, and not just now."""
    clears: bool = False
    """True if a new size takes setuid and setgid away: the caller lacks CAP_FSETID."""


# -- requests --------------------------------------------------------------------------------------


def _name(data: Data, at: int = _BODY) -> bytes:
    """The one name that *data* ends with."""
    name = bytes(data[at:-1])
    if len(data) <= at or data[-1] or not name or 0 in name:
        raise MalformedRequestError("a name without an end")
    return name


def _two_names(data: Data, at: int) -> tuple[bytes, bytes]:
    """The two names, or name and target, that *data* ends with."""
    try:
        first, second, rest = bytes(data[at:]).split(b"\0")
    except ValueError:
        raise MalformedRequestError("two names were expected") from None
    if rest or not first or not second:
        raise MalformedRequestError("a name without an end")
    return first, second


def _decode_nothing(_: Data) -> tuple[()]:
    return ()


def _decode_name(data: Data) -> tuple[bytes]:
    return (_name(data),)


def _decode_forget(data: Data) -> tuple[int]:
    return _FORGET_IN.unpack_from(data, _BODY)


def _decode_batch_forget(data: Data) -> tuple[list[tuple[Fid, int]]]:
    count, _ = _BATCH_FORGET_IN.unpack_from(data, _BODY)
    begin = _BODY + _BATCH_FORGET_IN.size
    end = begin + count * _FORGET_ONE.size
    if end > len(data):
        raise MalformedRequestError(f"{count} fids to forget in {len(data)} bytes")
    return (list(_FORGET_ONE.iter_unpack(data[begin:end])),)


def _decode_setattr(data: Data) -> tuple[AttributeChange]:
    (
        valid, _, _, size, _, atime, mtime, _,
        atime_part_ns, mtime_part_ns, _, mode, _, uid, gid, _,
    ) = _SETATTR_IN.unpack_from(data, _BODY)  # fmt: skip
    return (
        AttributeChange(
            mode if valid & _FATTR_MODE else None,
            uid if valid & _FATTR_UID else None,
            gid if valid & _FATTR_GID else None,
            size if valid & _FATTR_SIZE else None,
            # "Now" comes as a time, too, beside its flag: the kernel's.
            atime * _SECOND_NS + atime_part_ns if valid & _FATTR_ATIME else None,
            mtime * _SECOND_NS + mtime_part_ns if valid & _FATTR_MTIME else None,
            valid & (_FATTR_ATIME | _FATTR_ATIME_NOW) == _FATTR_ATIME
            or valid & (_FATTR_MTIME | _FATTR_MTIME_NOW) == _FATTR_MTIME,
            bool(valid & _FATTR_KILL_SUIDGID),
        ),
    )


def _decode_setattr_of_any(data: Data) -> tuple[AttributeChange]:
    """The same of a kernel that does not say what is taken away: all but root lack CAP_FSETID."""
    (change,) = _decode_setattr(data)
    return (change._replace(clears=_is_users(data)),)


def _is_users(data: Data) -> bool:
    """Returns True if request *data* is another's than root's."""
    uid: int = IN_HEADER.unpack_from(data)[4]
    return uid != 0


def _decode_symlink(data: Data) -> tuple[bytes, bytes]:
    return _two_names(data, _BODY)


def _decode_mknod(data: Data) -> tuple[bytes, int, int, int]:
    mode, rdev, umask, _ = _MKNOD_IN.unpack_from(data, _BODY)
    return _name(data, _BODY + _MKNOD_IN.size), mode, rdev, umask


def _decode_mkdir(data: Data) -> tuple[bytes, int, int]:
    mode, umask = _MKDIR_IN.unpack_from(data, _BODY)
    return _name(data, _BODY + _MKDIR_IN.size), mode, umask


def _decode_rename(data: Data) -> tuple[bytes, Fid, bytes, int]:
    (new_parent,) = _RENAME_IN.unpack_from(data, _BODY)
    name, new_name = _two_names(data, _BODY + _RENAME_IN.size)
    return name, new_parent, new_name, 0


def _decode_rename2(data: Data) -> tuple[bytes, Fid, bytes, int]:
    new_parent, flags, _ = _RENAME2_IN.unpack_from(data, _BODY)
    name, new_name = _two_names(data, _BODY + _RENAME2_IN.size)
    return name, new_parent, new_name, flags


def _decode_link(data: Data) -> tuple[Fid, bytes]:
    (fid,) = _LINK_IN.unpack_from(data, _BODY)
    return fid, _name(data, _BODY + _LINK_IN.size)


def _decode_open(data: Data) -> tuple[int, bool]:
    """The flags, and whether O_TRUNC takes setuid and setgid away."""
    flags, open_flags = _OPEN_IN.unpack_from(data, _BODY)
    return flags, bool(open_flags & _OPEN_KILL_SUIDGID)


def _decode_open_of_any(data: Data) -> tuple[int, bool]:
    return _OPEN_IN.unpack_from(data, _BODY)[0], _is_users(data)


def _decode_opendir(data: Data) -> tuple[int]:
    return (_OPEN_IN.unpack_from(data, _BODY)[0],)


def _decode_create(data: Data) -> tuple[bytes, int, int]:
    _, mode, umask, _ = _CREATE_IN.unpack_from(data, _BODY)
    return _name(data, _BODY + _CREATE_IN.size), mode, umask


def _decode_tmpfile(data: Data) -> tuple[int, int]:
    _, mode, umask, _ = _CREATE_IN.unpack_from(data, _BODY)
    return mode, umask  # the name behind them stands for nothing


def _decode_release(data: Data) -> tuple[int]:
    return (_RELEASE_IN.unpack_from(data, _BODY)[0],)


def _decode_read(data: Data) -> tuple[int, int, int]:
    return _READ_IN.unpack_from(data, _BODY)[:3]


def _decode_listing(data: Data) -> tuple[int, int]:
    _, cookie, size, _, _, _, _ = _READ_IN.unpack_from(data, _BODY)
    return cookie, size


def _decode_write(data: Data) -> tuple[int, int, Data, bool]:
    """Handle, offset, content, and whether it takes setuid and setgid away. It does where it is of
    pages that were changed in memory: it is not known by whom."""
    handle, offset, size, flags, _, _, _ = _WRITE_IN.unpack_from(data, _BODY)
    content = data[_BODY + _WRITE_IN.size :]
    if len(content) != size:
        raise MalformedRequestError(f"a write of {size} bytes with {len(content)}")
    return handle, offset, content, bool(flags & (_WRITE_KILL_SUIDGID | _WRITE_CACHE))


def _decode_write_of_any(data: Data) -> tuple[int, int, Data, bool]:
    """The same of a kernel that does not say it: another may write than the file's opener."""
    handle, offset, content, _ = _decode_write(data)
    return handle, offset, content, True


def _decode_fsync(data: Data) -> tuple[int]:
    return (_FSYNC_IN.unpack_from(data, _BODY)[0],)


def _setxattr(data: Data, fields: struct.Struct) -> tuple[bytes, bytes, int]:
    size, flags, *_ = fields.unpack_from(data, _BODY)
    name, nul, value = bytes(data[_BODY + fields.size :]).partition(b"\0")
    if not name or not nul or len(value) != size:
        raise MalformedRequestError(f"an attribute of {size} bytes with {len(value)}")
    return name, value, flags


def _decode_setxattr(data: Data) -> tuple[bytes, bytes, int]:
    return _setxattr(data, _SETXATTR_IN)


def _decode_setxattr_ext(data: Data) -> tuple[bytes, bytes, int]:
    return _setxattr(data, _SETXATTR_EXT_IN)


def _decode_getxattr(data: Data) -> tuple[bytes, int]:
    size, _ = _GETXATTR_IN.unpack_from(data, _BODY)
    return _name(data, _BODY + _GETXATTR_IN.size), size


def _decode_listxattr(data: Data) -> tuple[int]:
    return (_GETXATTR_IN.unpack_from(data, _BODY)[0],)


def _decode_lseek(data: Data) -> tuple[int, int, int]:
    return _LSEEK_IN.unpack_from(data, _BODY)[:3]


def _decode_statx(data: Data) -> tuple[Any, ...]:
    return _STATX_IN.unpack_from(data, _BODY)[:0]  # all is told, whatever was asked for


def decode_interrupt(data: Data) -> tuple[int]:
    """The number of the request that is interrupted."""
    return _INTERRUPT_IN.unpack_from(data, _BODY)


def _decode_ioctl(data: Data) -> tuple[int, bytes]:
    _, _, command, _, in_bytes, _ = _IOCTL_IN.unpack_from(data, _BODY)
    begin = _BODY + _IOCTL_IN.size
    given = bytes(data[begin : begin + in_bytes])
    if len(given) != in_bytes:
        raise MalformedRequestError(f"an ioctl of {in_bytes} bytes with {len(given)}")
    return command, given


def _decode_fallocate(data: Data) -> tuple[int, int, int, int]:
    return _FALLOCATE_IN.unpack_from(data, _BODY)[:4]


def _decode_copy_file_range(data: Data) -> tuple[int, int, Fid, int, int, int]:
    return _COPY_FILE_RANGE_IN.unpack_from(data, _BODY)[:6]


class RequestKind(NamedTuple):
    """An opcode's *call*, which is a method's name, and what *decode* makes its arguments of."""

    call: str
    decode: Callable[[Data], tuple[Any, ...]]


_REQUEST_KINDS: Final = {
    int(Opcode.LOOKUP): RequestKind("lookup", _decode_name),
    int(Opcode.FORGET): RequestKind("forget", _decode_forget),
    int(Opcode.GETATTR): RequestKind("getattr", _decode_nothing),
    int(Opcode.SETATTR): RequestKind("setattr", _decode_setattr),
    int(Opcode.READLINK): RequestKind("readlink", _decode_nothing),
    int(Opcode.SYMLINK): RequestKind("symlink", _decode_symlink),
    int(Opcode.MKNOD): RequestKind("mknod", _decode_mknod),
    int(Opcode.MKDIR): RequestKind("mkdir", _decode_mkdir),
    int(Opcode.UNLINK): RequestKind("unlink", _decode_name),
    int(Opcode.RMDIR): RequestKind("rmdir", _decode_name),
    int(Opcode.RENAME): RequestKind("rename", _decode_rename),
    int(Opcode.LINK): RequestKind("link", _decode_link),
    int(Opcode.OPEN): RequestKind("open", _decode_open),
    int(Opcode.READ): RequestKind("read", _decode_read),
    int(Opcode.WRITE): RequestKind("write", _decode_write),
    int(Opcode.STATFS): RequestKind("statfs", _decode_nothing),
    int(Opcode.RELEASE): RequestKind("release", _decode_release),
    int(Opcode.FSYNC): RequestKind("fsync", _decode_fsync),
    int(Opcode.SETXATTR): RequestKind("setxattr", _decode_setxattr),
    int(Opcode.GETXATTR): RequestKind("getxattr", _decode_getxattr),
    int(Opcode.LISTXATTR): RequestKind("listxattr", _decode_listxattr),
    int(Opcode.REMOVEXATTR): RequestKind("removexattr", _decode_name),
    int(Opcode.OPENDIR): RequestKind("opendir", _decode_opendir),
    int(Opcode.RELEASEDIR): RequestKind("releasedir", _decode_nothing),
    int(Opcode.FSYNCDIR): RequestKind("fsyncdir", _decode_nothing),
    int(Opcode.CREATE): RequestKind("create", _decode_create),
    int(Opcode.FALLOCATE): RequestKind("fallocate", _decode_fallocate),
    int(Opcode.COPY_FILE_RANGE): RequestKind("copy_file_range", _decode_copy_file_range),
    int(Opcode.IOCTL): RequestKind("ioctl", _decode_ioctl),
    int(Opcode.TMPFILE): RequestKind("tmpfile", _decode_tmpfile),
    int(Opcode.BATCH_FORGET): RequestKind("batch_forget", _decode_batch_forget),
    int(Opcode.READDIRPLUS): RequestKind("readdirplus", _decode_listing),
    int(Opcode.RENAME2): RequestKind("rename", _decode_rename2),
    int(Opcode.LSEEK): RequestKind("lseek", _decode_lseek),
    int(Opcode.STATX): RequestKind("statx", _decode_statx),
}
_EXTENDED: Final = {int(Opcode.SETXATTR): RequestKind("setxattr", _decode_setxattr_ext)}
"""The kinds that a kernel has instead which was told SETXATTR_EXT."""
_OF_ANY: Final = {
    int(Opcode.SETATTR): RequestKind("setattr", _decode_setattr_of_any),
    int(Opcode.OPEN): RequestKind("open", _decode_open_of_any),
    int(Opcode.WRITE): RequestKind("write", _decode_write_of_any),
}
"""The kinds that a kernel has instead which was not told HANDLE_KILLPRIV_V2."""


def request_kinds(init_flags: int) -> dict[int, RequestKind]:
    """The kinds of requests by opcode, for a kernel that was told *init_flags* in answer to INIT.
    INTERRUPT is the request loop's. All others are answered with ENOSYS; most then never come
    again.

    So with FLUSH: what was dirty is written before, and nothing is buffered here. ACCESS is not
    asked where the kernel itself checks modes (default_permissions), nor is READDIR where it always
    takes READDIRPLUS; locks are its own. SYNCFS comes of virtiofs alone, and FIEMAP never. Source:
    fs/fuse/file.c (fuse_flush), dir.c (fuse_permission), readdir.c (fuse_use_readdirplus), inode.c
    (fuse_sync_fs)."""
    extended = _EXTENDED if init_flags & SETXATTR_EXT else {}
    of_any = {} if init_flags & HANDLE_KILLPRIV_V2 else _OF_ANY
    return _REQUEST_KINDS | extended | of_any
