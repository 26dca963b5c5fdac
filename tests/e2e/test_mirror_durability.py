"""``mirrors = 1``: what waits for a flush also waits for a mirror's disk, and what does not wait is
not held up. Order is measured, not time: the mirror's cable is out for as long as the test
wants."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from fusejournal.node.state_dir import load_state
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

        def sync() -> None:
            try:
                fsync(primary.mountpoint / "file")
            except OSError as error:
                found.append(error.errno)

        call = Call(sync)
        await_waiting(primary, 1)
        Call(lambda: primary.run("umount", str(primary.state), "--lazy")).await_end()
        call.await_end()
        assert found == [errno.EAGAIN]
        assert not os.path.ismount(primary.mountpoint)
        assert load_state(primary.state).holder() is None
