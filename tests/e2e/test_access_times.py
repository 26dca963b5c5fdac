"""Access times, where the configuration has them kept."""

import os
import time
from pathlib import Path

import pytest

from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_DAY_NS = 24 * 60 * 60 * 10**9
_KEPT = '[volume]\naccess_times = "relatime"\n'


def _read(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    os.read(fd, 10)
    os.close(fd)


def _is_now(at_ns: int) -> bool:
    return abs(time.time_ns() - at_ns) < 60 * 10**9


def test_without_that_they_stay(layer: Layer) -> None:
    layer.start()
    file = layer.mountpoint / "file"
    file.write_bytes(b"content")
    os.utime(file, ns=(5, 7))
    _read(file)
    assert file.stat().st_atime_ns == 5


def test_the_first_read_after_a_change_counts(layer: Layer) -> None:
    """And none after it, for a day; a process that has the old one in memory is told."""
    layer.reconfigure(_KEPT)
    layer.start()
    file = layer.mountpoint / "file"
    file.write_bytes(b"content")
    # A mail reader's way to see that something is new.
    assert file.stat().st_mtime_ns >= file.stat().st_atime_ns
    time.sleep(0.02)  # two ticks of the kernel's clock
    _read(file)
    stat = file.stat()
    assert stat.st_atime_ns > stat.st_mtime_ns
    assert _is_now(stat.st_atime_ns)
    _read(file)
    assert file.stat().st_atime_ns == stat.st_atime_ns
    with file.open("ab") as opened:
        opened.write(b"more")
    assert file.stat().st_atime_ns == stat.st_atime_ns
    time.sleep(0.02)
    _read(file)
    assert file.stat().st_atime_ns > stat.st_atime_ns
    assert file.read_bytes() == b"contentmore"


def test_a_day_later_a_read_counts_again(layer: Layer) -> None:
    layer.reconfigure(_KEPT)
    layer.start()
    file, directory = layer.mountpoint / "file", layer.mountpoint / "directory"
    file.write_bytes(b"content")
    directory.mkdir()
    old_ns = time.time_ns() - 2 * _DAY_NS
    for path in (file, directory):
        os.utime(path, ns=(old_ns, old_ns - 1))
    _read(file, os.O_NOATIME)
    assert file.stat().st_atime_ns == old_ns
    with file.open("ab"):
        pass
    assert file.stat().st_atime_ns == old_ns
    head_seq = layer.head_seq()
    _read(file)
    os.listdir(directory)
    for path in (file, directory):
        assert _is_now(path.stat().st_atime_ns)
        assert path.stat().st_mtime_ns == old_ns - 1
        assert _is_now((layer.backing / path.name).stat().st_atime_ns)
    assert layer.head_seq() == head_seq


def test_a_mount_that_takes_no_changes_keeps_them(layer: Layer) -> None:
    layer.reconfigure(_KEPT)
    layer.export_to_nobody()
    layer.run(*layer.mount_arguments())
    file = layer.mountpoint / "file"
    file.write_bytes(b"content")

    def remount(words: str) -> None:
        layer.run("mount-helper", "fusejournal:volume", str(layer.mountpoint), "-o", words)

    os.utime(file, ns=(5, 7))
    remount("remount,ro")
    _read(file)
    layer.run("restart", "volume")
    _read(file)
    assert file.stat().st_atime_ns == 5
    remount("remount,rw")
    _read(file)
    assert _is_now(file.stat().st_atime_ns)
    os.utime(file, ns=(5, 7))
    layer.run("umount", "volume")
    for options in ("ro", "noatime"):
        layer.run("mount", "volume", "-o", options, "--config", str(layer.base / "config.toml"))
        _read(file)
        assert file.stat().st_atime_ns == 5
        layer.run("umount", "volume")
