"""The layer's side of FUSE as bytes: replies encoded. Pure. (Requests are in kernel_protocol.py.)
Attributes, entries and listings, which are asked for most, are filled in by native/kernel.c.

A reply is ``fuse_out_header``, then a struct and data. All integers are the machine's own.

========================  =====  ==================================================================
struct                    bytes  fields
========================  =====  ==================================================================
fuse_out_header              16  len, error, unique
fuse_attr                    88  ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec,
                                 ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
fuse_entry_out              128  nodeid, generation, entry_valid, attr_valid, entry_valid_nsec,
                                 attr_valid_nsec, attr
fuse_attr_out               104  attr_valid, attr_valid_nsec, dummy, attr
fuse_dirent                  24  ino, off, namelen, type; then the name, padded to 8 bytes
fuse_direntplus             152  entry_out, dirent
fuse_open_out                16  fh, open_flags, padding
fuse_write_out                8  size, padding
fuse_kstatfs                 80  blocks, bfree, bavail, files, ffree, bsize, namelen, frsize,
                                 padding, spare[6]
fuse_getxattr_out             8  size, padding
fuse_lseek_out                8  offset
fuse_ioctl_out               16  result, flags, in_iovs, out_iovs; then data
fuse_statx_out              288  attr_valid, attr_valid_nsec, flags, spare[2]; then fuse_statx:
                                 mask, blksize, attributes, nlink, uid, gid, mode, padding, ino,
                                 size, blocks, attributes_mask, atime, btime, ctime and mtime
                                 (seconds, nanoseconds, padding each), rdev_major, rdev_minor,
                                 dev_major, dev_minor, spare[14]
========================  =====  ==================================================================

Source: include/uapi/linux/fuse.h; fs/fuse/dev.c (fuse_dev_do_write)."""

import os
import struct
from typing import Final

from fusejournal.native.kernel import FileStat
from fusejournal.types import Fid

OUT_HEADER: Final = struct.Struct("=IiQ")
_ENTRY_OUT: Final = struct.Struct("=QQQQII88x")
_OPEN_OUT: Final = struct.Struct("=QII")
_WRITE_OUT: Final = struct.Struct("=II")
_KSTATFS: Final = struct.Struct("=QQQQQIIII24x")
_GETXATTR_OUT: Final = struct.Struct("=II")
_LSEEK_OUT: Final = struct.Struct("=Q")
_IOCTL_OUT: Final = struct.Struct("=iIII")
_STATX_OUT: Final = struct.Struct("=QII16xIIQIIIHHQQQQqIiqIiqIiqIiIIII112x")

assert (OUT_HEADER.size, _ENTRY_OUT.size, _KSTATFS.size, _STATX_OUT.size) == (16, 128, 80, 288)

KEEP_SECONDS: Final = 3600
"""The time for which the kernel may keep names and attributes. It is notified of every change,
because only its mount changes the tree."""

_FOPEN_KEEP_CACHE: Final = 1 << 1
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800
_SECOND_NS: Final = 1_000_000_000


def encode_absent(keep_seconds: int) -> bytes:
    """A name stands for nothing, and the kernel may keep that for *keep_seconds*."""
    return _ENTRY_OUT.pack(0, 0, keep_seconds, 0, 0, 0)


def encode_statx(
    fid: Fid, stat: FileStat, ctime_ns: int, nlink: int, birth_ns: int | None
) -> bytes:
    """The attributes of *fid*, and when it was born; None where that is not known."""
    atime, atime_part_ns = divmod(stat.st_atime_ns, _SECOND_NS)
    birth, birth_part_ns = divmod(birth_ns or 0, _SECOND_NS)
    ctime, ctime_part_ns = divmod(ctime_ns, _SECOND_NS)
    mtime, mtime_part_ns = divmod(stat.st_mtime_ns, _SECOND_NS)
    mask = _STATX_BASIC_STATS | (0 if birth_ns is None else _STATX_BTIME)
    return _STATX_OUT.pack(
        KEEP_SECONDS, 0, 0,
        mask, stat.st_blksize, 0, nlink, stat.st_uid, stat.st_gid, stat.st_mode, 0,
        fid, stat.st_size, stat.st_blocks, 0,
        atime, atime_part_ns, 0, birth, birth_part_ns, 0,
        ctime, ctime_part_ns, 0, mtime, mtime_part_ns, 0,
        os.major(stat.st_rdev), os.minor(stat.st_rdev), 0, 0,
    )  # fmt: skip


def encode_open(handle: int, *, keep_cache: bool) -> bytes:
    """A file or directory is open as *handle*, and the kernel may go on with the pages that it
    has."""
    return _OPEN_OUT.pack(handle, _FOPEN_KEEP_CACHE if keep_cache else 0, 0)


def encode_written(size: int) -> bytes:
    """The first *size* bytes were written."""
    return _WRITE_OUT.pack(size, 0)


def encode_offset(offset: int) -> bytes:
    """The data, or hole, that was looked for begins at *offset*."""
    return _LSEEK_OUT.pack(offset)


def encode_ioctl(data: bytes) -> bytes:
    """An ioctl is answered with *data*."""
    return _IOCTL_OUT.pack(0, 0, 0, 0) + data


def encode_size(size: int) -> bytes:
    """An attribute, or a list of them, has *size* bytes."""
    return _GETXATTR_OUT.pack(size, 0)


def encode_space(space: os.statvfs_result, name_bytes_max: int) -> bytes:
    """The space of a file system."""
    return _KSTATFS.pack(
        space.f_blocks, space.f_bfree, space.f_bavail, space.f_files, space.f_ffree,
        space.f_bsize, name_bytes_max, space.f_frsize, 0,
    )  # fmt: skip
