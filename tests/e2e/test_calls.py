"""Calls beside the everyday ones: where holes are, when a file was born, and what becomes of a
caller who is killed while it waits."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from tests.support.layer import Layer
from tests.support.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.mount

_MIB = 1 << 20
_NOBODY_ANSWERS = """
[volume]
durability = "nfs"
[replication]
mirrors = 1
mirrors_timeout_seconds = 1.0
on_timeout = "block"
"""


def _extents(fd: int) -> list[tuple[int, int]]:
    """The ranges of data, from and up to."""
    found: list[tuple[int, int]] = []
    at = 0
    while True:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return found
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))


def test_holes_are_found(layer: Layer) -> None:
    layer.start()
    path = layer.mountpoint / "file"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"x" * 4096, _MIB)
    os.pwrite(fd, b"x" * 4096, 3 * _MIB)
    os.ftruncate(fd, 4 * _MIB)
    expected = [(_MIB, _MIB + 4096), (3 * _MIB, 3 * _MIB + 4096)]
    assert _extents(fd) == expected
    backing = os.open(layer.backing / "file", os.O_RDONLY)
    assert _extents(backing) == expected
    os.close(backing)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    assert os.lseek(fd, 3 * _MIB + 5000, os.SEEK_HOLE) == 3 * _MIB + 5000
    for offset in (4 * _MIB, 5 * _MIB, -1):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what counts
            os.lseek(fd, offset, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
    path.unlink()
    assert _extents(fd) == expected
    os.pwrite(fd, b"y", 0)
    assert _extents(fd)[0][0] == 0
    os.close(fd)


def test_a_sparse_file_is_copied_by_its_data(layer: Layer, tmp_path: Path) -> None:
    layer.start()
    with open(layer.mountpoint / "file", "wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"x" * 4096, 1 << 39)
    target = tmp_path / "copy"
    subprocess.run(["cp", layer.mountpoint / "file", target], check=True, timeout=20)
    assert target.stat().st_size == 1 << 40
    assert target.stat().st_blocks <= 1024


def _birth_ns(path: Path) -> int | None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return syscalls.birth_time(fd)
    finally:
        os.close(fd)


def test_the_time_of_birth_is_that_of_the_backings_file(layer: Layer) -> None:
    layer.start()
    begun = time.time_ns()
    (layer.mountpoint / "file").write_bytes(b"content")
    (layer.mountpoint / "directory").mkdir()
    (layer.mountpoint / "link").symlink_to("file")
    for name in ("file", "directory", "link"):
        born, made = _birth_ns(layer.mountpoint / name), _birth_ns(layer.backing / name)
        assert born is not None
        assert made is not None
        assert 0 <= made - born < 10**9
        assert abs(born - begun) < 10**10
        # It comes with the other attributes, and they are as without it.
        stat = (layer.mountpoint / name).lstat()
        assert (layer.mountpoint / name).lstat() == stat
    born = _birth_ns(layer.mountpoint / "file")
    os.utime(layer.mountpoint / "file", ns=(5, 5))
    (layer.mountpoint / "file").rename(layer.mountpoint / "renamed")
    assert _birth_ns(layer.mountpoint / "renamed") == born
    assert (layer.mountpoint / "renamed").stat().st_mtime_ns == 5


def test_what_is_made_is_not_born_after_its_other_times(layer: Layer) -> None:
    """Though an entry's time is behind the clock by which the backing's file is born."""
    layer.start()
    wrong = 0
    for number in range(50):
        made = layer.mountpoint / f"directory{number}"
        made.mkdir()
        stat = made.stat()
        born = _birth_ns(made)
        assert born is not None
        wrong += born > min(stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns)
    # (On a busy machine the process may stand still between the entry and what it makes.)
    assert wrong <= 5


def _start(code: str, *arguments: str | Path) -> "subprocess.Popen[bytes]":
    """A process that runs *code* when it has said that it is about to."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"import os, signal, sys\nprint(1, flush=True)\n{code}", *arguments],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    with child.stdout as out:
        out.readline()
    return child


def _still_runs(child: "subprocess.Popen[bytes]", seconds: float = 0.6) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


_FSYNC = """
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
signal.signal(signal.SIGINT, signal.SIG_DFL)
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(fd, b"x")
os.fsync(fd)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_who_is_ended_while_an_fsync_waits_is_gone(layer: Layer, number: int) -> None:
    """And by nothing else than its end: another signal does not end the fsync."""
    (layer.backing / "file").touch()
    layer.reconfigure(_NOBODY_ANSWERS)
    layer.start()
    child = _start(_FSYNC, layer.mountpoint / "file")
    assert _still_runs(child)
    child.send_signal(signal.SIGUSR1)
    assert _still_runs(child)
    child.send_signal(number)
    assert child.wait(PATIENCE_SECONDS) == -number
    # Others are served as before.
    assert (layer.mountpoint / "file").read_bytes() == b"x"


def test_what_is_done_is_not_answered_before_its_time(layer: Layer) -> None:
    """A name that is made has its entry: its maker is not told that it is not there."""
    layer.reconfigure(_NOBODY_ANSWERS)
    layer.start()
    child = _start("os.mkdir(sys.argv[1])", layer.mountpoint / "directory")
    assert _still_runs(child)
    child.kill()
    assert _still_runs(child)
    assert (layer.backing / "directory").is_dir()
    layer.kill()
    assert child.wait(PATIENCE_SECONDS) == -signal.SIGKILL


def test_flags_are_shown(layer: Layer) -> None:
    """Those of the backing, of files and directories; they hold there, too."""
    layer.start()
    file, directory = layer.mountpoint / "file", layer.mountpoint / "directory"
    file.write_text("content")
    directory.mkdir()
    for flag, path in (("i", file), ("a", directory), ("d", file)):
        behind = layer.backing / path.name
        subprocess.run(["chattr", f"+{flag}", behind], check=True)
        try:
            shown = [
                subprocess.run(["lsattr", "-d", one], check=True, capture_output=True, text=True)
                for one in (path, behind)
            ]
            assert shown[0].stdout.split()[0] == shown[1].stdout.split()[0]
            assert flag in shown[0].stdout.split()[0]
            if flag == "i":
                with pytest.raises(PermissionError):
                    file.write_text("more")
        finally:
            subprocess.run(["chattr", f"-{flag}", behind], check=True)
    file.write_text("more")
    with file.open("rb") as opened:
        answers = []
        for one in (opened.fileno(), os.open(layer.backing / "file", os.O_RDONLY)):
            answers.append(fcntl.ioctl(one, 0x801C581F, bytes(28)))
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                fcntl.ioctl(one, 0x5401, bytes(64))
        os.close(one)
    assert answers[0] == answers[1]
    layer.stop()
