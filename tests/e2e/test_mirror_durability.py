"""``mirrors = 1``: what waits for a flush also waits for a mirror's disk, and what does not wait is
not held up. Order is measured, not time: the mirror's cable is out for as long as the test
wants."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from fusejournal.node.state_dir import load_state
from fusejournal.replication.quorum import FIRST_PLACES, PLACES
from tests.support.mirrors import Node, check_equal, started, wait_for

pytestmark = pytest.mark.mount

_CONFIG = """
[volume]
durability = "{durability}"
[replication]
mirrors = 1
mirrors_timeout_seconds = {seconds}
on_timeout = "{then}"
"""


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.start()

    def run(self) -> None:
        self._call()

    def await_end(self) -> None:
        """Return when it has come back. Raises AssertionError when it does not."""
        self.join(20)
        assert not self.is_alive()


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def note_refused_fsync(path: Path, found: list[int | None]) -> None:
    """Append the errno to *found* if it is refused."""
    try:
        fsync(path)
    except OSError as error:
        found.append(error.errno)


def write(path: Path) -> None:
    """Write something, and have it durable."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"more")
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def two(
    base: Path, seconds: float, then: str, durability: str = "async"
) -> Iterator[tuple[Node, Node]]:
    config = _CONFIG.format(durability=durability, seconds=seconds, then=then)
    with started(base, None, config=config) as (primary, mirror):
        (primary.mountpoint / "file").write_text("x")
        check_equal(primary, mirror)
        try:
            yield primary, mirror
        finally:
            mirror.host.mend()


_GREEDY = """
import errno, os, sys, threading
threading.stack_size(65536)
directory, report, act, number = *sys.argv[1:4], int(sys.argv[4])
os.chdir(directory)
results, writing = [], threading.Lock()

def take(name):
    try:
        if act == "mkdir":
            os.mkdir(name + ".d/new")  # (One directory takes one change at a time.)
        else:
            os.pwrite(files[name], b"x", 0)
            os.fsync(files[name])
        results.append("answered")
    except OSError as error:
        results.append(errno.errorcode[error.errno])
    with writing, open(report, "w") as file:
        file.write(" ".join(results))

names = [f"g{n}" for n in range(number)]
files = {name: os.open(name, os.O_RDWR | os.O_CREAT, 0o644) for name in names}
for name in names:
    os.mkdir(name + ".d")
print("ready", flush=True)
input()
threads = [threading.Thread(target=take, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
_NOBODY = 65534
_CALLERS = 600
"""More than the layer serves at once."""


@contextmanager
def greedy(
    directory: Path, report: Path, act: str, mirror: Node
) -> Iterator[subprocess.Popen[str]]:
    """A user without privileges who is about to *act* in *directory*, many times at once."""
    for path in (report.parent, *report.parent.parents):
        if path.owner() == "root" and not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o011)
    directory.chmod(0o777)
    report.touch()
    os.chown(report, _NOBODY, _NOBODY)
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _GREEDY, directory, report, act, str(_CALLERS)],
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        except BaseException:
            mirror.host.mend()  # or its calls would never end
            raise


@pytest.mark.parametrize(("durability", "act"), [("async", "fsync"), ("nfs", "mkdir")])
def test_who_takes_all_places_leaves_some_to_others(
    tmp_path: Path, durability: str, act: str
) -> None:
    """One user's calls that wait for a mirror, which is away, keep no other user from the mount,
    nor from waiting, too; and what is refused has not been done."""
    report = tmp_path / "report"
    with two(tmp_path, 600, "block", durability) as (primary, mirror):
        root = primary.mountpoint
        with greedy(root, report, act, mirror) as process:
            mirror.host.cut()
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            half = (PLACES - FIRST_PLACES) // 2
            refused = ["EAGAIN"] * (_CALLERS - half)
            wait_for(lambda: report.read_text().split() == refused, report.read_text)
            assert primary.ask()["replication"]["mirrors_waiting"] == half
            for _ in range(20):
                reading = Call(lambda: (root / "file").read_text())
                listing = Call(lambda: os.listdir(root))
                reading.await_end()
                listing.await_end()
            mine = Call(lambda: write(root / "file") if act == "fsync" else os.mkdir(root / "mine"))
            await_waiting(primary, half + 1)
            assert mine.is_alive()
            mirror.host.mend()
            mine.await_end()
            assert process.wait(30) == 0
        assert sorted(report.read_text().split()) == [*refused, *["answered"] * half]
        if act == "mkdir":
            assert len(list(root.glob("*.d/new"))) == half
        check_equal(primary, mirror)


def await_waiting(node: Node, number: int) -> None:
    """Wait until so many calls wait for a mirror."""
    wait_for(lambda: node.ask()["replication"]["mirrors_waiting"] == number, node.ask)


def test_fsync_waits_for_the_mirror_and_holds_up_nobody(tmp_path: Path) -> None:
    with two(tmp_path, 600, "block") as (primary, mirror):
        root = primary.mountpoint
        for n in range(30):  # what an fsync has answered for is on the mirror's disk
            (root / "file").write_text(str(n))
            fsync(root / "file")
            assert mirror.mirroring()["durable_seq"] >= primary.head_seq()

        mirror.host.cut()
        files = [root / name for name in ("file", "second", "third")]
        for path in files:
            path.write_text("not on the mirror yet")
        seq = primary.head_seq()
        waiting = [Call(partial(fsync, path)) for path in files]
        await_waiting(primary, 3)
        # Others work on. (Not on these files: the kernel holds their inodes' locks meanwhile.)
        for n in range(50):
            (root / f"d{n}").mkdir()
            (root / f"d{n}" / "f").write_text("y" * 5000)
            os.rename(root / f"d{n}", root / f"e{n}")
            assert (root / "file").read_text() == "not on the mirror yet"
            assert len(os.listdir(root)) == n + 4
        assert all(call.is_alive() for call in waiting)
        assert primary.peer(mirror)["acked_seq"] < seq
        mirror.host.mend()
        for call in waiting:
            call.await_end()
        assert mirror.mirroring()["durable_seq"] >= seq
        check_equal(primary, mirror)


@pytest.mark.parametrize("then", ["block", "degrade"])
def test_a_mirror_that_does_not_answer_in_time(tmp_path: Path, then: str) -> None:
    with two(tmp_path, 0.5, then) as (primary, mirror):
        root = primary.mountpoint
        mirror.host.cut()
        (root / "file").write_text("alone")
        call = Call(lambda: fsync(root / "file"))

        def told() -> str:
            return " ".join(primary.ask()["degraded"])

        wait_for(lambda: "fewer than 1 mirrors" in told(), primary.ask)
        if then == "degrade":
            call.await_end()
            fsync(root / "file")  # at once now
            assert "nothing waits for them" in told()
        else:
            assert call.is_alive()
            assert "is blocked" in told()
        mirror.host.mend()
        call.await_end()
        wait_for(lambda: "mirrors" not in told(), primary.ask)
        (root / "file").write_text("together again")
        fsync(root / "file")
        assert mirror.mirroring()["durable_seq"] >= primary.head_seq()
        check_equal(primary, mirror)


@pytest.mark.parametrize("durability", ["nfs", "strict"])
def test_what_else_waits(tmp_path: Path, durability: str) -> None:
    """Names and attributes in ``nfs``, every change in ``strict``."""
    with two(tmp_path, 600, "block", durability) as (primary, mirror):
        root = primary.mountpoint
        (root / "other").write_text("x")
        mirror.host.cut()
        calls = [Call(lambda: os.mkdir(root / "new")), Call(lambda: os.chmod(root / "file", 0o600))]
        await_waiting(primary, 2)
        assert (root / "file").read_text() == "x"
        if durability == "strict":
            calls.append(Call(lambda: os.truncate(root / "other", 0)))
            await_waiting(primary, 3)
        assert all(call.is_alive() for call in calls)
        mirror.host.mend()
        for call in calls:
            call.await_end()
        check_equal(primary, mirror)
        assert os.stat(mirror.mountpoint / "file").st_mode & 0o777 == 0o600


def test_a_lazy_unmount_waits_for_no_mirror(tmp_path: Path) -> None:
    with two(tmp_path, 600, "block") as (primary, mirror):
        mirror.host.cut()
        (primary.mountpoint / "file").write_text("not on the mirror")
        found: list[int | None] = []
        call = Call(partial(note_refused_fsync, primary.mountpoint / "file", found))
        await_waiting(primary, 1)
        Call(lambda: primary.run("umount", str(primary.state), "--lazy")).await_end()
        call.await_end()
        assert found == [errno.EAGAIN]
        assert not os.path.ismount(primary.mountpoint)
        assert load_state(primary.state).holder() is None


def test_a_forced_unmount_waits_for_no_mirror(tmp_path: Path) -> None:
    """It cuts the connection; no peer is there to be answered, and the process ends."""
    with two(tmp_path, 600, "block") as (primary, mirror):
        mirror.host.cut()
        (primary.mountpoint / "file").write_text("not on the mirror")
        found: list[int | None] = []
        call = Call(partial(note_refused_fsync, primary.mountpoint / "file", found))
        await_waiting(primary, 1)
        subprocess.run(["umount", "-f", primary.mountpoint], check=False, capture_output=True)
        call.await_end()
        assert found == [errno.ECONNABORTED]
        wait_for(lambda: load_state(primary.state).holder() is None, lambda: "still held")
