"""The one atomic write: what is on the disk after each of its steps, who gets in between, and what
is left behind."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.disk.files import (
    Outlives,
    make_directories,
    replacing,
    write_atomically,
    write_new,
)

STEPS = ["one.write", "one.sync", "one.rename", "one.directory"]


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    failpoints.listen(None)


@pytest.mark.parametrize(
    ("outlives", "steps"),
    [(Outlives.MACHINE, STEPS), (Outlives.PROCESS, ["one.write", "one.rename"])],
)
def test_its_steps(tmp_path: Path, outlives: Outlives, steps: list[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"the old content")
    found: dict[str, tuple[bytes, bytes]] = {}

    def look(label: str) -> None:
        new = tmp_path / "file.new"
        found[label] = path.read_bytes(), new.read_bytes() if new.exists() else b"none"

    failpoints.listen(look)
    write_atomically("one", path, b"new", outlives)
    assert list(found) == steps
    assert found["one.write"] == (b"the old content", b"")
    assert found["one.rename"] == (b"the old content", b"new")
    if outlives is Outlives.MACHINE:
        assert found["one.directory"] == (b"new", b"none")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_the_mode_is_what_was_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        write_atomically("one", tmp_path / "file", b"", Outlives.PROCESS, mode=0o755)
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o755


def test_by_the_descriptor_of_a_directory(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    labels: list[str] = []
    failpoints.listen(labels.append)
    write_atomically("one", "file", b"content", Outlives.MACHINE, dir_fd=fd)
    os.close(fd)
    assert labels == STEPS
    assert (tmp_path / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("label", STEPS)
def test_failed_at_a_step_it_leaves_nothing_behind(tmp_path: Path, label: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    failpoints.listen(failpoints.PlannedFault(label, 1, "ENOSPC"))
    with pytest.raises(OSError, match="planned") as error:
        write_atomically("one", path, b"new", Outlives.MACHINE)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == (b"new" if label == "one.directory" else b"old")
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_raises_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with suppress(ZeroDivisionError), replacing("one", path, Outlives.MACHINE) as fd:
        os.write(fd, b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


WRITE = """
import sys
from pathlib import Path
from fusejournal.disk import failpoints
from fusejournal.disk.files import Outlives, write_atomically
failpoints.listen_to_environment()
write_atomically("one", Path(sys.argv[1]), b"new", Outlives.MACHINE)
"""


@pytest.mark.parametrize("label", STEPS)
def test_killed_at_a_step_it_is_whole_and_the_next_write_clears_up(
    tmp_path: Path, label: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    killed = subprocess.run(
        [sys.executable, "-c", WRITE, str(path)],
        check=False,
        env={**os.environ, "FUSEJOURNAL_FAULT": f"{label}:1:kill"},
    )
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" if label == "one.directory" else b"old")
    write_atomically("one", path, b"the next", Outlives.MACHINE)
    assert path.read_bytes() == b"the next"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_left_half_written_and_longer_is_not_taken_for_content(tmp_path: Path) -> None:
    (tmp_path / "file.new").write_bytes(b"half of something long")
    (tmp_path / "file.new").chmod(0o644)
    write_atomically("one", tmp_path / "file", b"short", Outlives.PROCESS)
    assert (tmp_path / "file").read_bytes() == b"short"
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


def test_a_link_at_the_new_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "file.new").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically("one", tmp_path / "file", b"content", Outlives.PROCESS)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {bytes((number,)) * 100_000 for number in range(4)}
    seen: set[bytes] = set()

    def write(content: bytes) -> None:
        for _ in range(50):
            write_atomically("one", path, content, Outlives.PROCESS)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with suppress(FileNotFoundError):
            seen.add(path.read_bytes())
    for thread in threads:
        thread.join()
    assert seen <= contents
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_a_writer_waits_for_one_that_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing("one", path, Outlives.PROCESS) as fd:
        os.write(fd, b"the first")
        thread = threading.Thread(
            target=write_atomically, args=("one", path, b"the second", Outlives.PROCESS)
        )
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        assert not path.exists()
        with open(tmp_path / "file.new", "rb") as new, pytest.raises(BlockingIOError):
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
    thread.join()
    assert path.read_bytes() == b"the second"


def test_a_new_file_is_written_where_nothing_is(tmp_path: Path) -> None:
    labels: list[str] = []
    failpoints.listen(labels.append)
    write_new("one", tmp_path / "file", b"content", mode=0o640)
    assert labels == ["one.write", "one.sync"]
    assert (tmp_path / "file").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        write_new("one", tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_directories_are_on_the_disk_with_those_above(tmp_path: Path) -> None:
    flushed: list[str] = []
    failpoints.listen(flushed.append)
    make_directories("one", tmp_path / "a" / "b" / "c", mode=0o750)
    assert flushed == ["one"] * 3
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o750
    make_directories("one", tmp_path / "a" / "b" / "c", mode=0o700)
    assert flushed == ["one"] * 3
    (tmp_path / "file").touch()
    for taken in ("file", "file/below"):
        with pytest.raises(FileExistsError):
            make_directories("one", tmp_path / taken)
