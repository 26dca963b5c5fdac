"""Works out modes, owners and ACLs: the results that an operation's entry holds. Pure
functions.

The kernel checks permissions itself (``default_permissions``) but leaves to the layer what a local
file system works out when something is made, written or given away: umask or default ACL, the
setgid directory, and the clearing of setuid and setgid.

Source: acl(5), inode(7), chmod(2), the kernel's fs/posix_acl.c (posix_acl_create_masq) and
fs/attr.c (setattr_should_drop_sgid); the xattr format is include/uapi/linux/posix_acl_xattr.h: a
version word 2, then entries of tag (16 bits), permissions (16), id (32), all little-endian."""

import os
import struct
from collections.abc import Iterable
from stat import S_IMODE, S_ISDIR, S_ISGID, S_ISUID, S_IXGRP
from typing import NamedTuple

from fusejournal.native.kernel import FileStat
from fusejournal.types import Caller

_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_PF_KTHREAD = 0x00200000
_CAP_SYS_ADMIN = 21


class NewMode(NamedTuple):
    """Mode (with type) and ACLs of a new object; None where it has no ACL beyond its mode."""

    mode: int
    acl: bytes | None
    default_acl: bytes | None


def new_mode(mode: int, umask: int, parent_mode: int, default_acl: bytes | None) -> NewMode:
    """Mode and ACLs of an object made with *mode* in a directory with *parent_mode* and
    *default_acl*."""
    is_directory = S_ISDIR(mode)
    if is_directory and parent_mode & S_ISGID:
        mode |= S_ISGID
    if default_acl is None:
        return NewMode(mode & ~(umask & 0o777), None, None)
    mode, acl = _inherit(default_acl, mode)
    return NewMode(mode, acl, default_acl if is_directory else None)


def _inherit(default_acl: bytes, mode: int) -> tuple[int, bytes | None]:
    """The access ACL that *default_acl* gives to an object made with *mode*, and the mode it ends
    with."""
    entries = [list(e) for e in _ACL_ENTRY.iter_unpack(default_acl[_VERSION.size :])]
    has_mask = any(tag == _MASK for tag, _, _ in entries)
    result = mode & ~0o777
    for entry in entries:
        tag = entry[0]
        if tag == _USER_OBJ:
            entry[1] &= mode >> 6
            result |= entry[1] << 6
        elif tag == _MASK or (tag == _GROUP_OBJ and not has_mask):
            entry[1] &= mode >> 3
            result |= entry[1] << 3
        elif tag == _OTHER:
            entry[1] &= mode
            result |= entry[1]
    if len(entries) == 3:
        return result, None
    return result, default_acl[: _VERSION.size] + b"".join(_ACL_ENTRY.pack(*e) for e in entries)


def new_group(caller_gid: int, parent_mode: int, parent_gid: int) -> int:
    """The group of a new object: the caller's, or the directory's where that is setgid."""
    return parent_gid if parent_mode & S_ISGID else caller_gid


def inherited(
    mode: int, umask: int, who: Caller, parent: FileStat, default_acl: bytes | None
) -> tuple[int, NewMode]:
    """Group, mode and ACLs of an object that *who* makes with *mode* in the directory *parent*,
    which has *default_acl*."""
    gid = new_group(who.gid, parent.st_mode, parent.st_gid)
    if mode & S_ISGID and not S_ISDIR(mode) and mode & S_IXGRP and not in_group(who, gid):
        mode &= ~S_ISGID
    return gid, new_mode(mode, umask, parent.st_mode, default_acl)


def without_privileges(who: Caller, mode: int, gid: int) -> int | None:
    """The permission bits of a file of group *gid* after a change by *who* cleared setuid and
    setgid, or None where nothing changes.

    Setgid without group execution, which was once the sign of mandatory locking, stays where *who*
    may give it."""
    cleared = mode & ~S_ISUID
    if mode & S_ISGID and (mode & S_IXGRP or not in_group(who, gid)):
        cleared &= ~S_ISGID
    return S_IMODE(cleared) if cleared != mode else None


def in_group(who: Caller, gid: int) -> bool:
    """Returns True if *who* may give setgid of group *gid*: a member, or root.

    nfsd acts for a user whose further groups only the client's request tells, and the kernel does
    not pass them on. It asks for nothing, though, that it would refuse this user by itself: its own
    checks of a new file and of chmod have these groups (mode_strip_sgid, setattr_prepare)."""
    return (
        who.uid == 0
        or who.gid == gid
        or gid in _supplementary_groups(who.pid)
        or _is_of_kernel(who.pid)
    )


def is_admin(who: Caller) -> bool:
    """Returns True if *who* has CAP_SYS_ADMIN over the machine, not only in a container of their
    own. Of a process that cannot be seen from here, root has. Source: proc(5), /proc/pid/status,
    CapEff; user_namespaces(7)."""
    base = f"/proc/{who.pid}"
    try:
        with open(f"{base}/status", encoding="ascii", errors="replace") as status:
            capabilities = next(line for line in status if line.startswith("CapEff:"))
        same = os.readlink(f"{base}/ns/user") == os.readlink("/proc/self/ns/user")
        return same and bool(int(capabilities.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    except (OSError, StopIteration):
        return who.uid == 0


def _supplementary_groups(pid: int) -> Iterable[int]:
    """The supplementary groups of process *pid*; none when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Groups:"):
                    return [int(word) for word in line.split()[1:]]
    except OSError:
        pass
    return []


def _is_of_kernel(pid: int) -> bool:
    """Returns True if process *pid* is a thread of the kernel's own. Source: proc(5),
    /proc/pid/stat, field 9; include/linux/sched.h."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return bool(int(stat.read().rpartition(")")[2].split()[6]) & _PF_KTHREAD)
    except OSError:
        return False
