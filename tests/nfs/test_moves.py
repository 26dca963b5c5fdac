"""NFS across a move of the service: two servers with a floating address, and clients that go on
with their open files, their working directory, their locks and what they are writing, after a
handoff, and after a promotion because the layer was killed or the server lost its power.

By default NFSv4.2 over a handoff; all with FUSEJOURNAL_NFS_MOVES=1."""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusejournal.nfs import client_records
from tests.nfs.conftest import VERSIONS, mounted
from tests.nfs.test_locks import U, W, lock
from tests.support.guest.client import Person
from tests.support.guest.moves import WAYS, Moving, board, move, moving, work
from tests.support.guest.server import wait_until

pytestmark = pytest.mark.guest

ALL = bool(os.environ.get("FUSEJOURNAL_NFS_MOVES"))
_CHUNK = bytes(range(256)) * 512
_CHUNK_SECONDS = 0.2
_MOVED_SECONDS = 180.0

# -- what clients do -------------------------------------------------------------------------------


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags, 0o644)


def _copy(path: Path, stop: Path) -> str:
    """Writes a large file bit by bit, most of it unstable until the end, which comes after *stop*
    is there. Returns its digest."""
    digest = hashlib.sha256()
    number = 0
    with open(path, "wb", buffering=0) as file:
        while not stop.exists():
            chunk = number.to_bytes(8) + _CHUNK
            assert file.write(chunk) == len(chunk)
            digest.update(chunk)
            number += 1
            time.sleep(_CHUNK_SECONDS)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_anew(fd: int) -> bytes:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(fd, 1 << 20, 0)


def check_clients_go_on(one: Moving, version: str, move: Callable[[], None]) -> float:
    """Have clients hold and do all sorts of things while *move* moves the service; all of it goes
    on. Returns the longest pause of one that works, in seconds."""
    with ExitStack() as stack:
        holder, other, copier, reader, worker = (stack.enter_context(Person()) for _ in range(5))
        (one.client / "dir").mkdir()
        (one.client / "work").mkdir()
        (one.client / "dir" / "held").write_bytes(b"held")
        (one.client / "read").write_bytes(b"read" * 1000)
        held = holder.ask(_open, one.client / "dir" / "held", os.O_RDWR)
        holder.ask(os.chdir, one.client / "dir")
        assert holder.ask(lock, held, W, 0, 10) == "done"
        others = other.ask(_open, one.other / "dir" / "held", os.O_RDWR)
        assert other.ask(lock, others, W, 0, 10) == "EAGAIN"
        assert other.ask(lock, others, W, 20, 10) == "done"
        read = reader.ask(_open, one.other / "read", os.O_RDONLY)
        assert reader.ask(_read_anew, read) == b"read" * 1000
        if version != "3":
            assert "type: deleg" in one.east.machine.states()
        inodes = {name: (one.client / name).stat().st_ino for name in ("dir", "dir/held", "read")}
        stop = one.east.base / "stop"
        copier.begin(_copy, one.client / "copy", stop)
        worker.begin(work, one.client / "work", stop)
        _await_records(one, version)
        move()
        assert copier.is_busy()
        time.sleep(1)
        stop.touch()
        wait_until("the copy", lambda: not copier.is_busy(), _MOVED_SECONDS)
        copied = copier.end()
        wait_until("the work", lambda: not worker.is_busy(), _MOVED_SECONDS)
        pause_seconds: float = worker.end()
        # The locks are what they were: in the way of others, and no process's own.
        assert other.ask(lock, others, W, 0, 10) == "EAGAIN"
        assert holder.ask(lock, held, W, 20, 10) == "EAGAIN"
        assert holder.ask(os.pwrite, held, b"HELD", 0) == 4
        holder.ask(os.fsync, held)
        assert other.ask(_read_anew, others) == b"HELD"
        assert holder.ask(lock, held, U) == "done"
        assert other.ask(lock, others, W, 0, 10) == "done"
        assert holder.ask(os.listdir, ".") == ["held"]
        assert reader.ask(_read_anew, read) == b"read" * 1000
        assert {name: (one.client / name).stat().st_ino for name in inodes} == inodes
        backing = one.west.backing
        assert _digest(backing / "copy") == _digest(one.other / "copy") == copied
        assert (backing / "dir" / "held").read_bytes() == b"HELD"
        assert not [line for line in one.west.ask()["degraded"] if "hook" in line]
    return pause_seconds


def _await_records(one: Moving, version: str) -> None:
    """Return when the mirror has the names of both clients."""
    path = one.west.backing / client_records.DIRECTORY / "clients"

    def has_both() -> bool:
        text = path.read_text() if path.exists() else ""
        names = ("one", "two")
        if version == "3":
            return all(machine in text for machine in ("10.77.0.3", "10.77.0.4"))
        return all(f"Linux NFSv4.2 {name}".encode().hex() in text for name in names)

    wait_until("the clients' names", has_both, 60)


@pytest.fixture
def base(disks: dict[str, Path], tmp_path: Path) -> Path:
    """A place for all of it."""
    return mounted(disks, "ext4") / tmp_path.name


_CASES = [(way, version) for way in WAYS for version in VERSIONS]


@pytest.mark.parametrize(("way", "version"), _CASES if ALL else [("handoff", "4.2")])
def test_clients_go_on(base: Path, way: str, version: str) -> None:
    with moving(base, version) as one, board(one, base):
        pause_seconds = check_clients_go_on(one, version, lambda: move(one, way))
        print(f"longest pause {pause_seconds:.1f} s")
        assert (base / "off").exists() == (way != "handoff")
        if way == "handoff":
            # Who mounts from the old one by its own name has a mirror there.
            wait_until("the mirror", lambda: one.east.ask()["role"] == "mirror", 60)
