"""Listings: stable offsets while names come and go, after a restart, and of large directories."""

import ctypes
import os
from pathlib import Path

import pytest

from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_libc = ctypes.CDLL(None, use_errno=True)


def getdents(fd: int, size: int = 4096) -> list[tuple[str, int]]:
    """(name, offset) of one getdents64(2)."""
    buffer = ctypes.create_string_buffer(size)
    length = _libc.syscall(ctypes.c_long(217), fd, buffer, size)
    assert length >= 0
    found, at = [], 0
    while at < length:
        offset = int.from_bytes(buffer.raw[at + 8 : at + 16], "little", signed=True)
        record = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
        name = buffer.raw[at + 19 : at + record].split(b"\0", 1)[0].decode()
        found.append((name, offset))
        at += record
    return found


def list_from(directory: Path, offset: int) -> list[str]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        names = []
        while part := getdents(fd):
            names += [name for name, _ in part]
        return names
    finally:
        os.close(fd)


def test_offsets_stay_while_entries_come_and_go(layer: Layer) -> None:
    layer.start()
    directory = layer.mountpoint / "d"
    directory.mkdir()
    for number in range(1000):
        (directory / f"f{number}").touch()
    fd = os.open(directory, os.O_RDONLY)
    first = getdents(fd)
    os.close(fd)
    seen = [name for name, _ in first]
    _, offset = first[-1]
    for number in range(0, 1000, 3):
        (directory / f"f{number}").unlink()
    for number in range(300):
        (directory / f"new{number}").touch()
    os.rename(directory / "f998", directory / "renamed")
    for _ in range(2):
        rest = list_from(directory, offset)
        assert len(set(rest)) == len(rest)
        assert not set(rest) & set(seen)
        left = {f"f{n}" for n in range(1000) if n % 3 and n != 998} - set(seen)
        assert set(rest) == left | {"renamed"} | {f"new{n}" for n in range(300)}
        layer.stop()
        layer.start()


def test_renaming_reader_comes_to_an_end(layer: Layer) -> None:
    layer.start()
    for number in range(500):
        (layer.mountpoint / f"f{number}").touch()
    fd = os.open(layer.mountpoint, os.O_RDONLY)
    count = 0
    while part := getdents(fd, 512):
        for name, _ in part:
            if name not in (".", ".."):
                os.rename(name, f"{name}.bak", src_dir_fd=fd, dst_dir_fd=fd)
                count += 1
    os.close(fd)
    assert count == 500
    assert sorted(os.listdir(layer.mountpoint)) == sorted(f"f{n}.bak" for n in range(500))


def test_seek_to_every_offset(layer: Layer) -> None:
    layer.start()
    for number in range(50):
        (layer.mountpoint / f"f{number}").touch()
    fd = os.open(layer.mountpoint, os.O_RDONLY)
    whole = getdents(fd, 1 << 16)
    assert [name for name, _ in whole[:2]] == [".", ".."]
    assert len(whole) == 52
    for index, (_, offset) in enumerate(whole):
        os.lseek(fd, offset, os.SEEK_SET)
        assert [name for name, _ in getdents(fd, 1 << 16)] == [n for n, _ in whole[index + 1 :]]
    os.close(fd)


def test_directory_of_100_000(layer: Layer) -> None:
    big = layer.backing / "big"
    big.mkdir()
    for number in range(100_000):
        os.mknod(big / f"f{number}")
    layer.start()
    with os.scandir(layer.mountpoint / "big") as entries:
        found = {entry.name: entry.inode() for entry in entries}
    assert len(found) == 100_000
    assert len(set(found.values())) == 100_000
    assert (layer.mountpoint / "big" / "f12345").stat().st_ino == found["f12345"]
    (layer.mountpoint / "big" / "f5").unlink()
    (layer.mountpoint / "big" / "one more").touch()
    names = os.listdir(layer.mountpoint / "big")
    assert len(names) == 100_000
    assert names[-1] == "one more"
    layer.stop()
