"""Giving a file on a mounted volume the attributes that a state has: only what differs is set."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from fusejournal.disk import syscalls
from fusejournal.disk.acls import ACCESS_ACL_XATTR, ACLS, DEFAULT_ACL_XATTR
from fusejournal.history.file_states import State


def set_new_attributes(fd: int, state: State, mode: int) -> None:
    """Set owner, mode and xattrs of a file that this process made just now with *mode*, of which
    nothing needs to be asked; *fd* may be an O_PATH descriptor. Raises OSError."""
    wanted = state.permissions()
    if (state.uid, state.gid) != (os.geteuid(), os.getegid()):
        assert state.uid is not None
        assert state.gid is not None
        syscalls.chown(fd, state.uid, state.gid)
    path = syscalls.descriptor_path(fd)
    if wanted.acl is not None:
        os.setxattr(path, ACCESS_ACL_XATTR, wanted.acl)
    if wanted.mode is not None and (wanted.mode != mode or wanted.acl is not None):
        os.chmod(path, wanted.mode)
    for key, value in state.xattrs.items():
        os.setxattr(path, key, value)


def attribute_changes(fd: int, state: State) -> Iterator[Callable[[], None]]:
    """Yields the calls that make owner, mode, xattrs and, but for a directory, the mtime of a file
    what *state* has: each is to be called before the next is asked for. *fd* may be an O_PATH
    descriptor. Raises OSError."""
    path = syscalls.descriptor_path(fd)
    found = os.fstat(fd)
    uid, gid = state.uid, state.gid
    assert uid is not None
    assert gid is not None
    if (found.st_uid, found.st_gid) != (uid, gid):
        yield lambda: syscalls.chown(fd, uid, gid)
    wanted, has = state.permissions(), _xattrs(path)
    xattrs = dict(state.xattrs)
    if wanted.acl is not None:
        xattrs[ACCESS_ACL_XATTR] = wanted.acl
    if wanted.default_acl is not None:
        xattrs[DEFAULT_ACL_XATTR] = wanted.default_acl
    # ACLs before the mode, because they bring one; a capability after the owner, which takes it
    # away.
    for key in sorted(has.keys() - xattrs.keys()):
        yield partial(os.removexattr, path, key)
    for key in sorted(xattrs, key=lambda key: key not in ACLS):
        value = xattrs[key]
        if has.get(key) != value:
            yield partial(os.setxattr, path, key, value)
    if wanted.mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != wanted.mode:
        mode = wanted.mode
        yield lambda: os.chmod(path, mode)
    mtime_ns = state.mtime_ns
    if not stat.S_ISDIR(found.st_mode) and os.fstat(fd).st_mtime_ns != mtime_ns:
        yield lambda: syscalls.set_times(fd, None, mtime_ns)


def _xattrs(path: str) -> dict[bytes, bytes]:
    found = {}
    for key in os.listxattr(path):
        with suppress(OSError):
            found[os.fsencode(key)] = os.getxattr(path, key)
    return found
