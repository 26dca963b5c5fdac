"""The hidden directory in a backing's root, by its name: what is in it has no name for anybody else
(tree.py), and it is no part of the tree."""

import os
from uuid import UUID

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.disk import syscalls


def without_hidden(root_fd: int, names: list[bytes]) -> list[bytes]:
    """*names* of the directory that *root_fd* is open on, but for the hidden directory if that is
    the root of a volume's backing. Raises OSError."""
    try:
        uuid = UUID(bytes=os.getxattr(root_fd, FID_XATTR)[:16])
    except (OSError, ValueError):
        return names
    hidden = hidden_directory_of(uuid)
    return [
        name
        for name in names
        if name.rstrip(b".") != hidden or _is_marked(root_fd, name)  # a user's, with that name
    ]


def _is_marked(directory: int, name: bytes) -> bool:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.getxattr(syscalls.descriptor_path(fd), FID_XATTR)
    except OSError as error:
        if not syscalls.missing(error):
            raise
        return False
    finally:
        os.close(fd)
    return True


def hidden_directory_of(uuid: UUID) -> bytes:
    """Returns the name that it has, unless a user has taken that."""
    return b".fusejournal.%s" % uuid.hex.encode()
