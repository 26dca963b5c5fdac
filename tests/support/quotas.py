"""Quotas of users on an ext4 that was made with ``-O quota`` and mounted with ``usrquota``.

Source: quotactl(2), the kernel's fs/quota/dquot.c (ignore_hardlimit: a process that has
CAP_SYS_RESOURCE is not held by them)."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from fusejournal.disk.syscalls import drop_resource_capability

_Q_SETQUOTA, _USRQUOTA = 0x800008, 0
_LIMITS_ARE_VALID = 5
_CAP_VERSION_3, _CAP_SYS_RESOURCE = 0x20080522, 24
_libc = ctypes.CDLL(None, use_errno=True)


def set_quota(device: str, uid: int, kib: int, inodes: int) -> None:
    """User *uid* may have so much on the file system on *device*; 0: without a limit. Raises
    OSError."""
    block = struct.pack("<8QI4x", kib, 0, 0, inodes, 0, 0, 0, 0, _LIMITS_ARE_VALID)
    command = _Q_SETQUOTA << 8 | _USRQUOTA
    if _libc.quotactl(command, os.fsencode(device), uid, block) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def held_by_quotas() -> Iterator[None]:
    """Does the block without CAP_SYS_RESOURCE, as a primary's layer works."""
    header = struct.pack("<Ii", _CAP_VERSION_3, 0)
    before = ctypes.create_string_buffer(24)
    assert _libc.capget(header, before) == 0
    drop_resource_capability()
    try:
        yield
    finally:
        assert _libc.capset(header, before.raw) == 0


def may_pass_quotas() -> bool:
    """True if this process has CAP_SYS_RESOURCE."""
    header = struct.pack("<Ii", _CAP_VERSION_3, 0)
    found = ctypes.create_string_buffer(24)
    assert _libc.capget(header, found) == 0
    return bool(struct.unpack("<6I", found.raw)[0] >> _CAP_SYS_RESOURCE & 1)
