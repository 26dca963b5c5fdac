"""A mirror's watermarks outlive their process."""

import errno
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.errors import JournalError
from fusejournal.journal.watermarks import Following, WatermarkPage
from fusejournal.types import Epoch, Reign, Seq

_BIG = (1 << 40) + 7


def test_new_ones_are_zero(tmp_path: Path) -> None:
    watermarks = WatermarkPage(tmp_path / "watermarks")
    assert watermarks.applying_seq == watermarks.committed_seq == watermarks.durable_seq == 0
    assert watermarks.stopped_seq == 0
    assert watermarks.epoch == 0
    watermarks.close()


def test_they_outlive_a_killed_process(tmp_path: Path) -> None:
    WatermarkPage(tmp_path / "watermarks").close()
    child = os.fork()
    if not child:
        watermarks = WatermarkPage(tmp_path / "watermarks")
        watermarks.write_applying(Seq(_BIG))
        watermarks.write_committed(Seq(_BIG + 1))
        watermarks.write_durable(Seq(_BIG + 2))
        watermarks.write_stopped(Seq(_BIG + 3))
        watermarks.write_fence(Reign(Epoch(5), 0))
        watermarks.write_following(Following(6, 7, (_BIG, 8)))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    watermarks = WatermarkPage(tmp_path / "watermarks")
    assert (watermarks.applying_seq, watermarks.committed_seq) == (_BIG, _BIG + 1)
    assert (watermarks.durable_seq, watermarks.stopped_seq) == (_BIG + 2, _BIG + 3)
    assert watermarks.epoch == 5
    assert watermarks.following == Following(6, 7, (_BIG, 8))
    assert watermarks.is_unconfirmed
    watermarks.write_following(Following(6, 8))
    watermarks.sync()
    watermarks.close()
    watermarks = WatermarkPage(tmp_path / "watermarks")
    assert watermarks.following == Following(6, 8)
    watermarks.close()


def test_they_say_whose_they_are(tmp_path: Path) -> None:
    """And, where they were made anew, that nothing was known then, until a start got through."""
    path = tmp_path / "watermarks"
    for confirms in (False, True):
        watermarks = WatermarkPage(path, 5)
        assert watermarks.is_unconfirmed
        if confirms:
            watermarks.confirm()
        watermarks.close()
    watermarks = WatermarkPage(path, 5)
    assert not watermarks.is_unconfirmed
    watermarks.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another state directory"):
        WatermarkPage(path, 6)
    assert path.read_bytes() == before
    WatermarkPage(path).close()


def test_those_of_the_version_before_get_their_owner(tmp_path: Path) -> None:
    words = [int.from_bytes(b"\x89FJCOPY1", "little"), 3, 2, 2]
    content = b"".join(word.to_bytes(8, "little") for word in words).ljust(4096, b"\0")
    (tmp_path / "watermarks").write_bytes(content)
    watermarks = WatermarkPage(tmp_path / "watermarks", 5)
    assert not watermarks.is_unconfirmed
    assert watermarks.applying_seq == 3
    assert watermarks.following == Following()
    watermarks.confirm()
    watermarks.close()
    with pytest.raises(JournalError, match="another state directory"):
        WatermarkPage(tmp_path / "watermarks", 6)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 4096, bytes(4096), bytes(8192)])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "watermarks").write_bytes(content)
    with pytest.raises(JournalError, match="not the watermarks"):
        WatermarkPage(tmp_path / "watermarks")


def test_a_full_disk_refuses_and_harms_nothing(tmp_path: Path) -> None:
    """On btrfs, which writes every page to a new place."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "-f", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        watermarks = WatermarkPage(disk / "watermarks")
        watermarks.write_applying(Seq(1))
        watermarks.sync()
        with open(disk / "fill", "wb", 0) as file, suppress(OSError):
            while True:
                file.write(os.urandom(1 << 16))
        os.sync()
        refusals = set()
        for seq in range(2, 40):
            try:
                watermarks.write_applying(Seq(seq))
            except OSError as error:
                refusals.add(error.errno)
            watermarks.sync()
        assert refusals == {errno.ENOSPC}
        (disk / "fill").unlink()
        os.sync()
        watermarks.write_applying(Seq(50))
        watermarks.close()
        watermarks = WatermarkPage(disk / "watermarks")
        assert watermarks.applying_seq == 50
        watermarks.close()
    finally:
        subprocess.run(["umount", disk], check=True)
