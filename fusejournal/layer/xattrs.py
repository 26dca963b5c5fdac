"""Extended attributes as callers see them: the layer's own is not there for anybody, nor are ACLs
in a form that only XFS has; and those for administrators are for them alone. Reads only.

Source: xattr(7), getxattr(2), setxattr(2)."""

import errno
import os

from fusejournal.backing.fid_tag import HIDDEN_XATTRS, xattr_names
from fusejournal.backing.tree import Tree
from fusejournal.layer import permissions
from fusejournal.layer.kernel_replies import encode_size
from fusejournal.layer.resolve import refusal
from fusejournal.types import Caller, Fid

_TRUSTED = b"trusted."


def read_xattr(tree: Tree, fid: Fid, name: bytes) -> bytes:
    """The value of attribute *name*. Raises OSError ENODATA."""
    if name in HIDDEN_XATTRS:
        raise refusal(errno.ENODATA)
    return os.getxattr(tree.xattr_target(fid), name)


def list_xattrs(tree: Tree, fid: Fid, who: Caller) -> bytes:
    """The names that *who* may see, each with a NUL behind it."""
    names = xattr_names(tree.xattr_target(fid))
    if any(name.startswith(_TRUSTED) for name in names) and not permissions.is_admin(who):
        names = [name for name in names if not name.startswith(_TRUSTED)]
    return b"".join(name + b"\0" for name in names)


def check_flags(tree: Tree, fid: Fid, name: bytes, flags: int) -> None:
    """Raises OSError where *flags* do not let attribute *name* be set: EEXIST, ENODATA, EINVAL."""
    if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
        raise refusal(errno.EINVAL)
    if flags & os.XATTR_CREATE:
        try:
            read_xattr(tree, fid, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
        else:
            raise refusal(errno.EEXIST)
    elif flags & os.XATTR_REPLACE:
        read_xattr(tree, fid, name)


def encode_sized(value: bytes, size: int) -> bytes:
    """The reply with *value* for a caller who has room for *size* bytes; with its size for one who
    asks for that, by 0. Raises OSError ERANGE."""
    if not size:
        return encode_size(len(value))
    if len(value) > size:
        raise refusal(errno.ERANGE)
    return value
