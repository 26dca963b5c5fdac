"""File handles on a mount: getting one, taking it apart, making one up."""

import os
import struct
from pathlib import Path

from fusejournal.disk import syscalls

_HANDLE = struct.Struct("<iIII")
"""Type, node id's high and low half, generation: fuse_encode_fh in the kernel's fs/fuse/inode.c."""


def handle_of(path: Path) -> bytes:
    """The handle of what is at *path*; a symlink is not followed."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return syscalls.handle_of(fd)
    finally:
        os.close(fd)


def generation_of(handle: bytes) -> int:
    """The generation that *handle* tells."""
    return int(_HANDLE.unpack(handle)[3])


def made_up(handle: bytes, fid: int, generation: int) -> bytes:
    """*handle*, of another file."""
    type_, *_ = _HANDLE.unpack(handle)
    return _HANDLE.pack(type_, fid >> 32, fid & 0xFFFFFFFF, generation)
