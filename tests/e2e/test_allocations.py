"""fallocate(2) on a mount: the same answers, sizes, bytes and blocks as on the backing's own kind
of file system, and the same bytes after a kill, in a replay, on a mirror whose file system lacks
the way, and back again by an undo."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fusejournal.disk import calls
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
)
from tests.support.filesystems import KINDS, filesystem, fill
from tests.support.layer import Layer
from tests.support.mirrors import Node, check_equal
from tests.support.network import network
from tests.support.trees import difference, image
from tests.support.users import in_process
from tests.support.xattrs import CAPABILITIES

pytestmark = pytest.mark.mount

_MIB = 1 << 20
_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
_CALLS = (
    (0, 0, 2 * _MIB),
    (FALLOC_KEEP_SIZE, 2 * _MIB, _MIB),
    (_PUNCH, 65_536 + 5, 3 * 65_536),
    (_PUNCH, 0, 7),
    (_PUNCH, 2 * _MIB - 9, 5 * _MIB),
    (FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, _MIB + 1, 2 * _MIB),
    (FALLOC_ZERO_RANGE, _MIB - 3, 3 * _MIB),
    (0, 5 * _MIB + 1, 1),
    (_PUNCH, 1 << 40, 1 << 40),
    (0, 0, 1),
)
_OF_NO_FUSE = {"collapse": 0x08, "insert": 0x20, "unshare": 0x40, "write zeroes": 0x80}


@contextmanager
def _opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _allocate(path: Path, flags: int, offset: int, length: int) -> str:
    """Calls fallocate(2). Returns what it says."""
    with _opened(path) as fd:
        try:
            calls.fallocate("test", fd, offset, length, flags)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return ""


def _fill(path: Path) -> None:
    path.write_bytes(bytes(range(1, 251)) * (_MIB // 250) + b"end")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_on_the_backing_itself(tmp_path: Path, kind: str) -> None:
    with (
        filesystem(kind, tmp_path, "disk", 512) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        file, twin = layer.mountpoint / "file", disk / "twin"
        for path in (file, twin):
            _fill(path)
        told = []
        for call in _CALLS:
            was = file.stat().st_mtime_ns
            told = [_allocate(path, *call) for path in (file, twin)]
            assert told[0] == told[1], call
            assert file.stat().st_size == twin.stat().st_size, call
            assert file.read_bytes() == twin.read_bytes(), call
            assert (file.stat().st_mtime_ns > was) == (not told[0]), call
            os.sync()
            if kind != "btrfs":  # which tells later
                blocks = [path.stat().st_blocks for path in (layer.backing / "file", twin)]
                assert abs(blocks[0] - blocks[1]) <= 16, call
        for what, flags in _OF_NO_FUSE.items():
            assert _allocate(file, flags, 0, 65_536) == "ENOTSUP", what
        before = image(layer.mountpoint)
        layer.kill()
        layer.start()
        assert not difference(image(layer.mountpoint), before)
        layer.stop()
        layer.check_rebuilt(disk / "rebuilt")


@pytest.fixture
def shared(live: Layer) -> Layer:
    """A live volume in which anybody may write."""
    live.mountpoint.chmod(0o777)
    return live


def test_an_undo_takes_the_old_bytes_back(shared: Layer) -> None:
    seqs = []
    for number, call in enumerate(_CALLS):
        file = shared.mountpoint / f"file{number}"
        _fill(file)
        was = image(shared.mountpoint)
        assert _allocate(file, *call) == ""
        head = shared.head_seq()
        seqs.append(head)
        assert "M" in shared.run("diff", "volume", str(head - 1), str(head)).stdout
        now = image(shared.mountpoint)
        shared.run("undo", "volume", str(head), "--apply")
        assert not difference(image(shared.mountpoint), was), call
        shared.run("undo", "volume", f"{head + 1}-{shared.head_seq()}", "--apply")
        assert not difference(image(shared.mountpoint), now), call
    log = shared.run("log", "volume", "--op", "fallocate").stdout
    for seq, (_, offset, length) in zip(seqs, _CALLS, strict=True):
        before = shared.base / f"before{seq}"
        arguments = ("/", "--target", str(before), "--to-seq", str(seq - 1))
        shared.run("restore", "volume", *arguments)
        newest = max(before.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert newest.read_bytes().endswith(b"end")
        assert f"{length} bytes at {offset}" in log


def test_privileges_and_limits(shared: Layer) -> None:
    file = shared.mountpoint / "file"
    file.write_bytes(b"x" * 9000)

    def allocate(flags: int, length: int) -> None:
        with _opened(file) as fd:
            limits = {resource.RLIMIT_FSIZE: 10_000}
            in_process(1000, lambda: calls.fallocate("test", fd, 0, length, flags), limits)

    for flags in (0, FALLOC_KEEP_SIZE, _PUNCH, FALLOC_ZERO_RANGE):
        os.setxattr(file, "security.capability", CAPABILITIES[0])
        file.chmod(0o6777)
        allocate(flags, 100)
        assert stat.S_IMODE(file.stat().st_mode) == 0o777
        assert "security.capability" not in os.listxattr(file)
    head = shared.head_seq()
    with pytest.raises(OSError, match="too large"):
        allocate(0, 10_001)
    assert file.stat().st_size == 9000
    assert shared.head_seq() == head  # the kernel has refused it
    with _opened(file) as fd:
        file.unlink()
        head = shared.head_seq()
        calls.fallocate("test", fd, 0, 20_000, 0)
        calls.fallocate("test", fd, 0, 100, _PUNCH)
        assert os.fstat(fd).st_size == 20_000
        assert os.pread(fd, 101, 0) == bytes(100) + b"x"
        assert shared.head_seq() == head


def test_a_full_disk_refuses_and_a_hole_makes_room(tmp_path: Path) -> None:
    with (
        filesystem("ext4", tmp_path, "disk", 64) as disk,
        Layer(tmp_path, backing=disk / "backing") as layer,
    ):
        layer.start()
        file = layer.mountpoint / "file"
        file.write_bytes(b"x" * 8 * _MIB)
        was = file.stat()
        for flags in (0, FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE):
            assert _allocate(file, flags, 4 * _MIB, 200 * _MIB) == "ENOSPC"
            now = file.stat()
            assert (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)
        assert file.read_bytes() == b"x" * 8 * _MIB
        fill(disk / "filler")
        assert _allocate(file, _PUNCH, 0, 8 * _MIB) == ""
        assert file.read_bytes() == bytes(8 * _MIB)
        assert os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize >= 8 * _MIB
        assert _allocate(file, 0, 0, 4 * _MIB) == ""
        layer.stop()
        assert "ERROR" not in layer.words()


def test_others_are_served_while_much_is_allocated(tmp_path: Path) -> None:
    """tmpfs takes some tenths of a second for 512 MiB."""
    with (
        filesystem("tmpfs", tmp_path, "memory", 2048) as memory,
        Layer(tmp_path, backing=memory / "backing") as layer,
    ):
        layer.start()
        file = layer.mountpoint / "file"
        file.touch()
        done = threading.Event()

        def allocate() -> None:
            assert _allocate(file, 0, 3, 512 * _MIB) == ""
            done.set()

        caller = threading.Thread(target=allocate)
        caller.start()
        served = 0
        while not done.is_set():
            (layer.mountpoint / f"other{served}").touch()
            served += 1
        caller.join()
        assert served > 5
        assert file.stat().st_size == 512 * _MIB + 3
        assert (layer.backing / "file").stat().st_blocks * 512 >= 512 * _MIB
        # More than there is leaves nothing behind.
        assert _allocate(file, 0, 0, 3 << 30) == "ENOSPC"
        assert file.stat().st_size == 512 * _MIB + 3
        layer.stop()
        assert "ERROR" not in layer.words()


def test_a_mirror_without_the_ways_has_the_same_bytes(tmp_path: Path) -> None:
    """tmpfs cannot zero a range."""
    with (
        filesystem("tmpfs", tmp_path, "memory", 64) as memory,
        network() as net,
        Node(tmp_path / "primary", net.host(), "primary") as primary,
        Node(tmp_path / "mirror", net.host(), "mirror", backing=memory / "backing") as mirror,
    ):
        primary.ships_to(mirror)
        for node in (primary, mirror):
            node.start(wait=False)
        for node in (primary, mirror):
            node.await_live()
        for number, call in enumerate(_CALLS):
            file = primary.mountpoint / f"file{number}"
            _fill(file)
            assert _allocate(file, *call) == ""
        check_equal(primary, mirror)
        with closing(os.scandir(mirror.mountpoint)) as found:
            assert len(list(found)) == len(_CALLS)
        for node in (primary, mirror):
            node.stop()
