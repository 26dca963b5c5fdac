"""What an NFS client was told is stable is there, and in the journal, whenever the layer is
killed."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fusejournal.replay.digest import digest_tree
from fusejournal.state import load_state
from tests.nfs.conftest import Served
from tests.support.guest.server import drop_caches
from tests.support.trees import rebuild

pytestmark = pytest.mark.guest

_KILLS = 8
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
        os.write(fd, content(number))
        os.fsync(fd)
        told.send((number, "fsync"))
        os.fchmod(fd, 0o640)
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


def asked(change: Callable[[], Any], done: type[OSError] | None = None) -> Any:
    """Make *change*; *done* says that it was made before. In the moment after a kill a server may
    still remember a name wrongly."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return change()
        except (FileExistsError, FileNotFoundError) as error:
            if isinstance(error, done or ()):
                return None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def content(number: int) -> bytes:
    """What is written to the file of one round."""
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


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_what_was_stable_survives_kills(served: Served, tmp_path: Path) -> None:
    volume = served.volume
    context = multiprocessing.get_context("fork")
    told, telling = context.Pipe(duplex=False)
    stop, stopping = context.Pipe(duplex=False)
    worker = context.Process(target=work, args=(served.client, telling, stop), daemon=True)
    worker.start()
    telling.close()
    answered: dict[int, str] = {}

    def listen(seconds: float) -> bool:
        """Note what is told for *seconds*; False when the worker has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if told.poll(left):
                message = told.recv()
                if message is None:
                    return False
                answered[message[0]] = message[1]
        return True

    dice = random.Random(4711)
    for _ in range(_KILLS):
        assert listen(dice.uniform(0.05, 0.6))
        volume.kill()
        assert listen(0.1)
        seen = dict(answered)
        # The layer is dead, and its backing in reach: what was answered is in it.
        for number, last in seen.items():
            check(volume.backing / f"d{number}", number, last)
        volume.start()
    assert listen(0.5)
    stopping.send(True)
    while listen(30):
        pass
    worker.join(30)
    assert worker.exitcode == 0
    assert len(answered) > 3 * _KILLS
    drop_caches()
    for number, last in answered.items():
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
