"""The kernel's side of FUSE as bytes: requests decoded into the arguments of a call, replies
encoded. Pure; it knows neither descriptors nor the volume.

A request is ``fuse_in_header``, then a struct of its opcode's own, then names and data; a reply is
``fuse_out_header``, then a struct and data. All integers are the machine's own; both sides are on
one machine. Names end with a NUL. What is decoded is checked as far as its own shape goes: whatever
is shorter or longer than it says is a MalformedRequestError.

========================  =====  ==================================================================
struct                    bytes  fields
========================  =====  ==================================================================
fuse_in_header               40  len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
fuse_out_header              16  len, error, unique
fuse_attr                    88  ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec,
                                 ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
fuse_entry_out              128  nodeid, generation, entry_valid, attr_valid, entry_valid_nsec,
                                 attr_valid_nsec, attr
fuse_attr_out               104  attr_valid, attr_valid_nsec, dummy, attr
fuse_dirent                  24  ino, off, namelen, type; then the name, padded to 8 bytes
fuse_direntplus             152  entry_out, dirent
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
fuse_open_out                16  fh, open_flags, padding
fuse_release_in              24  fh, flags, release_flags, lock_owner
fuse_read_in                 40  fh, offset, size, read_flags, lock_owner, flags, padding
fuse_write_in                40  fh, offset, size, write_flags, lock_owner, flags, padding; then
                                 the data
fuse_write_out                8  size, padding
fuse_kstatfs                 80  blocks, bfree, bavail, files, ffree, bsize, namelen, frsize,
                                 padding, spare[6]
fuse_fsync_in                16  fh, fsync_flags, padding
fuse_setxattr_in              8  size, flags; with FUSE_SETXATTR_EXT setxattr_flags, padding too;
                                 then name and value
fuse_getxattr_in              8  size, padding; then the name (none for LISTXATTR)
fuse_getxattr_out             8  size, padding
========================  =====  ==================================================================

Source: include/uapi/linux/fuse.h; fs/fuse/dev.c (fuse_dev_do_read, fuse_dev_do_write)."""

import os
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

from fusejournal.errors import FusejournalError
from fusejournal.types import Fid

Data: TypeAlias = bytes | memoryview

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
_ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY_OUT: Final = struct.Struct("=QQQQII")
_ATTR_OUT: Final = struct.Struct("=QII")
"""Both without the ``fuse_attr`` that they end with."""
_DIRENT: Final = struct.Struct("=QQII")
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
_OPEN_OUT: Final = struct.Struct("=QII")
_RELEASE_IN: Final = struct.Struct("=QIIQ")
_READ_IN: Final = struct.Struct("=QQIIQII")
_WRITE_IN: Final = struct.Struct("=QQIIQII")
_WRITE_OUT: Final = struct.Struct("=II")
_KSTATFS: Final = struct.Struct("=QQQQQIIII24x")
_FSYNC_IN: Final = struct.Struct("=QII")
_SETXATTR_IN: Final = struct.Struct("=II")
_SETXATTR_EXT_IN: Final = struct.Struct("=IIII")
_GETXATTR_IN: Final = struct.Struct("=II")
_GETXATTR_OUT: Final = struct.Struct("=II")

EXTENSION_BYTES: Final = 8
"""The unit of ``total_extlen``: what follows a request's own names and data."""

_BODY: Final = IN_HEADER.size
assert (IN_HEADER.size, OUT_HEADER.size) == (40, 16)
assert (_ATTR.size, _ENTRY_OUT.size, _ATTR_OUT.size, _DIRENT.size) == (88, 40, 16, 24)
assert (_SETATTR_IN.size, _READ_IN.size, _WRITE_IN.size, _KSTATFS.size) == (88, 40, 40, 80)


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
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


UNANSWERED: Final = frozenset((Opcode.FORGET, Opcode.INTERRUPT, Opcode.BATCH_FORGET))
"""Requests that the kernel expects no reply to, not even an error. INTERRUPT asks that a request be
answered soon, and none is held up that could be: what is done cannot be undone, and waits to be
durable. (EAGAIN would have the kernel ask again, ENOSYS never again.)"""

SETXATTR_EXT: Final = 1 << 29
"""A flag of INIT: SETXATTR has further fields."""

_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FATTR_ATIME, _FATTR_MTIME = 1 << 4, 1 << 5
_FOPEN_KEEP_CACHE: Final = 1 << 1

KEEP_SECONDS: Final = 3600
"""The time for which the kernel may keep names and attributes. It is told of every change, because
only its mount changes the tree."""

_ALIGNMENT: Final = 8
_RDEV_MASK: Final = 0xFFFF_FFFF
_SECOND_NS: Final = 1_000_000_000
_TYPE_SHIFT: Final = 12


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
        ),
    )


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


def _decode_open(data: Data) -> tuple[int]:
    return (_OPEN_IN.unpack_from(data, _BODY)[0],)


def _decode_create(data: Data) -> tuple[bytes, int, int]:
    _, mode, umask, _ = _CREATE_IN.unpack_from(data, _BODY)
    return _name(data, _BODY + _CREATE_IN.size), mode, umask


def _decode_release(data: Data) -> tuple[int]:
    return (_RELEASE_IN.unpack_from(data, _BODY)[0],)


def _decode_read(data: Data) -> tuple[int, int, int]:
    return _READ_IN.unpack_from(data, _BODY)[:3]


def _decode_listing(data: Data) -> tuple[int, int]:
    _, cookie, size, _, _, _, _ = _READ_IN.unpack_from(data, _BODY)
    return cookie, size


def _decode_write(data: Data) -> tuple[int, int, Data]:
    handle, offset, size, _, _, _, _ = _WRITE_IN.unpack_from(data, _BODY)
    content = data[_BODY + _WRITE_IN.size :]
    if len(content) != size:
        raise MalformedRequestError(f"a write of {size} bytes with {len(content)}")
    return handle, offset, content


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
    int(Opcode.OPENDIR): RequestKind("opendir", _decode_nothing),
    int(Opcode.RELEASEDIR): RequestKind("releasedir", _decode_nothing),
    int(Opcode.FSYNCDIR): RequestKind("fsyncdir", _decode_nothing),
    int(Opcode.CREATE): RequestKind("create", _decode_create),
    int(Opcode.BATCH_FORGET): RequestKind("batch_forget", _decode_batch_forget),
    int(Opcode.READDIRPLUS): RequestKind("readdirplus", _decode_listing),
    int(Opcode.RENAME2): RequestKind("rename", _decode_rename2),
}


def request_kinds(init_flags: int) -> dict[int, RequestKind]:
    """The kinds of requests by opcode, for a kernel that was told *init_flags* in answer to INIT.
    All others are answered with ENOSYS; most then never come again (FLUSH, because nothing is
    buffered here; ACCESS, locks, POLL and what no file of the backing is asked for)."""
    if init_flags & SETXATTR_EXT:
        extended = RequestKind("setxattr", _decode_setxattr_ext)
        return {**_REQUEST_KINDS, int(Opcode.SETXATTR): extended}
    return _REQUEST_KINDS


# -- replies ---------------------------------------------------------------------------------------


def encode_error(number: int, error: int) -> bytes:
    """The whole reply that refuses request *number* with errno *error*."""
    return OUT_HEADER.pack(OUT_HEADER.size, -error, number)


def encode_entry(
    fid: Fid,
    generation: int,
    stat: os.stat_result,
    ctime_ns: int,
    nlink: int,
    keep_seconds: int = KEEP_SECONDS,
) -> bytes:
    """A name stands for *fid*, with attributes *stat*, and the kernel may keep the name for
    *keep_seconds*."""
    head = _ENTRY_OUT.pack(fid, generation, keep_seconds, KEEP_SECONDS, 0, 0)
    return head + _encode_attr(fid, stat, ctime_ns, nlink)


def encode_absent(keep_seconds: int) -> bytes:
    """A name stands for nothing, and the kernel may keep that for *keep_seconds*."""
    return _ENTRY_OUT.pack(0, 0, keep_seconds, 0, 0, 0) + bytes(_ATTR.size)


def encode_attributes(fid: Fid, stat: os.stat_result, ctime_ns: int, nlink: int) -> bytes:
    """The attributes of *fid*."""
    return _ATTR_OUT.pack(KEEP_SECONDS, 0, 0) + _encode_attr(fid, stat, ctime_ns, nlink)


def _encode_attr(fid: Fid, stat: os.stat_result, ctime_ns: int, nlink: int) -> bytes:
    atime, atime_part_ns = divmod(stat.st_atime_ns, _SECOND_NS)
    mtime, mtime_part_ns = divmod(stat.st_mtime_ns, _SECOND_NS)
    ctime, ctime_part_ns = divmod(ctime_ns, _SECOND_NS)
    mode, _, _, _, uid, gid, size, _, _, _ = stat
    return _ATTR.pack(
        fid, size, stat.st_blocks, atime, mtime, ctime,
        atime_part_ns, mtime_part_ns, ctime_part_ns, mode, nlink, uid, gid,
        stat.st_rdev & _RDEV_MASK, stat.st_blksize, 0,
    )  # fmt: skip


def encode_listed(name: bytes, cookie: int, fid: Fid, mode: int, entry: bytes) -> bytes:
    """*name* at *cookie* in a listing: it stands for *fid*, whose type is in *mode*; *entry* says
    the rest (:func:`encode_entry`)."""
    length = len(name)
    dirent = _DIRENT.pack(fid, cookie, length, mode >> _TYPE_SHIFT)
    return entry + dirent + name + bytes(-length % _ALIGNMENT)


def encode_open(handle: int, *, keep_cache: bool) -> bytes:
    """A file or directory is open as *handle*, and the kernel may go on with the pages that it
    has."""
    return _OPEN_OUT.pack(handle, _FOPEN_KEEP_CACHE if keep_cache else 0, 0)


def encode_written(size: int) -> bytes:
    """The first *size* bytes were written."""
    return _WRITE_OUT.pack(size, 0)


def encode_size(size: int) -> bytes:
    """An attribute, or a list of them, has *size* bytes."""
    return _GETXATTR_OUT.pack(size, 0)


def encode_space(space: os.statvfs_result, name_bytes_max: int) -> bytes:
    """The space of a file system."""
    return _KSTATFS.pack(
        space.f_blocks, space.f_bfree, space.f_bavail, space.f_files, space.f_ffree,
        space.f_bsize, name_bytes_max, space.f_frsize, 0,
    )  # fmt: skip
