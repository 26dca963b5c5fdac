"""Extended attributes that say who may do what: ACLs as the kernel keeps them, and capabilities."""

import struct

CAPABILITY = b"security.capability"
ACCESS_ACL, DEFAULT_ACL = b"system.posix_acl_access", b"system.posix_acl_default"
CAPABILITIES = (
    struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0),
    struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 1000),
)
"""Values of both versions that the kernel hands out: capabilities(7)."""
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32


def make_acl(owner: int, user: int, group: int, mask: int | None, other: int) -> bytes:
    """An ACL in the xattr's own format; with a *mask*, also for a named user."""
    entries = [(_USER_OBJ, owner, -1), (_GROUP_OBJ, group, -1), (_OTHER, other, -1)]
    if mask is not None:
        entries += [(_USER, user, 1000), (_MASK, mask, -1)]
    packed = (
        _ACL_ENTRY.pack(tag, rights, who & 0xFFFFFFFF) for tag, rights, who in sorted(entries)
    )
    return struct.pack("<I", 2) + b"".join(packed)


def _acl_entries(acl: bytes) -> dict[int, tuple[int, int]]:
    return {tag: (rights, who) for tag, rights, who in _ACL_ENTRY.iter_unpack(acl[4:])}


def mode_of_acl(acl: bytes) -> int:
    """The nine permission bits that go with an access ACL."""
    entries = _acl_entries(acl)
    group = entries.get(_MASK) or entries[_GROUP_OBJ]
    return entries[_USER_OBJ][0] << 6 | group[0] << 3 | entries[_OTHER][0]


def acl_with_mode(acl: bytes, mode: int) -> bytes:
    """Returns what chmod(2) makes of an access ACL."""
    entries = _acl_entries(acl)
    bits = {
        _USER_OBJ: mode >> 6,
        _MASK if _MASK in entries else _GROUP_OBJ: mode >> 3,
        _OTHER: mode,
    }
    packed = (
        _ACL_ENTRY.pack(tag, bits[tag] & 7 if tag in bits else rights, who)
        for tag, (rights, who) in entries.items()
    )
    return acl[:4] + b"".join(packed)
