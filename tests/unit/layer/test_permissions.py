"""Modes, ACLs and groups of new objects."""

import os
import stat
import struct
from pathlib import Path

import pytest

from fusejournal.layer import permissions
from fusejournal.types import Caller


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("mode", "umask", "parent", "expected"),
    [
        (stat.S_IFREG | 0o666, 0o022, 0o755, 0o644),
        (stat.S_IFREG | 0o4777, 0o077, 0o2755, 0o4700),
        (stat.S_IFDIR | 0o777, 0o002, 0o2755, 0o2775),
        (stat.S_IFDIR | 0o1777, 0, 0o755, 0o1777),
    ],
)
def test_umask_and_setgid_directories(mode: int, umask: int, parent: int, expected: int) -> None:
    new = permissions.new_mode(mode, umask, stat.S_IFDIR | parent, None)
    assert stat.S_IMODE(new.mode) == expected
    assert stat.S_IFMT(new.mode) == stat.S_IFMT(mode)
    assert (new.acl, new.default_acl) == (None, None)


def test_default_acl_is_inherited_and_umask_ignored() -> None:
    default = acl((1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 7, NO_ID), (32, 1, NO_ID))
    new = permissions.new_mode(stat.S_IFREG | 0o640, 0o777, stat.S_IFDIR | 0o755, default)
    assert stat.S_IMODE(new.mode) == 0o640
    assert new.acl == acl(
        (1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)
    )
    assert new.default_acl is None
    directory = permissions.new_mode(stat.S_IFDIR | 0o777, 0, stat.S_IFDIR | 0o755, default)
    assert directory.default_acl == default
    assert stat.S_IMODE(directory.mode) == 0o771


def test_minimal_default_acl_needs_no_acl() -> None:
    default = acl((1, 7, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID))
    new = permissions.new_mode(stat.S_IFREG | 0o666, 0o022, stat.S_IFDIR, default)
    assert (stat.S_IMODE(new.mode), new.acl) == (0o640, None)


@pytest.mark.parametrize(
    ("mode", "gid", "cleared"),
    [
        (0o755, 1000, None),
        (0o4755, 1000, 0o755),
        (0o2755, 1000, 0o755),
        (0o6711, 1000, 0o711),
        (0o2644, 1000, None),
        (0o6644, 1000, 0o2644),
        (0o2644, 4711, 0o644),
        (0o6644, 4711, 0o644),
    ],
)
def test_privileges(mode: int, gid: int, cleared: int | None) -> None:
    who = Caller(1000, 1000, os.getpid())
    assert permissions.without_privileges(who, stat.S_IFREG | mode, gid) == cleared


def test_group() -> None:
    assert permissions.new_group(5, 0o755, 9) == 5
    assert permissions.new_group(5, 0o2755, 9) == 9


def test_a_thread_of_the_kernel_is_trusted_with_groups() -> None:
    """nfsd's are: the groups of the user that it acts for are not to be seen."""
    kthreadd = next(
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and (process / "comm").read_text() == "kthreadd\n"
    )
    assert permissions.in_group(Caller(1000, 1000, kthreadd), 4711)
    assert not permissions.in_group(Caller(1000, 1000, os.getpid()), 4711)
    assert not permissions.in_group(Caller(1000, 1000, 0), 4711)
