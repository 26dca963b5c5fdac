"""Doing things as somebody else."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SOMEBODY = 1000
ANOTHER = 1001


@contextmanager
def acting(
    uid: int, gid: int | None = None, groups: Sequence[int] = (), umask: int = 0o022
) -> Iterator[None]:
    """Do what is inside with these ids; root's powers are gone meanwhile."""
    old_umask, old_groups = os.umask(umask), os.getgroups()
    os.setgroups(list(groups))
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(old_groups)
        os.umask(old_umask)
