"""Limits that are told are those that the file systems have."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_IFBLK, S_IFCHR

import pytest

from fusejournal.backing import limits as module
from fusejournal.backing.limits import NO_LIMIT, BackingLimits, limit_met, probe_limits
from fusejournal.disk import syscalls
from fusejournal.operations import (
    Create,
    Import,
    Link,
    Mkdir,
    Setxattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
)
from fusejournal.types import Fid
from tests.support.filesystems import KINDS, filesystem, fill

pytestmark = pytest.mark.mount

_SMALL_BLOCKS = ("ext4", ("-b", "1024"))
_LARGE_XATTRS = ("ext4", ("-O", "ea_inode"))
_VARIANTS = [*((kind, ()) for kind in KINDS), _SMALL_BLOCKS, _LARGE_XATTRS]


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _refused(call: object, *arguments: object) -> str:
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@pytest.mark.parametrize(("kind", "options"), _VARIANTS)
def test_each_limit_is_the_last_that_holds(
    tmp_path: Path, kind: str, options: tuple[str, ...]
) -> None:
    with filesystem(kind, tmp_path, "disk", 512, *options) as root, _directory(root) as fd:
        before = os.stat(root)
        limits = probe_limits(fd)
        assert os.stat(root).st_mtime_ns == before.st_mtime_ns
        assert sorted(os.listdir(root)) in ([], ["lost+found"])
        assert None not in (limits.file_bytes, limits.xattr_value_bytes, limits.symlink_bytes)
        file = root / "file"
        file.touch()
        os.truncate(file, limits.file_bytes or 0)
        if limits.file_bytes != NO_LIMIT:
            assert _refused(os.truncate, file, (limits.file_bytes or 0) + 1) == "EFBIG"
        os.symlink("x" * (limits.symlink_bytes or 0), root / "link")
        target = "x" * ((limits.symlink_bytes or 0) + 1)
        assert _refused(os.symlink, target, root / "another") == "ENAMETOOLONG"
        (root / ("n" * (limits.name_bytes or 0))).touch()
        assert _refused((root / ("n" * ((limits.name_bytes or 0) + 1))).touch) == "ENAMETOOLONG"
        os.setxattr(file, "trusted.fusejournal", b"x" * (24 + len(syscalls.handle_of(fd))))
        value = limits.xattr_value_bytes or 0
        os.setxattr(file, "trusted.fusejournal-probe", b"x" * value)
        larger = b"x" * (value + 1)
        os.removexattr(file, "trusted.fusejournal-probe")
        told = _refused(os.setxattr, file, "trusted.fusejournal-probe", larger)
        assert told in ("ENOSPC", "E2BIG")
        os.setxattr(file, "trusted.fusejournal-probe", b"x" * value)
        if limits.xattr_total_bytes == NO_LIMIT:
            os.setxattr(file, "user.more", b"x" * min(value, 4000))
        else:
            assert _refused(os.setxattr, file, "user.more", b"x" * 600) == "ENOSPC"


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_devices(tmp_path: Path, kind: str) -> None:
    with filesystem(kind, tmp_path, "disk", 512) as root, _directory(root) as fd:
        limits = probe_limits(fd)
        major, minor = limits.device_major, limits.device_minor
        assert major is not None
        assert minor is not None
        for number, type_ in enumerate((S_IFCHR, S_IFBLK)):
            path = root / f"device{number}"
            os.mknod(path, type_ | 0o600, os.makedev(major, minor))
            assert os.stat(path).st_rdev == os.makedev(major, minor)
            if kind == "xfs":  # (The others hold whatever the call can be asked for.)
                for numbers in ((major + 1, 0), (0, minor + 1)):
                    device = os.makedev(*numbers)
                    assert _refused(os.mknod, root / "more", type_ | 0o600, device) == "EINVAL"
            else:
                assert (major, minor) == (4095, 2**20 - 1)


def test_the_links_of_a_file(tmp_path: Path) -> None:
    with filesystem("ext4", tmp_path, "disk", 512) as root, _directory(root) as fd:
        limit = probe_limits(fd).links
        assert limit is not None
        (root / "file").touch()
        for number in range(limit - 1):
            os.link(root / "file", root / f"{number}")
        assert os.stat(root / "file").st_nlink == limit
        assert _refused(os.link, root / "file", root / "last") == "EMLINK"


def test_a_full_disk_has_unknown_limits_of_attributes(tmp_path: Path) -> None:
    with filesystem("ext4", tmp_path, "disk", 64, "-b", "4096") as root, _directory(root) as fd:
        fill(root / "blocks")
        limits = probe_limits(fd)
        assert limits.xattr_value_bytes is limits.xattr_total_bytes is None
        assert limits.file_bytes == 0xFFFFFFFF000
        setting = Setxattr(Fid(2), b"user.x", b"x" * 5000)
        assert limit_met(setting, errno.ENOSPC, 0, fd, limits) is None
        os.unlink(root / "blocks")
        assert limit_met(setting, errno.ENOSPC, 0, fd, limits) is not None


def test_which_limit_was_met(tmp_path: Path) -> None:
    fid = Fid(2)
    big = b"x" * 5000
    imported = Import(fid, Fid(1), b"i", 0o100644, 0, 0, 0, 9, 0, None, ((b"user.x", big),), True)
    with filesystem("ext4", tmp_path, "disk", 64, "-b", "4096") as root, _directory(root) as fd:
        limits = probe_limits(fd)

        def met(operation: object, number: int, size: int = 0) -> str | None:
            return limit_met(operation, number, size, fd, limits)  # type: ignore[arg-type]

        told = {
            "17,592,186,044,416 bytes, and a file may have 16 TiB": met(
                Write(fid, (16 << 40) - 5, None), errno.EFBIG, 5
            ),
            "20,000,000,000,000 bytes, and a file may have 16 TiB": met(
                Truncate(fid, 20 * 10**12, None), errno.EFBIG
            ),
            "a symlink to 5,000 bytes, and one may have 4,095 bytes": met(
                Symlink(fid, Fid(1), b"s", big, 0, 0), errno.ENAMETOOLONG
            ),
            "its name is longer than 255 bytes": met(
                Symlink(fid, Fid(1), b"s" * 300, b"t", 0, 0), errno.ENAMETOOLONG
            ),
            "one link too many, and a file may have 65,000": met(
                Link(fid, Fid(1), b"l"), errno.EMLINK
            ),
            "extended attribute user.\\n of 5,000 bytes, and one may have 4,0": met(
                Setxattr(fid, b"user.\n", big), errno.ENOSPC
            ),
            "extended attributes of more than 4,0": met(
                Setxattr(fid, b"user.x", b"x" * 3000), errno.ENOSPC
            ),
            "extended attribute user.x of 5,000 bytes": met(imported, errno.ENOSPC),
            "extended attribute system.posix_acl_access of 5,000 bytes": met(
                Create(fid, Fid(1), b"c", 0o100644, 0, 0, 0, big), errno.ENOSPC
            ),
            "extended attributes of more than": met(
                Mkdir(fid, Fid(1), b"m", 0o40755, 0, 0, b"x" * 2500, b"x" * 2500), errno.ENOSPC
            ),
        }
        for wanted, found in told.items():
            assert found is not None
            assert wanted in found
        for other in (
            met(Write(fid, 0, None), errno.ENOSPC, 5),
            met(Create(fid, Fid(1), b"c", 0o100644, 0, 0, 0, None), errno.ENOSPC),
            met(Mkdir(fid, Fid(1), b"m", 0o40755, 0, 0, b"x" * 50, None), errno.ENOSPC),
            met(Setxattr(fid, b"user.x", big), errno.EDQUOT),
            met(Unlink(fid, Fid(1), b"u"), errno.EIO),
        ):
            assert other is None


def test_limits_on_the_wire() -> None:
    limits = BackingLimits(1 << 44, None, NO_LIMIT, 1023, 255, 65_000, 511, 1 << 18)
    assert BackingLimits.from_wire(limits.to_wire()) == limits
    assert BackingLimits.from_wire(limits.to_wire()[:6]) == replace(
        limits, device_major=None, device_minor=None
    )
    assert BackingLimits.from_wire((*limits.to_wire(), 7, 8)) == limits
    assert BackingLimits.from_wire((5,)) == BackingLimits(5)
    assert BackingLimits.from_wire(()) is None
    assert BackingLimits.from_wire((0, 0)) is None
    assert BackingLimits.from_json(limits.to_json()) == limits


def test_which_limits_are_lower() -> None:
    primary = BackingLimits(NO_LIMIT, 65_536, NO_LIMIT, 1023, 255, 2**31 - 1)
    mirror = BackingLimits((16 << 40) - 4096, 4036, 4036, 4095, None, 65_000)
    assert mirror.lower_than(mirror) == primary.lower_than(BackingLimits()) == []
    assert mirror.lower_than(primary) == [
        "files up to 16 TiB, here up to 8 EiB",
        "an extended attribute up to 4,036 bytes, here up to 65,536 bytes",
        "all of one file's up to 4,036 bytes, here up to any number",
        "links to a file up to 65,000, here up to 2,147,483,647",
    ]
    xfs, ext4 = (
        replace(mirror, device_major=511, device_minor=9),
        replace(mirror, device_major=4095),
    )
    assert xfs.lower_than(ext4) == ["devices' major numbers up to 511, here up to 4,095"]
    assert set(module._WORDS) == set(xfs.to_json())
