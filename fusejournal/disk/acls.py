"""POSIX ACLs as the kernel keeps them: the names of their attributes, and how permission bits and
an access ACL go together. Pure.

An ACL is what the xattr holds: a version (32 bits), then entries of tag, rights (16 bits each) and
id (32 bits), little-endian.

Source: acl(5); the kernel's include/uapi/linux/posix_acl_xattr.h, and posix_acl_equiv_mode() and
__posix_acl_chmod_masq() of its fs/posix_acl.c."""

import struct

ACCESS_ACL_XATTR = b"system.posix_acl_access"
DEFAULT_ACL_XATTR = b"system.posix_acl_default"
ACLS = frozenset({ACCESS_ACL_XATTR, DEFAULT_ACL_XATTR})
CAPABILITY_XATTR = b"security.capability"
"""The attribute of a file's capabilities (capabilities(7)), which are kept and cleared as ACLs."""

XFS_OWN_XATTRS = frozenset({b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"})
"""The names under which XFS shows ACLs once more, in a form of its own, to administrators: to set
or remove one of these is to set or remove the ACL (fs/xfs/xfs_xattr.c)."""

_HEAD_BYTES = 4
_ENTRY = struct.Struct("<HHI")
_OWNER, _GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x10, 0x20
_IN_MODE = frozenset({_OWNER, _GROUP, _OTHERS})


def mode_of(acl: bytes) -> int:
    """Returns the permission bits that go with an access ACL: its owner's, its mask's (or its
    group's) and others'."""
    rights = {tag: rights for tag, rights, _ in _ENTRY.iter_unpack(acl[_HEAD_BYTES:])}
    group = rights.get(_MASK, rights.get(_GROUP, 0))
    return int(rights.get(_OWNER, 0) << 6 | group << 3 | rights.get(_OTHERS, 0))


def after_chmod(acl: bytes, mode: int) -> bytes:
    """Returns an access ACL as it becomes when the permission bits are set to *mode*."""
    entries = list(_ENTRY.iter_unpack(acl[_HEAD_BYTES:]))
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP
    wanted = {_OWNER: mode >> 6 & 7, group: mode >> 3 & 7, _OTHERS: mode & 7}
    return acl[:_HEAD_BYTES] + b"".join(
        _ENTRY.pack(tag, wanted.get(tag, rights), id_) for tag, rights, id_ in entries
    )


def is_in_mode(acl: bytes) -> bool:
    """Returns True if an access ACL grants no more than permission bits can: only those are
    kept."""
    return all(tag in _IN_MODE for tag, _, _ in _ENTRY.iter_unpack(acl[_HEAD_BYTES:]))
