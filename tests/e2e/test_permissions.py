"""Modes, ACLs and capabilities of a mounted layer, where a plain passthrough would differ from a
local file system."""

import errno
import mmap
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from tests.e2e.test_semantics import mode_of, refused
from tests.support.layer import Layer
from tests.support.trees import difference, image
from tests.support.users import ANOTHER, SOMEBODY, acting

pytestmark = pytest.mark.mount

_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


# -- setuid and setgid ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", ["write", "truncate", "open", "ftruncate", "chown", "chown to nobody else"]
)
def test_privileges_are_cleared(root: Path, layer: Layer, how: str) -> None:
    file = root / "tool"
    file.write_bytes(b"#!/bin/sh\n")
    os.chown(file, SOMEBODY, SOMEBODY)
    file.chmod(0o6755)
    if how == "chown":
        os.chown(file, ANOTHER, -1)
    elif how == "chown to nobody else":
        os.chown(file, -1, -1)
    else:
        with acting(SOMEBODY):
            if how == "write":
                fd = os.open(file, os.O_WRONLY)
                os.write(fd, b"x")
                assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755
                os.close(fd)
            elif how == "truncate":
                os.truncate(file, 1)
            elif how == "ftruncate":
                fd = os.open(file, os.O_WRONLY)
                os.ftruncate(fd, 1)
                os.close(fd)
            else:
                os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
    assert mode_of(file) == 0o755
    assert mode_of(layer.backing / "tool") == 0o755


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFDIR])
def test_chown_of_what_is_no_file(root: Path, tmp_path: Path, kind: int) -> None:
    """All but directories lose setuid and setgid, as in a local file system."""
    for path in (tmp_path / "local", root / "other"):
        if kind == stat.S_IFDIR:
            path.mkdir()
        else:
            os.mknod(path, kind | 0o600, os.makedev(1, 3))
        path.chmod(0o6755)
        os.chown(path, ANOTHER, ANOTHER)
    assert mode_of(root / "other") == mode_of(tmp_path / "local")


def test_setuid_given_between_two_writes_is_cleared(root: Path, layer: Layer) -> None:
    """The kernel remembers of a file that is written that it has no privileges."""
    file = root / "tool"
    file.write_bytes(b"#!/bin/sh\n")
    file.chmod(0o777)
    fd = os.open(file, os.O_WRONLY)
    try:
        for _ in range(3):
            os.write(fd, b"x")
        file.chmod(0o6755)
        with acting(SOMEBODY):
            os.write(fd, b"y")
    finally:
        os.close(fd)
    assert mode_of(file) == 0o755
    assert mode_of(layer.backing / "tool") == 0o755


def _copy(file: Path, fd: int) -> None:
    with open(file.with_name("source"), "rb") as source:
        assert os.copy_file_range(source.fileno(), fd, 2, None, 0) == 2


_WAYS: dict[str, Callable[[Path, int], object]] = {
    "write": lambda _, fd: os.pwrite(fd, b"x", 1),
    "two writes": lambda _, fd: [os.pwrite(fd, b"x", at) for at in (1, 9000)],
    "truncate": lambda file, _: os.truncate(file, 2),
    "ftruncate": lambda _, fd: os.ftruncate(fd, 9000),
    "open": lambda file, _: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)),
    "create": lambda file, _: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)),
    "allocate": lambda _, fd: os.posix_fallocate(fd, 0, 8192),
    "copy": _copy,
}


@pytest.mark.parametrize("mode", [0o6666, 0o6676, 0o6766, 0o6777])
@pytest.mark.parametrize(("uid", "groups"), [(None, []), (SOMEBODY, []), (SOMEBODY, [ANOTHER])])
def test_changing_as_in_a_local_file_system(
    root: Path, tmp_path: Path, layer: Layer, uid: int | None, groups: list[int], mode: int
) -> None:
    """Root keeps setuid and setgid, a member of the group setgid without its execution. The caller
    who makes the change counts, and not the one who has opened the file."""
    for place in (tmp_path, root):
        (place / "source").write_bytes(b"source")
        for way, change in _WAYS.items():
            file = place / way
            file.write_bytes(b"content")
            os.chown(file, ANOTHER, ANOTHER)
            file.chmod(mode)
            fd = os.open(file, os.O_WRONLY)
            try:
                with acting(uid, groups=groups) if uid is not None else nullcontext():
                    change(file, fd)
            finally:
                os.close(fd)
    expected = {way: oct(mode_of(tmp_path / way)) for way in _WAYS}
    assert {way: oct(mode_of(root / way)) for way in _WAYS} == expected
    assert {way: oct(mode_of(layer.backing / way)) for way in _WAYS} == expected
    assert len(set(expected.values())) == 1


@pytest.mark.parametrize("way", _WAYS)
def test_changing_drops_capabilities_as_in_a_local_file_system(
    root: Path, tmp_path: Path, layer: Layer, way: str
) -> None:
    """Root's, too."""
    for place in (tmp_path, root):
        (place / "source").write_bytes(b"source")
        (place / way).write_bytes(b"content")
        os.setxattr(place / way, "security.capability", _CAPABILITY)
        fd = os.open(place / way, os.O_WRONLY)
        try:
            _WAYS[way](place / way, fd)
        finally:
            os.close(fd)
    kept = "security.capability" in os.listxattr(tmp_path / way)
    for place in (root, layer.backing):
        assert ("security.capability" in os.listxattr(place / way)) == kept


def test_a_write_through_a_map_clears_privileges(root: Path, layer: Layer) -> None:
    """It comes late, and does not say whose it is."""
    file = root / "tool"
    file.write_bytes(b"content")
    os.chown(file, SOMEBODY, SOMEBODY)
    file.chmod(0o6755)
    with acting(SOMEBODY), open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 0) as pages:
        pages[:1] = b"x"
        pages.flush()
    assert mode_of(file) == mode_of(layer.backing / "tool") == 0o755


def test_a_file_without_a_name_keeps_what_root_gave_it(root: Path) -> None:
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.fchmod(fd, 0o6755)
        os.write(fd, b"content")
        syscalls.link(fd, syscalls.AT_FDCWD, os.fsencode(root / "tool"))
    finally:
        os.close(fd)
    assert mode_of(root / "tool") == 0o6755


def test_setgid_of_a_foreign_group_is_not_given(root: Path) -> None:
    directory = root / "shared"
    directory.mkdir()
    os.chown(directory, 0, ANOTHER)
    directory.chmod(0o2777)
    with acting(SOMEBODY, umask=0):
        fd = os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o2775)
        os.close(fd)
        (directory / "sub").mkdir()
    assert (directory / "file").stat().st_gid == ANOTHER
    assert mode_of(directory / "file") == 0o775
    assert (directory / "sub").stat().st_gid == ANOTHER
    assert mode_of(directory / "sub") == 0o2777
    with acting(SOMEBODY, groups=[ANOTHER], umask=0):
        os.close(os.open(directory / "member", os.O_CREAT | os.O_WRONLY, 0o2775))
    assert mode_of(directory / "member") == 0o2775


def test_sticky_directory(root: Path) -> None:
    directory = root / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    with acting(SOMEBODY):
        (directory / "mine").write_text("x")
    with acting(ANOTHER):
        refused(errno.EPERM, lambda: os.unlink(directory / "mine"))
        refused(errno.EPERM, lambda: os.rename(directory / "mine", directory / "yours"))
    with acting(SOMEBODY):
        os.unlink(directory / "mine")


# -- ACLs ------------------------------------------------------------------------------------------


def test_default_acl_rules_instead_of_umask(root: Path, layer: Layer) -> None:
    directory = root / "acl"
    directory.mkdir()
    subprocess.run(
        ["setfacl", "-d", "-m", f"u:{SOMEBODY}:rwx,g::rwx,m::rwx", directory], check=True
    )
    twin = layer.base / "twin"
    twin.mkdir()
    subprocess.run(["setfacl", "-d", "-m", f"u:{SOMEBODY}:rwx,g::rwx,m::rwx", twin], check=True)
    for place in (directory, twin):
        with acting(0, umask=0o077):
            (place / "file").write_text("x")
            (place / "sub").mkdir()
            (place / "sub" / "deep").write_text("x")
            os.mkfifo(place / "fifo", 0o640)
    with acting(SOMEBODY):
        (directory / "file").write_text("allowed by the ACL alone")
    with acting(ANOTHER):
        refused(errno.EACCES, lambda: (directory / "file").write_text("no"))
    (twin / "file").write_text("allowed by the ACL alone")
    assert not difference(image(directory, times=False), image(twin, times=False))
    assert not difference(image(layer.backing / "acl", times=False), image(twin, times=False))


def test_umask_rules_without_default_acl(root: Path) -> None:
    with acting(SOMEBODY, umask=0o027):
        (root / "file").write_text("x")
        (root / "sub").mkdir()
    assert mode_of(root / "file") == 0o640
    assert mode_of(root / "sub") == 0o750


def test_acl_and_mode_go_together(root: Path) -> None:
    file = root / "file"
    file.write_text("x")
    subprocess.run(["setfacl", "-m", f"u:{SOMEBODY}:r,m::r", file], check=True)
    assert mode_of(file) == 0o644
    file.chmod(0o600)
    with acting(SOMEBODY):
        refused(errno.EACCES, lambda: file.read_text())
    acl = subprocess.run(["getfacl", "-c", file], check=True, capture_output=True, text=True).stdout
    assert "mask::---" in acl


# -- extended attributes ---------------------------------------------------------------------------


def test_extended_attributes(root: Path, layer: Layer) -> None:
    file = root / "file"
    file.write_text("x")
    os.symlink("file", root / "link")
    os.setxattr(file, "user.a", b"1" * 2000)
    os.setxattr(file, "trusted.b", b"")
    os.setxattr(root / "link", "trusted.c", b"3", follow_symlinks=False)
    refused(errno.EEXIST, lambda: os.setxattr(file, "user.a", b"", os.XATTR_CREATE))
    refused(errno.ENODATA, lambda: os.setxattr(file, "user.x", b"", os.XATTR_REPLACE))
    refused(errno.ENODATA, lambda: os.getxattr(file, "user.x"))
    refused(errno.ENODATA, lambda: os.removexattr(file, "user.x"))
    assert os.getxattr(file, "user.a") == b"1" * 2000
    assert sorted(os.listxattr(file)) == ["trusted.b", "user.a"]
    assert os.listxattr(root / "link", follow_symlinks=False) == ["trusted.c"]
    with acting(SOMEBODY):
        assert os.listxattr(file) == ["user.a"]
        assert os.listxattr(root / "link", follow_symlinks=False) == []
    os.removexattr(file, "user.a")
    assert os.listxattr(file) == ["trusted.b"]
    # The layer's own is there in the backing, and nowhere else.
    assert "trusted.fusejournal" in os.listxattr(layer.backing / "file")
    refused(errno.ENODATA, lambda: os.getxattr(file, "trusted.fusejournal"))
    refused(errno.ENODATA, lambda: os.removexattr(file, "trusted.fusejournal"))
    with acting(SOMEBODY):
        refused(errno.EPERM, lambda: os.setxattr(file, "trusted.fusejournal", b"x"))
        refused(errno.EPERM, lambda: os.removexattr(file, "trusted.fusejournal"))


def test_all_attributes_of_a_backing_can_be_copied(root: Path, layer: Layer) -> None:
    """So do rsync -X and cp -a: the layer's own is not copied, and they are told no error."""
    file, other = root / "file", root / "other"
    file.write_text("x")
    os.setxattr(file, "trusted.b", b"2")
    other.write_text("x")
    for name in os.listxattr(layer.backing / "file"):
        os.setxattr(other, name, os.getxattr(layer.backing / "file", name))
    assert os.listxattr(other) == ["trusted.b"]
    tags = [os.getxattr(layer.backing / name, "trusted.fusejournal") for name in ("file", "other")]
    assert tags[0] != tags[1]
    assert [e["name"] for e in layer.entries() if e["op"] == "setxattr"] == ["trusted.b"] * 2


@pytest.mark.parametrize("how", ["write", "truncate", "open", "chown"])
def test_capabilities_are_dropped(root: Path, layer: Layer, how: str) -> None:
    file = root / "tool"
    file.write_bytes(b"x")
    os.setxattr(file, "security.capability", _CAPABILITY)
    if how == "truncate":
        os.truncate(file, 0)
    elif how == "chown":
        os.chown(file, SOMEBODY, SOMEBODY)
    else:
        fd = os.open(file, os.O_WRONLY | (os.O_TRUNC if how == "open" else 0))
        os.write(fd, b"y")
        os.close(fd)
    assert "security.capability" not in os.listxattr(file)
    assert "removexattr" in [entry["op"] for entry in layer.entries()]


def test_capabilities_given_between_two_writes_are_dropped(root: Path, layer: Layer) -> None:
    file = root / "tool"
    (root / "other").write_bytes(b"x")
    os.link(root / "other", file)
    fd = os.open(root / "other", os.O_WRONLY)
    try:
        for _ in range(3):
            os.write(fd, b"x")
        os.setxattr(file, "security.capability", _CAPABILITY)
        os.write(fd, b"y")
    finally:
        os.close(fd)
    assert "security.capability" not in os.listxattr(file)
    assert "security.capability" not in os.listxattr(layer.backing / "tool")


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_an_acl_that_is_not_there_can_be_removed(root: Path, tmp_path: Path, name: str) -> None:
    """It is so on a local file system; nfsd relies on it."""
    for directory in (tmp_path / "plain", root / "directory"):
        directory.mkdir()
        os.removexattr(directory, name)
    with pytest.raises(OSError, match="No data"):
        os.removexattr(root / "directory", "user.missing")
