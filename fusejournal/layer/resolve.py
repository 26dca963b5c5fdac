"""Works out the operation that a request comes to, with its results, by the request, the attributes
of what it is about and the ACL that is inherited. Pure functions, but for a look at the caller's
groups (permissions.py).

Raises OSError for what is refused without asking the backing.

Source: open(2), rename(2), chown(2), setxattr(2), inode(7); the kernel's fs/posix_acl.c
(posix_acl_update_mode)."""

import errno
import os
from stat import S_IFCHR, S_IFDIR, S_IFMT, S_IFREG, S_IMODE, S_ISGID
from typing import Final
from uuid import UUID

from fusejournal.backing.hidden_directory import is_reserved
from fusejournal.disk.acls import ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR
from fusejournal.file_operations import Fallocate
from fusejournal.layer import permissions
from fusejournal.layer.kernel_protocol import AttributeChange
from fusejournal.native.kernel import FileStat
from fusejournal.operations import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Create,
    Mkdir,
    Rename,
    Setattr,
    Symlink,
    Truncate,
    Whiteout,
    Write,
)
from fusejournal.types import NAME_BYTES_MAX, ROOT_FID, Caller, Fid, clamp_time

ACL_XATTRS: Final = frozenset((ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR))
_NOTHING_SET: Final = (None,) * 5
"""The fields of a SETATTR behind the fid, where it sets nothing."""
_RENAME_FLAGS: Final = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT


def refusal(number: int) -> OSError:
    """The error for errno *number*."""
    return OSError(number, os.strerror(number))


def check_name(name: bytes) -> None:
    """Raises OSError ENAMETOOLONG."""
    if len(name) > NAME_BYTES_MAX:
        raise refusal(errno.ENAMETOOLONG)


def check_new_name(parent: Fid, name: bytes, uuid: UUID) -> None:
    """Raises OSError ENAMETOOLONG; EPERM for a name that the layer of volume *uuid* itself needs in
    the root."""
    check_name(name)
    if parent == ROOT_FID and is_reserved(name, uuid):
        raise refusal(errno.EPERM)


def make(
    who: Caller,
    fid: Fid,
    parent: Fid,
    name: bytes,
    mode: int,
    rdev: int,
    umask: int,
    parent_stat: FileStat,
    default_acl: bytes | None,
) -> Create | Mkdir:
    """A directory, file, fifo, socket or device.

    Args:
        who: the caller, to whom it belongs; the group may be the directory's.
        fid: the new object's.
        parent, name: its place.
        mode: type and permission bits, as the caller asks.
        rdev: a device's number; 0 for others.
        umask: the caller's; it does not count where there is a default ACL.
        parent_stat, default_acl: attributes and default ACL of *parent*; None: it has none."""
    gid, new = permissions.inherited(mode, umask, who, parent_stat, default_acl)
    if S_IFMT(mode) == S_IFDIR:
        return Mkdir(fid, parent, name, new.mode, who.uid, gid, new.acl, new.default_acl)
    return Create(fid, parent, name, new.mode, who.uid, gid, rdev, new.acl)


def unnamed(
    who: Caller,
    fid: Fid,
    parent: Fid,
    mode: int,
    umask: int,
    parent_stat: FileStat,
    default_acl: bytes | None,
) -> Create:
    """A regular file that is made without a name; the name in it stands for none.

    Args:
        who, fid, umask, parent_stat, default_acl: as in :func:`make`.
        parent: the directory in which it would be.
        mode: its permission bits, as the caller asks."""
    gid, new = permissions.inherited(S_IFREG | mode, umask, who, parent_stat, default_acl)
    return Create(fid, parent, b"-", new.mode, who.uid, gid, 0, new.acl)


def symlink(
    who: Caller, fid: Fid, parent: Fid, name: bytes, target: bytes, parent_stat: FileStat
) -> Symlink:
    """A symbolic link.

    Args:
        who, fid, parent, name, parent_stat: as in :func:`make`.
        target: what it says, not interpreted."""
    gid = permissions.new_group(who.gid, parent_stat.st_mode, parent_stat.st_gid)
    return Symlink(fid, parent, name, target, who.uid, gid)


def rename(
    fid: Fid,
    parent: Fid,
    name: bytes,
    new_parent: Fid,
    new_name: bytes,
    flags: int,
    replaced: Fid | None,
) -> Rename | None:
    """A move; None where there is nothing to do, because both are names of one file and rename(2)
    leaves both.

    Args:
        fid, parent, name: the file, and its place.
        new_parent, new_name: the place that it moves to.
        flags: those of renameat2(2).
        replaced: the file that is there; None: there is none.

    Raises OSError."""
    if flags & ~_RENAME_FLAGS:
        raise refusal(errno.EINVAL)
    if replaced is not None and flags & RENAME_NOREPLACE:
        raise refusal(errno.EEXIST)
    if replaced is None and flags & RENAME_EXCHANGE:
        raise refusal(errno.ENOENT)
    if replaced == fid:
        return None
    return Rename(fid, parent, name, new_parent, new_name, flags, replaced or Fid(0))


def whiteout(
    who: Caller,
    moving: Rename,
    fid: Fid,
    parent_stat: FileStat,
    default_acl: bytes | None,
) -> Whiteout:
    """*moving* with a whiteout, which becomes *fid*, left behind in a directory with *parent_stat*
    and *default_acl*."""
    gid, new = permissions.inherited(S_IFCHR, 0, who, parent_stat, default_acl)
    return Whiteout(*moving, fid, new.mode, who.uid, gid, new.acl)


def _cleared(who: Caller, stat: FileStat, clears: bool) -> int | None:
    """The mode of a file with *stat* after *who* has changed what is in it, or None where that
    stays; *clears*: setuid and setgid are taken away, because *who* lacks CAP_FSETID."""
    return permissions.without_privileges(who, stat.st_mode, stat.st_gid) if clears else None


def truncation(who: Caller, fid: Fid, size: int, stat: FileStat, clears: bool) -> Truncate:
    """A file with *stat* gets a new *size*; *clears* as in :func:`_cleared`."""
    return Truncate(fid, size, _cleared(who, stat, clears))


def write(who: Caller, fid: Fid, offset: int, stat: FileStat, clears: bool) -> Write:
    """A file with *stat* gets new content at *offset*; *clears* as in :func:`_cleared`."""
    return Write(fid, offset, _cleared(who, stat, clears))


def allocation(
    who: Caller, fid: Fid, flags: int, offset: int, length: int, stat: FileStat, clears: bool
) -> Fallocate:
    """Space of a file is taken, given back or zeroed.

    Args:
        who, fid, stat: the caller, and the file with its attributes.
        flags, offset, length: as in fallocate(2).
        clears: as in :func:`_cleared`.

    Raises OSError."""
    operation = Fallocate(fid, flags, offset, length, _cleared(who, stat, clears))
    if not operation.can_be():
        raise refusal(errno.EOPNOTSUPP)
    return operation


def takes_privileges(change: AttributeChange) -> bool:
    """Returns True if *change* takes setuid, setgid and capabilities away: a new size or owner
    does, and a SETATTR without any field, which is how the kernel asks for just that at a write or
    a chown(2) without a new owner."""
    return (
        change.size is not None
        or change.uid is not None
        or change.gid is not None
        or (change.mode is None and change.atime_ns is None and change.mtime_ns is None)
    )


def setattr(who: Caller, fid: Fid, change: AttributeChange, old: FileStat | None) -> Setattr | None:
    """The parts of *change* other than the size; None where nothing is left. *old* is the file's
    where the change takes privileges, else None."""
    mode = S_IMODE(change.mode) if change.mode is not None else None
    if mode is None and old is not None and S_IFMT(old.st_mode) != S_IFDIR:
        resized_only = change.size is not None and change.uid is None and change.gid is None
        if not resized_only:
            mode = _cleared(who, old, clears=True)
    operation = Setattr(
        fid,
        mode,
        change.uid,
        change.gid,
        None if change.atime_ns is None else clamp_time(change.atime_ns),
        None if change.mtime_ns is None else clamp_time(change.mtime_ns),
    )
    return operation if operation[1:] != _NOTHING_SET else None


def setgid_around_acl(
    who: Caller, fid: Fid, name: bytes, stat: FileStat
) -> tuple[Setattr, Setattr] | tuple[None, None]:
    """The changes before attribute *name* is set on a file with *stat*, and again where that is
    refused: a local file system drops setgid when a caller outside the group sets the ACL."""
    mode = S_IMODE(stat.st_mode)
    if name != ACCESS_ACL_XATTR or not mode & S_ISGID or permissions.in_group(who, stat.st_gid):
        return None, None
    drop = Setattr(fid, mode & ~S_ISGID, None, None, None, None)
    return drop, drop._replace(mode=mode)
