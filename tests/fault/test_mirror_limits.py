"""A mirror on a file system that holds less than its primary's: what does not fit stops it, with
one line, and is tried again by the next mount; a disk that is full is waited for as ever."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_IFBLK

import pytest

from fusejournal.backing.fid_tag import FID_XATTR
from fusejournal.config import ReplicationConfig
from fusejournal.errors import RecoveryError
from fusejournal.operations import (
    Create,
    Link,
    Mkdir,
    Setxattr,
    Symlink,
    Truncate,
    Write,
)
from fusejournal.wire.frames import PROTOCOL_VERSION
from tests.support.filesystems import filesystem, fill
from tests.support.losses import begin_another_boot
from tests.support.pairs import (
    level,
    mirror_status,
    peer_status,
    running,
    shipping,
    until,
)
from tests.support.volumes import SOMEBODY, OpenVolume, applied, open_volume

pytestmark = pytest.mark.mount

_GAP = "this backing's file system has no place for it: "
_ADVICE = (
    "; nothing after it is applied; give this mirror an empty backing, on a file system that holds "
    "it, and an empty state"
)


def _sets(size: int) -> Callable[[OpenVolume], None]:
    def change(primary: OpenVolume) -> None:
        fid = primary.create("file", b"x", primary.mkdir("d"))
        primary.volume.commit(Setxattr(fid, b"user.big", b"x" * size), SOMEBODY)

    return change


def _sets_many(primary: OpenVolume) -> None:
    fid = primary.create("file", b"x", primary.mkdir("d"))
    for number in range(4):
        name = f"user.{number}".encode()
        primary.volume.commit(Setxattr(fid, name, b"x" * 1100), SOMEBODY)


def _grows(primary: OpenVolume) -> None:
    fid = primary.create("file", b"x", primary.mkdir("d"))
    primary.volume.commit(Truncate(fid, 100 << 40, None), SOMEBODY)


def _writes_far(primary: OpenVolume) -> None:
    """The first bytes fit, the last do not."""
    fid = primary.create("file", b"x", primary.mkdir("d"))
    primary.volume.commit(Write(fid, (16 << 40) - 4096 - 5, None), SOMEBODY, b"0123456789")


def _points_far(primary: OpenVolume) -> None:
    directory, fid = primary.mkdir("d"), primary.volume.new_fid()
    link = Symlink(fid, directory, b"file", b"t" * 1024, 0, 0)
    primary.volume.commit(link, SOMEBODY)


def _has_device(primary: OpenVolume) -> None:
    """A device that ext4 has a place for."""
    directory, fid = primary.mkdir("d"), primary.volume.new_fid()
    made = Create(fid, directory, b"file", S_IFBLK | 0o600, 0, 0, os.makedev(259, 1 << 18), None)
    primary.volume.commit(made, SOMEBODY)


def _inherits(primary: OpenVolume) -> None:
    """An ACL with more entries than ext4 keeps."""
    entries = [(1, 7, 2**32 - 1), *((2, 7, uid) for uid in range(1, 700)), (4, 7, 2**32 - 1)]
    entries += [(16, 7, 2**32 - 1), (32, 0, 2**32 - 1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, bits, who in entries
    )
    directory, fid = primary.mkdir("d"), primary.volume.new_fid()
    made = Mkdir(fid, directory, b"file", 0o40770, 0, 0, acl, None)
    primary.volume.commit(made, SOMEBODY)


@contextmanager
def _disks(base: Path, source: str, sink: str) -> Iterator[None]:
    """A disk each for the backings of primary and mirror, of these kinds."""
    with ExitStack() as stack:
        for name, kind in (("primary", source), ("mirror", sink)):
            options = ("-b", "4096") if kind == "ext4" else ()
            disk = stack.enter_context(filesystem(kind, base, f"{name}-disk", 512, *options))
            (disk / "tree").mkdir()
            (base / name).mkdir()
            (base / name / "backing").symlink_to(disk / "tree")
        yield


@contextmanager
def _pair(base: Path, source: str, sink: str) -> Iterator[tuple[OpenVolume, OpenVolume]]:
    """Primary and mirror on such disks."""
    with (
        _disks(base, source, sink),
        open_volume(base / "mirror", mirror=True) as mirror,
        open_volume(base / "primary") as primary,
    ):
        yield primary, mirror


@pytest.mark.parametrize(
    ("source", "sink", "change", "words"),
    [
        (
            *("xfs", "ext4", _sets(5000)),
            "(SETXATTR of '/d/file') cannot be applied: "
            + _GAP
            + "extended attribute user.big of 5,000 bytes, and one may have 4,",
        ),
        (
            *("xfs", "btrfs", _sets(60_000)),
            "extended attribute user.big of 60,000 bytes, and one may have 16,203 bytes",
        ),
        ("btrfs", "ext4", _sets_many, "(SETXATTR of '/d/file')"),
        (
            *("xfs", "ext4", _grows),
            "(TRUNCATE of '/d/file') cannot be applied: "
            + _GAP
            + "109,951,162,777,600 bytes, and a file may have 16 TiB",
        ),
        (
            *("btrfs", "ext4", _writes_far),
            "(WRITE of '/d/file') cannot be applied: "
            + _GAP
            + "17,592,186,040,325 bytes, and a file may have 16 TiB",
        ),
        (
            *("ext4", "xfs", _points_far),
            "(SYMLINK of '/d/file') cannot be applied: "
            + _GAP
            + "a symlink to 1,024 bytes, and one may have 1,023 bytes",
        ),
        (
            *("ext4", "xfs", _has_device),
            "(CREATE of '/d/file') cannot be applied: "
            + _GAP
            + "device 259:262144, and its numbers may be up to 511:262143",
        ),
        (
            *("xfs", "ext4", _inherits),
            "(MKDIR of '/d/file') cannot be applied: "
            + _GAP
            + "extended attribute system.posix_acl_access of 5,6",
        ),
    ],
    ids=["value", "value-btrfs", "together", "size", "write", "symlink", "device", "acl"],
)
async def test_what_does_not_fit_stops_the_mirror(
    tmp_path: Path, source: str, sink: str, change: Callable[[OpenVolume], None], words: str
) -> None:
    with _pair(tmp_path, source, sink) as (primary, mirror):
        async with shipping(primary, mirror):
            primary.work(2)
            await until("level", level(primary, mirror))
            change(primary)
            refused_seq = primary.volume.journal.head_seq
            primary.create("after")
            await until("stopped", lambda: peer_status(primary).state == "mirror failed")
            told = str(mirror.volume.failure)
            assert told.startswith(f"entry {refused_seq} (")
            assert words in told
            assert told.endswith(_ADVICE)
            assert told.isprintable()
            assert peer_status(primary).last_error == told
            assert mirror_status(mirror).trouble == told
            assert applied(mirror) == refused_seq - 1
            assert not (mirror.backing / "after").exists()


async def test_the_next_mount_tries_again(tmp_path: Path) -> None:
    """And meets the same."""
    told = []
    with _disks(tmp_path, "xfs", "ext4"), open_volume(tmp_path / "primary") as primary:
        with open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror:
            async with shipping(primary, mirror):
                _sets(5000)(primary)
                await until("stopped", lambda: mirror.volume.failure is not None)
            told.append((applied(mirror), mirror.volume.failure))
        uuid = primary.volume.journal.uuid
        with open_volume(tmp_path / "mirror", mirror=True, uuid=uuid) as again:
            again.replicate(ReplicationConfig(), "127.0.0.1:0")
            async with running(again):
                await until("stopped again", lambda: again.volume.failure is not None)
            told.append((applied(again), again.volume.failure))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("sink", "change", "words"),
    [
        ("ext4", _sets(5000), "extended attribute user.big of 5,000 bytes, and one may have 4,024"),
        ("ext4", _grows, "109,951,162,777,600 bytes, and a file may have 16 TiB"),
        ("ext4", _writes_far, "17,592,186,040,325 bytes, and a file may have 16 TiB"),
        ("xfs", _points_far, "a symlink to 1,024 bytes, and one may have 1,023 bytes"),
    ],
    ids=["value", "size", "write", "symlink"],
)
async def test_after_a_system_crash_the_start_names_it_too(
    tmp_path: Path, sink: str, change: Callable[[OpenVolume], None], words: str
) -> None:
    """There, what was received is carried out before the mount is live."""
    with _disks(tmp_path, "btrfs", sink), open_volume(tmp_path / "primary") as primary:
        with open_volume(tmp_path / "mirror", mirror=True, orderly=False) as mirror:
            async with shipping(primary, mirror):
                change(primary)
                await until("stopped", lambda: mirror.volume.failure is not None)
        begin_another_boot(tmp_path / "mirror" / "state")
        uuid = primary.volume.journal.uuid
        for _ in range(2):
            with (
                pytest.raises(RecoveryError) as caught,
                open_volume(tmp_path / "mirror", mirror=True, uuid=uuid, orderly=False),
            ):
                pass
            assert f"'/d/file': the file system has no place for {words}" in str(caught.value)
            assert str(caught.value).isprintable()


async def test_a_full_disk_is_no_limit(tmp_path: Path) -> None:
    """An attribute that fits waits for space as long as it is full."""
    with _pair(tmp_path, "xfs", "ext4") as (primary, mirror):
        async with shipping(primary, mirror):
            fid = primary.create("file", b"x")
            setting = Setxattr(fid, b"user.a", b"x" * 3000)
            primary.volume.commit(setting, SOMEBODY)
            await until("level", level(primary, mirror))
            blocks = mirror.backing.parent / "blocks"
            other = primary.create("other", b"x")
            await until("level", level(primary, mirror))
            fill(blocks)
            # (ext4 has equal ones on the disk once.)
            another = setting._replace(fid=other, value=b"y" * 3000)
            primary.volume.commit(another, SOMEBODY)
            await until("full", lambda: peer_status(primary).state == "mirror full")
            assert "no space" in str(peer_status(primary).last_error)
            assert mirror.volume.failure is None
            blocks.unlink()
            await until("level again", level(primary, mirror))
            assert len(os.getxattr(mirror.backing / "other", "user.a")) == 3000
            assert os.getxattr(mirror.backing / "other", FID_XATTR)
            assert mirror.volume.failure is None


async def test_one_link_too_many(tmp_path: Path) -> None:
    with _pair(tmp_path, "xfs", "ext4") as (primary, mirror):
        async with shipping(primary, mirror):
            directory = primary.mkdir("d")
            fid = primary.create("file", b"x", directory)
            await until("level", level(primary, mirror))
            elsewhere = mirror.backing.parent / "elsewhere"
            elsewhere.mkdir()
            for number in range(64_999):
                os.link(mirror.backing / "d" / "file", elsewhere / f"{number}")
            primary.volume.commit(Link(fid, directory, b"last"), SOMEBODY)
            await until("stopped", lambda: peer_status(primary).state == "mirror failed")
            told = str(mirror.volume.failure)
            assert "(LINK of '/d/last') cannot be applied" in told
            assert "one link too many, and a file may have 65,000" in told


async def test_the_primary_is_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and not of limits that are equal or higher."""
    with _pair(tmp_path, "xfs", "ext4") as (primary, mirror):
        async with shipping(primary, mirror):
            primary.work(1)
            await until("level", level(primary, mirror))
            status = peer_status(primary)
            (note,) = status.notes
            assert note == (
                "its backing's file system holds less than the one here: "
                "files up to 16 TiB, here up to 8 EiB; "
                "an extended attribute up to 4,024 bytes, here up to 65,536 bytes; "
                "all of one file's up to 4,024 bytes, here up to any number; "
                "links to a file up to 65,000, here up to 2,147,483,647; "
                "an entry that it cannot hold stops it"
            )
            assert status.limits == mirror.volume.tree.limits
            assert status.protocol_version == PROTOCOL_VERSION
            assert primary.replication.degraded() == []
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"peer east: {note}"]


async def test_there_is_no_warning_where_all_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with _pair(tmp_path, "ext4", "ext4") as (primary, mirror):
        async with shipping(primary, mirror):
            primary.work(1)
            await until("level", level(primary, mirror))
            assert peer_status(primary).notes == ()
            assert peer_status(primary).limits == primary.volume.tree.limits
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
