"""Files made without a name (O_TMPFILE): nothing of them is journaled before linkat(2) gives them
one; then all that they are is, and a kill in the midst of that, a full disk or a name that is taken
leaves all or nothing."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fusejournal.disk import calls, syscalls
from tests.support.filesystems import KINDS, filesystem, fill
from tests.support.layer import Layer
from tests.support.mirrors import check_equal, started
from tests.support.trees import difference, fids, image
from tests.support.xattrs import ACCESS_ACL, CAPABILITIES, CAPABILITY, DEFAULT_ACL, make_acl

pytestmark = pytest.mark.mount

_MIB = 1 << 20
_CONTENT = b"content" * 1000


@contextmanager
def _unnamed(directory: Path, mode: int = 0o644, flags: int = 0) -> Iterator[int]:
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def _name(fd: int, path: Path) -> None:
    syscalls.link(fd, syscalls.AT_FDCWD, os.fsencode(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_makes_it_a_file(tmp_path: Path, kind: str) -> None:
    with (
        filesystem(kind, tmp_path, "disk", 512) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        directory = layer.mountpoint / "directory"
        directory.mkdir(0o2770)
        os.chown(directory, 0, 100)
        os.setxattr(directory, DEFAULT_ACL, make_acl(7, 6, 5, 7, 1))
        plain = disk / "plain"
        plain.mkdir(0o2770)
        os.chown(plain, 0, 100)
        os.setxattr(plain, DEFAULT_ACL, make_acl(7, 6, 5, 7, 1))
        with _unnamed(directory) as first:
            os.write(first, b"x")
        head = layer.head_seq()
        for where in (directory, plain):
            with _unnamed(where, 0o666) as fd:
                os.write(fd, _CONTENT)
                os.pwrite(fd, b"far", 3 * _MIB)
                os.ftruncate(fd, 4 * _MIB)
                os.setxattr(fd, "user.key", b"value")
                os.setxattr(fd, CAPABILITY, CAPABILITIES[0])
                os.utime(fd, ns=(5, 1_234_567_890_123_456_789))
                assert os.fstat(fd).st_nlink == 0
                if where == directory:
                    assert layer.head_seq() == head  # the fids were reserved by the first
                _name(fd, where / "file")
                assert os.fstat(fd).st_nlink == 1
                _name(fd, where / "further")
                os.pwrite(fd, b"after", 0)
        number = (directory / "file").stat().st_ino
        assert not difference(image(directory, times=False), image(plain, times=False))
        known, before = fids(layer.mountpoint), image(layer.mountpoint)
        layer.kill()
        layer.start()
        assert fids(layer.mountpoint) == known
        assert (directory / "file").stat().st_ino == number
        assert not difference(image(layer.mountpoint), before)
        layer.stop()
        assert "ERROR" not in layer.words()
        assert (layer.backing / "directory/file").stat().st_blocks * 512 < _MIB
        assert sorted(os.listdir(layer.backing)) == ["directory"]
        layer.check_rebuilt(disk / "rebuilt")


def test_what_it_was_is_what_is_named(live: Layer) -> None:
    path = live.mountpoint / "file"
    with _unnamed(live.mountpoint, 0o4711) as fd:
        os.write(fd, _CONTENT)
        os.fchmod(fd, 0o6711)
        os.fchown(fd, 5, 6)
        os.setxattr(fd, ACCESS_ACL, make_acl(7, 6, 5, 4, 1))
        os.utime(fd, ns=(7, 77))
        os.fsync(fd)
        before = live.head_seq()
        _name(fd, path)
        assert path.stat().st_mtime_ns == 77
    found = image(live.mountpoint)
    log = live.run("log", "volume", "--from-seq", str(before + 1)).stdout.splitlines()
    ops = ("create", "write", "setxattr", "setattr")
    assert [next(op for op in ops if f" {op} " in line) for line in log] == [
        "create", "write", "setattr",
    ]  # fmt: skip
    live.run("undo", "volume", f"{before + 1}-{live.head_seq()}", "--apply")
    assert not path.exists()
    live.run("undo", "volume", f"{before + 4}-{live.head_seq()}", "--apply")
    again = image(live.mountpoint)
    assert again[b"file"] == found[b"file"]
    with pytest.raises(FileExistsError), _unnamed(live.mountpoint) as fd:
        _name(fd, path)
    with _unnamed(live.mountpoint, flags=os.O_EXCL) as fd, pytest.raises(FileNotFoundError):
        _name(fd, live.mountpoint / "never")
    assert sorted(os.listdir(live.mountpoint)) == ["file"]


def test_one_that_is_open_outlasts_a_restart(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        layer.export_to_nobody()
        layer.start()
        layer.export_to_nobody()
        with _unnamed(layer.mountpoint) as fd, _unnamed(layer.mountpoint) as never:
            os.write(fd, _CONTENT)
            os.write(never, b"never")
            number = os.fstat(fd).st_ino
            layer.kill()
            layer.start()
            os.write(fd, b"more")
            with _unnamed(layer.mountpoint) as later:
                assert os.fstat(later).st_ino not in (number, os.fstat(never).st_ino)
            _name(fd, layer.mountpoint / "file")
            assert (layer.mountpoint / "file").stat().st_ino == number
        assert (layer.mountpoint / "file").read_bytes() == _CONTENT + b"more"
        layer.stop()
        assert sorted(os.listdir(layer.backing)) == ["file"]
        layer.check_rebuilt(tmp_path / "rebuilt")


@pytest.mark.parametrize(
    "fault",
    [
        *(f"{label}:1:kill" for label in ("apply.name", "apply.times.directory")),
        *(f"journal.append:{count}:kill" for count in range(3, 9)),
        "orphan.unlink:1:kill",
    ],
)
def test_a_kill_leaves_all_or_nothing(tmp_path: Path, fault: str) -> None:
    with Layer(tmp_path) as layer:
        layer.start(fault=fault)
        content = os.urandom(2 * _MIB)
        path = layer.mountpoint / "file"
        with suppress(OSError), _unnamed(layer.mountpoint, 0o640) as fd:
            os.write(fd, content)
            os.setxattr(fd, "user.key", b"value")
            os.utime(fd, ns=(5, 6))
            _name(fd, path)
        assert layer.wait() != 0
        layer.start()
        if path.exists():
            assert path.read_bytes() == content
            assert os.getxattr(path, "user.key") == b"value"
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
        layer.stop()
        assert "ERROR" not in layer.words()
        assert set(os.listdir(layer.backing)) <= {"file"}
        layer.check_rebuilt(tmp_path / "rebuilt")


def test_a_large_one_comes_in_pieces(live: Layer) -> None:
    content = os.urandom(_MIB) * 9
    with _unnamed(live.mountpoint) as fd:
        os.write(fd, content)
        _name(fd, live.mountpoint / "file")
    assert (live.mountpoint / "file").read_bytes() == content
    live.kill()
    live.start()
    assert (live.mountpoint / "file").read_bytes() == content
    live.stop()
    live.check_rebuilt(live.base / "rebuilt")
    live.start()


def test_a_full_disk_leaves_it_without_a_name(tmp_path: Path) -> None:
    with (
        filesystem("ext4", tmp_path, "disk", 96) as disk,
        filesystem("ext4", tmp_path, "other", 64) as other,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.state = other / "state"
        layer.start()
        with _unnamed(layer.mountpoint) as fd:
            os.write(fd, b"x" * 24 * _MIB)
            fill(other / "filler", 12 * _MIB)
            with pytest.raises(OSError, match="No space"):
                _name(fd, layer.mountpoint / "file")
            assert os.listdir(layer.mountpoint) == []
            (other / "filler").unlink()
            _name(fd, layer.mountpoint / "file")
        assert (layer.mountpoint / "file").read_bytes() == b"x" * 24 * _MIB
        layer.stop()
        layer.check_rebuilt(disk / "rebuilt")


def test_on_a_mirror(tmp_path: Path) -> None:
    with started(tmp_path, None) as (primary, mirror):
        for number in range(3):
            with _unnamed(primary.mountpoint) as fd:
                os.write(fd, _CONTENT)
                calls.fallocate("test", fd, 0, 1 << 20)
                _name(fd, primary.mountpoint / f"file{number}")
        check_equal(primary, mirror)
        for node in (primary, mirror):
            node.stop()


def test_a_large_one_waits_for_a_mirror(tmp_path: Path) -> None:
    config = '[volume]\ndurability = "nfs"\n[replication]\nmirrors = 1\n'
    with started(tmp_path, None, config=config) as (primary, mirror):
        with _unnamed(primary.mountpoint) as fd:
            os.write(fd, os.urandom(_MIB) * 6)
            _name(fd, primary.mountpoint / "file")
            _name(fd, primary.mountpoint / "further")
        assert os.stat(primary.mountpoint / "file").st_nlink == 2
        check_equal(primary, mirror)
