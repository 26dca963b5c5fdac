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
from fusejournal.types import Epoch, Seq

_BIG = (1 << 40) + 7


def test_new_ones_are_zero(tmp_path: Path) -> None:
    marks = WatermarkPage(tmp_path / "watermarks")
    assert marks.applying_seq == marks.committed_seq == marks.durable_seq == 0
    assert marks.stopped_seq == 0
    assert marks.epoch == 0
    marks.close()


def test_they_outlive_a_killed_process(tmp_path: Path) -> None:
    WatermarkPage(tmp_path / "watermarks").close()
    child = os.fork()
    if not child:
        marks = WatermarkPage(tmp_path / "watermarks")
        marks.applying_seq = Seq(_BIG)
        marks.committed_seq = Seq(_BIG + 1)
        marks.durable_seq = Seq(_BIG + 2)
        marks.stopped_seq = Seq(_BIG + 3)
        marks.epoch = Epoch(5)
        marks.following = Following(6, 7, (_BIG, 8))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    marks = WatermarkPage(tmp_path / "watermarks")
    assert (marks.applying_seq, marks.committed_seq) == (_BIG, _BIG + 1)
    assert (marks.durable_seq, marks.stopped_seq, marks.epoch) == (_BIG + 2, _BIG + 3, 5)
    assert marks.following == Following(6, 7, (_BIG, 8))
    assert marks.is_unconfirmed
    marks.following = Following(6, 8)
    marks.sync()
    marks.close()
    marks = WatermarkPage(tmp_path / "watermarks")
    assert marks.following == Following(6, 8)
    marks.close()


def test_they_say_whose_they_are(tmp_path: Path) -> None:
    """And, where they were made anew, that nothing was known then, until a start got through."""
    path = tmp_path / "watermarks"
    for confirms in (False, True):
        marks = WatermarkPage(path, 5)
        assert marks.is_unconfirmed
        if confirms:
            marks.confirm()
        marks.close()
    marks = WatermarkPage(path, 5)
    assert not marks.is_unconfirmed
    marks.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another state directory"):
        WatermarkPage(path, 6)
    assert path.read_bytes() == before
    WatermarkPage(path).close()


def test_those_of_the_version_before_get_their_owner(tmp_path: Path) -> None:
    words = [int.from_bytes(b"\x89FJCOPY1", "little"), 3, 2, 2]
    content = b"".join(word.to_bytes(8, "little") for word in words).ljust(4096, b"\0")
    (tmp_path / "watermarks").write_bytes(content)
    marks = WatermarkPage(tmp_path / "watermarks", 5)
    assert not marks.is_unconfirmed
    assert marks.applying_seq == 3
    assert marks.following == Following()
    marks.confirm()
    marks.close()
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
        marks = WatermarkPage(disk / "watermarks")
        marks.applying_seq = Seq(1)
        marks.sync()
        with open(disk / "fill", "wb", 0) as file, suppress(OSError):
            while True:
                file.write(os.urandom(1 << 16))
        os.sync()
        refusals = set()
        for seq in range(2, 40):
            try:
                marks.applying_seq = Seq(seq)
            except OSError as error:
                refusals.add(error.errno)
            marks.sync()
        assert refusals == {errno.ENOSPC}
        (disk / "fill").unlink()
        os.sync()
        marks.applying_seq = Seq(50)
        marks.close()
        marks = WatermarkPage(disk / "watermarks")
        assert marks.applying_seq == 50
        marks.close()
    finally:
        subprocess.run(["umount", disk], check=True)
