"""Data that an NFS client was told is stable is there, and in the journal, whenever the layer is
killed."""

import errno
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from tests.nfs.conftest import DEVICES, Served
from tests.support.guest.client import Person
from tests.support.guest.server import NfsServer, drop_caches, make_disk, sh, wait_until
from tests.support.layer import Layer
from tests.support.trees import rebuild

pytestmark = pytest.mark.guest

_KILLS = 8
_ROUNDS_MIN = 10
_STEPS = ("mkdir", "create", "fsync", "chmod", "link", "rename", "unlink")


def work(root: Path, told: Connection, stop: Connection) -> None:
    """Do the same steps with one file after another, and tell of each that was answered.

    A change that was done, but whose answer died with the layer, is asked for again by the client
    (as after a server's crash): what it then finds is its own work."""
    number = 0
    while not stop.poll(0):
        directory = root / f"d{number}"
        asked(directory.mkdir, done=FileExistsError)
        told.send((number, "mkdir"))
        fd = asked(partial(os.open, directory / "new", os.O_CREAT | os.O_WRONLY, 0o600))
        told.send((number, "create"))
        asked(partial(write_and_sync, fd, content(number)))
        told.send((number, "fsync"))
        asked(partial(os.fchmod, fd, 0o640))
        told.send((number, "chmod"))
        os.close(fd)
        asked(partial(os.link, directory / "new", directory / "second"), done=FileExistsError)
        told.send((number, "link"))
        asked(partial((directory / "new").rename, directory / "kept"), done=FileNotFoundError)
        told.send((number, "rename"))
        asked((directory / "second").unlink, done=FileNotFoundError)
        told.send((number, "unlink"))
        number += 1
    told.send(None)


def write_and_sync(fd: int, data: bytes) -> None:
    """Have *data* be the whole stable content of the file."""
    os.pwrite(fd, data, 0)
    os.fsync(fd)


def asked(change: Callable[[], Any], done: type[OSError] | None = None) -> Any:
    """Make *change*; *done* says that it was made before.

    Each may end with EIO once: where a process dies that is just reading a request, the kernel ends
    the request so if it cannot fill the buffer by its fast way, and the guest's has none. (A bare
    reader of /dev/fuse, killed 2,000 times in the guest, gave 5 callers EIO; on x86 6,000 times
    none. fs/fuse/dev.c: fuse_dev_do_read; mm/gup.c: __get_user_pages.)"""
    failures = 0
    while True:
        try:
            return change()
        except OSError as error:
            if isinstance(error, done or ()):
                return None
            failures += 1
            if error.errno != errno.EIO or failures > 1:
                raise


def content(number: int) -> bytes:
    """The content of the file of one round."""
    return random.Random(number).randbytes(random.Random(number).randrange(1, 20_000))


def check(directory: Path, number: int, last: str) -> None:
    """*directory* is at least as far as its round was when *last* was answered."""
    done = _STEPS.index(last)
    names = set(os.listdir(directory))
    if done >= 5:
        assert "kept" in names
        assert "new" not in names
    elif done >= 1:
        assert names & {"new", "kept"}
    file = directory / ("kept" if "kept" in names else "new")
    if done >= 2:
        assert file.read_bytes() == content(number)
    if done >= 3:
        assert file.stat().st_mode & 0o7777 == 0o640
    if 4 <= done < 6:
        assert "second" in names or "kept" in names
    if done >= 6:
        assert names == {"kept"}


class Worker:
    """A client's process at its work; ``answered`` has the last step answered of each round. Use as
    a context manager."""

    def __init__(self, root: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._told, telling = context.Pipe(duplex=False)
        stop, self._stopping = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(root, telling, stop), daemon=True)
        self._process.start()
        telling.close()
        self.answered: dict[int, str] = {}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join(10)

    def listen(self, seconds: float, steps: int = 1 << 30) -> bool:
        """Note what is told for *seconds*, or until *steps* were; False when it has ended."""
        deadline = time.monotonic() + seconds
        while steps and (left := deadline - time.monotonic()) > 0:
            if self._told.poll(left):
                message = self._told.recv()
                if message is None:
                    return False
                self.answered[message[0]] = message[1]
                steps -= 1
        return True

    def end(self) -> None:
        """Let it end with its round."""
        self._stopping.send(True)
        while self.listen(30):
            pass
        self._process.join(30)
        assert self._process.exitcode == 0


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_what_was_stable_survives_kills(served: Served, tmp_path: Path) -> None:
    volume = served.volume
    dice = random.Random(4711)
    with Worker(served.client) as worker:
        for _ in range(_KILLS):
            # Steps, not seconds: how fast the machine is must not decide.
            assert worker.listen(60, steps=dice.randrange(3, 3 * len(_STEPS)))
            volume.kill()
            assert worker.listen(0.1)
            seen = dict(worker.answered)
            # The layer is dead, and its backing in reach: what was answered is in it.
            for number, last in seen.items():
                check(volume.backing / f"d{number}", number, last)
            volume.start()
        assert worker.listen(60, steps=len(_STEPS))
        worker.end()
    assert len(worker.answered) > _ROUNDS_MIN
    drop_caches()
    for number, last in worker.answered.items():
        check(served.client / f"d{number}", number, last)
    digest = digest_tree(served.volume.mountpoint)
    volume.run("umount", "volume", "--lazy")
    (tmp_path / "rebuilt").mkdir()
    rebuild(volume.state, tmp_path / "rebuilt", load_state(volume.state).uuid)
    assert digest_tree(tmp_path / "rebuilt") == digest


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_names_and_attributes_are_durable_when_answered(served: Served) -> None:
    """A sync export promises that; the layer's journal is on disk up to the last entry after each
    of them, and up to a file's last write after its fsync."""
    assert served.volume.ask()["durability"] == "nfs"
    client = served.client
    steps = [
        lambda: (client / "d").mkdir(),
        lambda: (client / "f").touch(),
        lambda: (client / "f").chmod(0o600),
        lambda: os.link(client / "f", client / "d" / "g"),
        lambda: (client / "f").rename(client / "d" / "h"),
        lambda: os.utime(client / "d" / "h", (1, 1)),
        lambda: os.truncate(client / "d" / "h", 10),
        lambda: (client / "d" / "g").unlink(),
        lambda: os.symlink("h", client / "d" / "l"),
        lambda: written_and_synced(client / "d" / "h"),
        lambda: (client / "d" / "l").unlink(),
        lambda: (client / "d" / "h").unlink(),
        lambda: (client / "d").rmdir(),
    ]
    for number, step in enumerate(steps):
        step()
        status = served.volume.ask()
        assert status["durable_seq"] == status["head_seq"], number


def written_and_synced(path: Path) -> None:
    """Write through the client and have it committed."""
    with open(path, "r+b") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize("version", ["3", "4.2"])
def _await_entry_after(seq: int, volume: Layer) -> None:
    wait_until("its entry", lambda: volume.head_seq() > seq)


def test_no_answer_comes_before_the_flush(served: Served) -> None:
    """On a disk that takes two seconds for each."""
    volume, client = served
    (client / "file").touch()
    volume.kill()
    volume.start(fault="journal.sync:1:stall+")
    with Person() as person:
        for change in (
            (os.mkdir, client / "d"),
            (os.rename, client / "file", client / "d" / "kept"),
            (written_and_synced, client / "d" / "kept"),
        ):
            before = volume.head_seq()
            person.begin(*change)
            _await_entry_after(before, volume)
            begun = time.monotonic()
            while True:
                is_answered = not person.is_busy()
                status = volume.ask()
                if is_answered:
                    break
                time.sleep(0.05)
            assert status["durable_seq"] == status["head_seq"]
            assert time.monotonic() - begun > 1
            person.end()
    volume.kill()
    volume.start()


# -- a system crash --------------------------------------------------------------------------------


class Lossy:
    """A disk that loses all that is written to it from a moment on, as when a machine loses its
    power: what the file system above has in memory by then never comes to be on it. Source: the
    kernel's Documentation/admin-guide/device-mapper/dm-flakey.rst."""

    _NAME = "lossy"

    def __init__(self, device: Path) -> None:
        self._device = device
        self._sectors = int(sh("blockdev", "--getsz", device))
        sh("modprobe", "dm-mod")
        sh("modprobe", "dm-flakey")
        self._dmsetup("create", self._NAME, "--table", self._table("linear"))
        minor = sh("dmsetup", "info", "-c", "--noheadings", "-o", "minor", self._NAME).strip()
        self.path = Path(f"/dev/dm-{minor}")

    def _table(self, target: str, *more: str) -> str:
        return " ".join(("0", str(self._sectors), target, str(self._device), "0", *more))

    def _dmsetup(self, command: str, *arguments: str) -> None:
        sh("dmsetup", command, "--noudevsync", "--noudevrules", *arguments)

    def lose(self) -> None:
        """From now on nothing is written; nothing is flushed before."""
        self._become("flakey", "0", "3600", "1", "drop_writes")

    def mend(self) -> None:
        """Write again."""
        self._become("linear")

    def _become(self, target: str, *more: str) -> None:
        self._dmsetup("suspend", "--nolockfs", "--noflush", self._NAME)
        self._dmsetup("load", self._NAME, "--table", self._table(target, *more))
        self._dmsetup("resume", self._NAME)

    def remove(self) -> None:
        """Take it away."""
        self._dmsetup("remove", self._NAME)


@pytest.fixture
def lossy(nfs: NfsServer, tmp_path: Path) -> Iterator[tuple[Lossy, Path]]:
    """Such a disk, and where an ext4 on it is mounted."""
    disk = Lossy(Path(DEVICES["btrfs"]))
    mountpoint = Path("/srv/lossy")
    make_disk("ext4", disk.path, mountpoint)
    yield disk, mountpoint
    sh("umount", mountpoint)
    disk.remove()


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_what_was_stable_survives_the_loss_of_the_machine(
    nfs: NfsServer, version: str, lossy: tuple[Lossy, Path], tmp_path: Path
) -> None:
    disk, mountpoint = lossy
    seen: dict[int, str] = {}
    with Layer(mountpoint) as volume:
        volume.start()
        exported = ("127.0.0.1", "--no-root-squash", "--option", "insecure", "--write")
        volume.run("export", "volume", *exported)
        with (
            nfs.client(version, volume.mountpoint, Path("/nfs/lossy")) as client,
            Worker(client) as worker,
        ):
            assert worker.listen(60, steps=10 * len(_STEPS) + 3)
            seen = dict(worker.answered)
            disk.lose()
            lost_from = volume.head_seq()
            wait_until("more work", lambda: volume.head_seq() > lost_from + 20)
            head_seq = volume.head_seq()
            volume.kill()
            volume.run("umount", "volume")
        volume.run("export", "volume", "--remove")
        sh("umount", mountpoint)
        disk.mend()
        drop_caches()
        sh("mount", disk.path, mountpoint)
        # Another boot begins.
        (volume.state / "boot").write_text(json.dumps({"boot_id": "before"}))
        volume.start()
        status = volume.ask()
        assert status["epoch"] == 2
        volume.stop()
        rebuilt = tmp_path / "rebuilt"
        rebuilt.mkdir()
        rebuild(volume.state, rebuilt, load_state(volume.state).uuid)
        for number, last in seen.items():
            check(rebuilt / f"d{number}", number, last)
        assert status["head_seq"] < head_seq  # for some was lost
