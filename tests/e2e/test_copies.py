"""copy_file_range(2) on a mount: the layer copies, and the journal has the bytes; what the kernel
keeps from FUSE (clones, deduplication) is refused, and cp does without."""

import errno
import fcntl
import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_MIB = 1 << 20
_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FIDEDUPERANGE = 0xC0189436


@contextmanager
def _both(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    fds = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _copy(source: Path, target: Path, offset: int, to: int, length: int) -> list[int]:
    """Copies until all is copied, or there is no more. Returns what each call has copied."""
    counts: list[int] = []
    with _both(source, target) as (one, other):
        while length and (not counts or counts[-1]):
            counts.append(os.copy_file_range(one, other, length, offset, to))
            offset, to, length = offset + counts[-1], to + counts[-1], length - counts[-1]
    return counts


def test_the_layer_copies(live: Layer) -> None:
    source, target = live.mountpoint / "source", live.mountpoint / "target"
    content = os.urandom(3 * _MIB + 7)
    source.write_bytes(content)
    target.write_bytes(b"t" * 100)
    target.chmod(0o6755)
    assert target.read_bytes() == b"t" * 100  # so that the kernel has it
    head = live.head_seq()
    assert _copy(source, target, 5, 50, 4 * _MIB) == [_MIB, _MIB, _MIB, 2, 0]
    assert target.read_bytes() == b"t" * 50 + content[5:]
    # As on a local file system, root's change takes nothing away (others': test_permissions.py).
    assert stat.S_IMODE(target.stat().st_mode) == 0o6755
    log = live.run("log", "volume", "--from-seq", str(head + 1)).stdout.splitlines()
    assert len(log) == 4
    assert all(" write " in line for line in log)
    assert _copy(source, source, 0, 4 * _MIB, 10) == [10]
    with pytest.raises(OSError, match="Invalid argument"):
        _copy(source, source, 0, 5, 10)
    source.unlink()
    live.kill()
    live.start()
    assert target.read_bytes() == b"t" * 50 + content[5:]
    live.run("undo", "volume", f"{head + 1}-{head + 4}", "--apply")
    assert target.read_bytes() == b"t" * 100
    live.stop()
    live.check_rebuilt(live.base / "rebuilt")
    live.start()


def test_a_copy_within_strict_durability(tmp_path: Path) -> None:
    with Layer(tmp_path, config='[volume]\ndurability = "strict"\n') as layer:
        layer.start()
        source, target = layer.mountpoint / "source", layer.mountpoint / "target"
        source.write_bytes(b"content")
        assert _copy(source, target, 0, 0, 7) == [7]
        assert target.read_bytes() == b"content"
        layer.stop()


def test_files_without_a_name_are_copied(live: Layer) -> None:
    source, target = live.mountpoint / "source", live.mountpoint / "target"
    source.write_bytes(b"content")
    with _both(source, target) as (one, other):
        source.unlink()
        target.unlink()
        head = live.head_seq()
        assert os.copy_file_range(one, other, 100, 0, 3) == 7
        assert os.pread(other, 100, 0) == bytes(3) + b"content"
        assert live.head_seq() == head


def test_clones_are_not_for_fuse(live: Layer) -> None:
    source, target = live.mountpoint / "source", live.mountpoint / "target"
    source.write_bytes(b"x" * 8192)
    target.write_bytes(b"x" * 8192)
    with _both(source, target) as (one, other):
        for request, argument in (
            (_FICLONE, one),
            (_FICLONERANGE, struct.pack("=qQQQ", one, 0, 4096, 0)),
        ):
            with pytest.raises(OSError, match="not supported") as refused:
                fcntl.ioctl(other, request, argument)
            assert refused.value.errno == errno.EOPNOTSUPP
        found = bytearray(
            struct.pack("=QQHHI", 0, 4096, 1, 0, 0) + struct.pack("=qQQiI", other, *[0] * 4)
        )
        with pytest.raises(OSError, match="not supported"):
            fcntl.ioctl(one, _FIDEDUPERANGE, found)
    copied = live.mountpoint / "copied"
    subprocess.run(["cp", "--reflink=auto", source, copied], check=True)
    assert copied.read_bytes() == b"x" * 8192
