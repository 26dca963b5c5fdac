"""The tag by which a fid is kept with its file: the xattr ``trusted.fusejournal``, hidden from
users.

It has the volume's UUID, the fid and the backing handle. A copy of the attribute is recognized by a
handle that is not its file's. (The root's has more behind it: root_mark.py.) Source: xattr(7)."""

import errno
import os
import struct
from uuid import UUID

from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACLS, XFS_OWN_XATTRS
from fusejournal.native.kernel import FileStat
from fusejournal.types import ROOT_FID, Fid

FID_XATTR = "trusted.fusejournal"
HIDDEN_XATTRS = XFS_OWN_XATTRS | {FID_XATTR.encode()}
"""The attributes that users do not see, and entries do not have."""

_TAG = struct.Struct("<16sQ")
_FID_END = 1 << 63


def pack_tag(uuid: UUID, fid: Fid, handle: bytes) -> bytes:
    """The value of the attribute that keeps *fid* with its file."""
    return _TAG.pack(uuid.int.to_bytes(16, "big"), fid) + handle


def read_tag(fd: int, handle: bytes) -> tuple[UUID, Fid] | None:
    """Returns volume and fid kept with the file that O_PATH descriptor *fd* is open on, whose
    handle is *handle*; None where it has none, one that was copied from another file, or one with a
    number that no file has."""
    try:
        value = os.getxattr(syscalls.descriptor_path(fd), FID_XATTR)
    except OSError as error:
        if syscalls.missing(error):
            return None
        raise
    if len(value) < _TAG.size or not value.startswith(handle, _TAG.size):
        return None
    uuid, number = _TAG.unpack_from(value)
    if number != ROOT_FID and len(value) != _TAG.size + len(handle):
        return None
    if not 0 < number < _FID_END:
        return None
    return UUID(bytes=uuid), Fid(number)


def xattr_names(target: int | str) -> list[bytes]:
    """Returns the names of the attributes of *target*, sorted, without the hidden ones. Raises
    OSError."""
    names = map(os.fsencode, os.listxattr(target))
    return sorted(name for name in names if name not in HIDDEN_XATTRS)


def remove_xattr(target: int | str, name: bytes) -> None:
    """Takes attribute *name* off *target*, unless it is a label that the kernel keeps for itself.
    Raises OSError."""
    try:
        os.removexattr(target, name)
    except OSError as error:
        if name in ACLS or error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise


def remove_tag(directory: int, name: bytes) -> None:
    """Makes *name* no volume's file: an import will give it a fid of its own. Raises OSError."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.removexattr(syscalls.descriptor_path(fd), FID_XATTR)
    except OSError as error:
        if not syscalls.missing(error):  # gone by another of its names
            raise
    finally:
        os.close(fd)


class FoundEntry:
    """A file that the backing has under a name (Tree.probe_name)."""

    __slots__ = ("fid", "handle", "owner", "stat")

    def __init__(self, stat: FileStat, handle: bytes, fid: Fid | None, owner: UUID | None) -> None:
        self.stat = stat
        self.handle = handle
        self.fid = fid
        self.owner = owner
        """The volume that the file belongs to, or None."""
