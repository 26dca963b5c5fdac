"""Space that a file system keeps back for root stays root's, whatever users do through the
layer."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.filesystems import filesystem
from tests.support.layer import Layer
from tests.support.users import SOMEBODY, acting

pytestmark = pytest.mark.mount


@pytest.fixture
def reserved(tmp_path: Path) -> Iterator[tuple[Layer, Path]]:
    """A layer over an ext4 that keeps back a fifth."""
    for directory in tmp_path, *tmp_path.parents[:2]:
        directory.chmod(0o755)
    with filesystem("ext4", tmp_path, "disk", 64, "-m", "20") as disk:
        (disk / "backing").mkdir()
        with Layer(tmp_path, backing=disk / "backing") as layer:
            layer.start()
            layer.mountpoint.chmod(0o777)
            yield layer, disk


def _free_bytes(disk: Path) -> int:
    space = os.statvfs(disk)
    return space.f_bfree * space.f_frsize


def _kept_bytes(disk: Path) -> int:
    space = os.statvfs(disk)
    return (space.f_bfree - space.f_bavail) * space.f_frsize


def _make_directories(root: Path) -> int | None:
    """Make them until that is refused; with which errno."""
    for number in range(100_000):
        try:
            os.mkdir(root / f"d{number}")
        except OSError as error:
            return error.errno
    return None


def test_users_stop_where_the_reserve_begins(reserved: tuple[Layer, Path], tmp_path: Path) -> None:
    layer, disk = reserved
    root = layer.mountpoint
    kept = _kept_bytes(disk)
    assert kept > 10 << 20
    with acting(SOMEBODY):
        (root / "early").mkdir()
        with open(root / "large", "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1 << 17)):
                pass
        removed = os.open(root / "removed", os.O_CREAT | os.O_RDWR)
        os.unlink(root / "removed")
        with suppress(OSError):
            while os.write(removed, bytes(4096)):
                pass
        os.close(removed)
        assert _make_directories(root) == errno.ENOSPC
        assert _free_bytes(disk) > kept * 9 // 10
        # What takes no new space still works; and what makes some.
        with open(root / "large", "r+b", buffering=0) as file:
            assert file.write(b"in place") == 8
        directory = root / "early"
        directory.chmod(0o700)
        directory.rmdir()
    # Root has what is kept back.
    with open(root / "roots", "wb", buffering=0) as file:
        for _ in range(kept // 2 >> 20):
            assert file.write(bytes(1 << 17)) == 1 << 17
    layer.stop()
    layer.check_rebuilt(tmp_path / "rebuilt")


def test_a_user_makes_all_kinds_of_things_near_the_reserve(
    reserved: tuple[Layer, Path], tmp_path: Path
) -> None:
    """The layer works as root would, because permissions are not the backing's affair."""
    layer, _ = reserved
    root = layer.mountpoint
    (root / "shared").mkdir()
    (root / "shared").chmod(0o3777)
    os.chown(root / "shared", 7, 7)
    with acting(SOMEBODY, groups=(5,)):
        os.mkdir(root / "shared" / "d", 0o700)
        (root / "shared" / "d" / "f").write_bytes(b"x" * 10_000)
        os.chmod(root / "shared" / "d" / "f", 0o4755)
        os.chown(root / "shared" / "d" / "f", -1, 5)
        os.mkfifo(root / "shared" / "fifo")
        os.symlink("to", root / "shared" / "link")
        os.link(root / "shared" / "d" / "f", root / "shared" / "d" / "hard")
        os.setxattr(root / "shared" / "d" / "f", "user.x", b"1")
        os.rename(root / "shared" / "d" / "hard", root / "shared" / "moved")
        os.truncate(root / "shared" / "d" / "f", 5)
        os.utime(root / "shared" / "d" / "f", ns=(5, 6))
        assert (root / "shared" / "link").lstat().st_uid == SOMEBODY
        assert (root / "shared" / "d").stat().st_gid == 7
    layer.stop()
    layer.check_rebuilt(tmp_path / "rebuilt")
