"""Full and failing disks: ENOSPC and no harm, work goes on by itself; a failed journal ends it."""

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.filesystems import filesystem, fill
from tests.support.layer import Layer
from tests.support.trees import difference, image

pytestmark = pytest.mark.mount

_FULL = errno.ENOSPC


@contextmanager
def _disks(tmp_path: Path, kind: str, small: str) -> Iterator[tuple[Layer, Path]]:
    """A layer whose backing or state (*small*) lies on a file system of its own of 320 MiB."""
    with filesystem(kind, tmp_path, "disk", 320) as disk:
        backing = disk / "backing" if small == "backing" else None
        with Layer(tmp_path, backing=backing) as layer:
            if small == "state":
                layer.state = disk / "state"
            yield layer, disk


def _errno_of(act: Callable[[], object]) -> int | None:
    try:
        act()
    except OSError as error:
        return error.errno
    return None


def _write(path: Path, size: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        done = 0
        while done < size:
            done += os.pwrite(fd, b"x" * min(size - done, 100_000), done)
    finally:
        os.close(fd)


def _eventually(act: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while _errno_of(act) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _check(layer: Layer, tmp_path: Path) -> None:
    """Journal and backing agree, now and after a kill and a stop."""
    layer.kill()
    layer.start()
    layer.stop()
    layer.check_rebuilt(tmp_path / "rebuilt")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_backing_is_full(tmp_path: Path, kind: str) -> None:
    with _disks(tmp_path, kind, "backing") as (layer, disk):
        layer.start()
        root = layer.mountpoint
        (root / "there").write_text("there")
        fill(disk / "ballast")
        assert _errno_of(lambda: _write(root / "large", 400 << 20)) == _FULL
        assert (root / "there").read_text() == "there"
        # The caller saw what held of the write, and so does the journal.
        (root / "large").unlink(missing_ok=True)
        (disk / "ballast").unlink()
        _eventually(lambda: _write(root / "after", 1 << 20))
        assert (root / "after").stat().st_size == 1 << 20
        _check(layer, tmp_path)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_journal_is_full(tmp_path: Path, kind: str) -> None:
    with _disks(tmp_path, kind, "state") as (layer, disk):
        layer.start()
        root = layer.mountpoint
        (root / "there").write_text("there")
        for name in ("cut", "emptied"):
            (root / name).write_text("what takes space")
        for number in range(50):
            (root / f"f{number}").touch()
        fill(disk / "ballast")
        assert _errno_of(lambda: _write(root / "large", 400 << 20)) == _FULL
        # Small entries still fit into what was allocated, for a while.
        made = itertools.count()
        while (refused := _errno_of((root / f"small{next(made)}").mkdir)) is None:
            pass
        assert refused == _FULL
        assert (root / "there").read_text() == "there"
        assert any("no space" in line for line in layer.ask()["degraded"])
        # What makes space still works. (Where a block that was flushed is written anew in another
        # place, as on btrfs, the old one is free only when the file system has committed that.)
        for number in range(50):
            if kind == "btrfs":
                _eventually((root / f"f{number}").unlink)
            else:
                (root / f"f{number}").unlink()
        _eventually(partial(os.truncate, root / "cut", 4))
        _eventually(lambda: os.close(os.open(root / "emptied", os.O_WRONLY | os.O_TRUNC)))
        assert kind == "btrfs" or _errno_of(partial(os.truncate, root / "cut", 5)) == _FULL
        fd = os.open(root / "there", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        assert layer.ask()["state"] == "running"
        (disk / "ballast").unlink()
        _eventually(lambda: (root / "new").mkdir())
        _write(root / "after", 1 << 20)
        assert layer.ask()["degraded"] == []
        _check(layer, tmp_path)


def test_mounting_with_a_full_journal(tmp_path: Path) -> None:
    with _disks(tmp_path, "ext4", "state") as (layer, disk):
        layer.start()
        for number in range(2000):
            (layer.mountpoint / f"f{number}").touch()
        layer.kill()
        fill(disk / "ballast")
        layer.start()
        assert len(os.listdir(layer.mountpoint)) == 2000
        assert _errno_of(lambda: _write(layer.mountpoint / "large", 50 << 20)) == _FULL
        (disk / "ballast").unlink()
        _eventually(lambda: _write(layer.mountpoint / "after", 1 << 20))
        _check(layer, tmp_path)


@pytest.mark.parametrize(
    "label", ["journal.append", "journal.sync", "checkpoint.syncfs", "journal.fallocate"]
)
def test_failing_disk_makes_the_volume_read_only(layer: Layer, label: str) -> None:
    layer.reconfigure("[journal]\ncheckpoint_interval_seconds = 1.0\n")
    (layer.backing / "there").write_text("there")
    layer.start()
    layer.stop()
    layer.start(fault=f"{label}:2:EIO+")

    def change() -> None:
        _write(layer.mountpoint / "file", 30 << 20)
        fd = os.open(layer.mountpoint / "file", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        time.sleep(0.1)

    deadline = time.monotonic() + 30
    while _errno_of(change) is None:
        assert time.monotonic() < deadline
    assert _errno_of(lambda: (layer.mountpoint / "new").mkdir()) == errno.EROFS
    assert (layer.mountpoint / "there").read_text() == "there"
    status = layer.ask()
    assert status["state"] == "read-only"
    assert any(line.startswith("read-only: ") for line in status["degraded"])
    assert "read-only: " in layer.run("status", "volume").stdout
    layer.kill()
    layer.start()
    # What could not be flushed may be lost, as with the machine.
    assert (layer.ask()["epoch"] == 2) == label.endswith(("journal.sync", "checkpoint.syncfs"))
    (layer.mountpoint / "new").mkdir()
    layer.stop()


@pytest.mark.parametrize("number", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "label",
    [
        "apply.create", "apply.tag", "apply.chown", "apply.times", "apply.mkdir", "apply.symlink",
        "apply.link", "apply.unlink", "apply.rmdir", "apply.rename", "apply.exchange",
        "apply.truncate",
        "apply.setattr", "apply.setattr.mode", "apply.setattr.times", "apply.setxattr",
        "apply.removexattr", "apply.write", "apply.write.mode", "apply.write.times",
        "apply.times.directory", "catalog.reserve", "journal.create", "journal.header",
    ],
)  # fmt: skip
def test_backing_refuses(layer: Layer, tmp_path: Path, label: str, number: str) -> None:
    """One call fails: the caller gets an error and nothing is half done, or the volume stops."""
    from tests.fault.test_kills import _CONFIG, steps

    layer.reconfigure(_CONFIG)
    layer.start()
    layer.stop()
    layer.start(fault=f"{label}:2:{number}")
    failures = [_errno_of(partial(step, str(layer.mountpoint))) for step in steps()]
    status = layer.ask()
    if label != "catalog.reserve":
        assert any(failures)
    if status["state"] == "running":
        assert not difference(image(layer.mountpoint), image(layer.backing))
    _check(layer, tmp_path)
