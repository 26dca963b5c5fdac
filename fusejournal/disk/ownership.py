"""Ownership of places: who can change what a path leads to.

A user who can write to a directory can rename what is in it, whosever that is, and put something
else in its place; so a file is as safe as the weakest directory above it. In a sticky directory
only the owners of the directory and of the entry can (unlink(2), inode(7)). A directory's mode
tells of its ACL, too: the group's bits are the ACL's mask (acl(5)). The rule is that of
sshd_config(5), StrictModes, but for sticky directories."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def weak_place(path: Path, *, owners: Iterable[int] = (0,)) -> Path | None:
    """Returns the first of *path*, what it resolves to, and the directories above both, that users
    other than *owners* own or can write to; None where there is none. Symlinks on the way count by
    their owners. Raises OSError."""
    trusted = frozenset(owners)
    path = Path(os.path.abspath(path))
    for way in dict.fromkeys((path, path.resolve())):
        for one in (way, *way.parents):
            found = one.lstat()
            is_shared = not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022
            is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            if found.st_uid not in trusted or (is_shared and not is_sticky):
                return one
    return None
