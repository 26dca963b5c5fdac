"""A caller who waits for a disk waits alone."""

import os
import threading
import time
from pathlib import Path

import pytest

from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_STALL_SECONDS = 2.0


def _fsync(path: Path) -> float:
    """Makes an fsync of *path*. Returns how long it took, in seconds."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, b"more")
        begun = time.monotonic()
        os.fsync(fd)
        return time.monotonic() - begun
    finally:
        os.close(fd)


def test_a_slow_flush_holds_up_nobody_else(layer: Layer) -> None:
    layer.reconfigure(
        "[journal]\nflush_interval_seconds = 60\ncheckpoint_interval_seconds = 3600\n"
    )
    for number in range(4):
        (layer.backing / f"f{number}").touch()
    layer.start()
    layer.stop()
    layer.start(fault="journal.sync:1:stall+")
    took: dict[int, float] = {}

    def wait(number: int) -> None:
        took[number] = _fsync(layer.mountpoint / f"f{number}")

    waiters = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    for waiter in waiters:
        waiter.start()
    done, longest = 0, 0.0
    while any(waiter.is_alive() for waiter in waiters):
        begun = time.monotonic()
        (layer.mountpoint / f"d{done}").mkdir()
        assert layer.ask()["state"] == "running"
        longest = max(longest, time.monotonic() - begun)
        done += 1
    assert done > 20
    assert longest < _STALL_SECONDS / 2
    # All who waited shared a flush or two.
    assert max(took.values()) < 2.5 * _STALL_SECONDS
    assert min(took.values()) > _STALL_SECONDS / 4


def test_in_the_mode_nfs_names_wait_for_the_flush(layer: Layer) -> None:
    layer.reconfigure('[volume]\ndurability = "nfs"\n[journal]\nflush_interval_seconds = 60\n')
    layer.start()
    for act in (
        lambda: (layer.mountpoint / "d").mkdir(),
        lambda: (layer.mountpoint / "f").touch(),
        lambda: (layer.mountpoint / "f").chmod(0o600),
        lambda: os.rename(layer.mountpoint / "f", layer.mountpoint / "g"),
        lambda: os.truncate(layer.mountpoint / "g", 5),
        lambda: os.close(os.open(layer.mountpoint / "g", os.O_WRONLY | os.O_TRUNC)),
        lambda: (layer.mountpoint / "g").unlink(),
    ):
        act()
        status = layer.ask()
        assert status["durable_seq"] == status["head_seq"]


def test_requests_that_come_now_and_then_leave_room_for_all_else(layer: Layer) -> None:
    """The loop, waiting for the next request, does not keep the other tasks waiting, too. Counted
    in requests: so many at most are answered while a command is."""
    layer.start()
    over = threading.Event()
    done = 0

    def work() -> None:
        nonlocal done
        while not over.wait(0.003):
            os.utime(layer.mountpoint, ns=(done, done))
            done += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        counts = []
        for _ in range(20):
            before = done
            layer.ask()
            counts.append(done - before)
    finally:
        over.set()
        worker.join()
    assert sorted(counts)[len(counts) // 2] < 10, counts
    layer.stop()


def test_memory_is_that_of_requests_at_once(layer: Layer) -> None:
    """Callers who take turns, each waiting with a large request, must not add up."""
    layer.start()
    pid = layer.ask()["pid"]
    before = _anonymous_mib(pid)

    def work(name: str) -> None:
        fd = os.open(layer.mountpoint / name, os.O_CREAT | os.O_WRONLY)
        for _ in range(200):
            os.pwrite(fd, bytes(1 << 20), 0)
            os.fsync(fd)
        os.close(fd)

    workers = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert _anonymous_mib(pid) < before + 50
    layer.stop()


def _anonymous_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) >> 10
