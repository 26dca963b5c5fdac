"""The hidden directory in a backing's root: what is in it has no name for anybody else (tree.py),
and it is no part of the tree.

The layer lets nobody make its name, nor that with dots behind it. A journal may have such a name
all the same, from a release that allowed it: as long as a user's file has the name, the hidden
directory goes by one with more dots, and keeps that when the file goes. So one that was left is not
known by its name alone, but by what it is: a directory that only its owner may enter and that has
no fid, as all that is the tree's has."""

import os
from collections.abc import Callable, Iterator
from stat import S_IFDIR
from uuid import UUID

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk import syscalls
from fusejournal.types import NAME_BYTES_MAX

_PREFIX = b".fusejournal."
HIDDEN_MODE = 0o700


def is_reserved(name: bytes, uuid: UUID) -> bool:
    """Returns whether *name*, in the root, is kept for the hidden directory of volume *uuid*."""
    return name.startswith(_PREFIX) and name.rstrip(b".") == _shortest_name(uuid)


def hidden_names(uuid: UUID) -> Iterator[bytes]:
    """The names that it can have, the usual one first."""
    name = _shortest_name(uuid)
    while len(name) <= NAME_BYTES_MAX:
        yield name
        name += b"."


def find_hidden_directory(
    root_fd: int, uuid: UUID, is_a_users: Callable[[bytes], bool]
) -> bytes | None:
    """Returns the name of the hidden directory that is in *root_fd*, or None. *is_a_users* tells
    whether the tree has a file of a name. Raises OSError."""
    for name in hidden_names(uuid):
        if not is_a_users(name) and _is_hidden_directory(root_fd, name):
            return name
    return None


def without_hidden(root_fd: int, names: list[bytes]) -> list[bytes]:
    """*names* of the directory that *root_fd* is open on, but for the hidden directory if that is
    the root of a volume's backing. Raises OSError."""
    try:
        uuid = UUID(bytes=os.getxattr(root_fd, FID_XATTR)[:16])
    except (OSError, ValueError):
        return names
    return [
        name
        for name in names
        if not (is_reserved(name, uuid) and _is_hidden_directory(root_fd, name))
    ]


def _shortest_name(uuid: UUID) -> bytes:
    return _PREFIX + uuid.hex.encode()


def _is_hidden_directory(directory: int, name: bytes) -> bool:
    """The owner does not matter: it is a user until it is made root's, and may have been left
    before that."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_mode != S_IFDIR | HIDDEN_MODE:
            return False
        os.getxattr(syscalls.descriptor_path(fd), FID_XATTR)
    except OSError as error:
        if not syscalls.missing(error):
            raise
        return True
    finally:
        os.close(fd)
    return False
