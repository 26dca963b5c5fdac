"""Handles of clients stay good as long as the file is there: open files, directories and working
directories, through everything that drops the kernel's inodes or the layer itself."""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusejournal.disk import syscalls
from tests.nfs.conftest import Served
from tests.support.guest.holder import Holder
from tests.support.guest.server import drop_caches, sh, wait_until
from tests.support.handles import generation_of, handle_of, made_up

pytestmark = pytest.mark.guest

SOME_FILESYSTEMS = pytest.mark.parametrize(
    ("filesystem", "version"), [("ext4", "3"), ("ext4", "4.2"), ("xfs", "3"), ("btrfs", "4.2")]
)


@contextmanager
def holding(served: Served, name: str = "kept") -> Iterator[Holder]:
    """A client that has a file, its directory and its working directory open, below *name*."""
    directory = served.client / name / "inner"
    directory.mkdir(parents=True)
    (directory / "file").write_bytes(b"content")
    with Holder() as holder:
        holder.do("open", "file", directory / "file", os.O_RDWR)
        holder.do("open", "directory", directory, os.O_RDONLY)
        holder.do("chdir", directory)
        yield holder


def check_all(holder: Holder, word: str) -> None:
    """Everything that is held answers, and takes changes."""
    fid, _, links = holder.do("stat", "file")
    assert links == 1
    before = holder.do("read", "file")
    data = word.encode()
    assert holder.do("write", "file", data, len(before)) == len(data)
    assert holder.do("read", "file") == before + data
    holder.do("chmod", "file", 0o640)
    made = holder.do("create_in", "directory", word)
    assert made not in (0, fid)
    assert word in holder.do("list", "directory")
    assert {"file", word} <= set(holder.do("list_cwd"))


@SOME_FILESYSTEMS
def test_handles_outlive_dropped_caches(served: Served) -> None:
    with holding(served) as holder:
        check_all(holder, "before")
        for round_ in range(3):
            drop_caches()
            check_all(holder, f"dropped{round_}")


@SOME_FILESYSTEMS
def test_handles_outlive_a_restart_on_command(served: Served) -> None:
    with holding(served) as holder:
        holder.do("lock", "file")
        before = served.volume.ask()
        served.volume.run("restart", "volume")
        after = served.volume.ask()
        assert (after["pid"], after["live_since"] > before["live_since"]) == (before["pid"], True)
        check_all(holder, "restarted")
        drop_caches()
        check_all(holder, "dropped")


@SOME_FILESYSTEMS
def test_clients_of_a_killed_layer_wait_for_the_next(served: Served) -> None:
    with holding(served) as holder:
        holder.do("lock", "file")
        for round_ in range(3):
            served.volume.kill()
            holder.begin("write", "file", b"while it was dead", 100)
            assert holder.is_waiting(0.2)
            served.volume.start()
            assert holder.end() == 17
            assert holder.do("read", "file")[100:117] == b"while it was dead"
            check_all(holder, f"killed{round_}")
            assert "dead mount" not in served.volume.words()


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_a_terminated_layer_leaves_its_clients_waiting(served: Served) -> None:
    """So it is when a service is restarted: SIGTERM, then another process."""
    with holding(served) as holder:
        holder.do("lock", "file")
        served.volume.stop()
        holder.begin("write", "file", b"between the two", 100)
        assert holder.is_waiting(0.2)
        served.volume.start()
        assert holder.end() == 15
        check_all(holder, "after")


@SOME_FILESYSTEMS
def test_handles_outlive_a_clean_stop(served: Served) -> None:
    """Unmounted in order and mounted again, beneath a running nfsd."""
    with holding(served) as holder:
        check_all(holder, "before")
        holder.do("close", "file")  # what a client has open is what an orderly umount waits for
        served.volume.run("umount", "volume")
        assert served.volume.wait() == 0
        served.volume.start()
        holder.do("open", "file", served.client / "kept" / "inner" / "file", os.O_RDWR)
        check_all(holder, "mounted again")


@SOME_FILESYSTEMS
def test_handles_outlive_a_dead_mount(served: Served) -> None:
    """The holder is gone, too: clients get errors until the next layer is there, not after."""
    with holding(served) as holder:
        served.volume.kill()
        subprocess.run(["pkill", "-9", "-f", "fusejournal.layer.connection_holder"], check=True)
        wait_until("the mount's death", lambda: holder.outcome("chmod", "file", 0o600) == "EIO")
        served.volume.start()
        assert "took a dead mount away" in served.volume.words()
        check_all(holder, "mounted anew")


def test_renamed_ancestors(served: Served) -> None:
    with holding(served) as holder:
        (served.client / "kept").rename(served.client / "elsewhere")
        drop_caches()
        check_all(holder, "renamed")
        (served.volume.mountpoint / "deep").mkdir()
        (served.volume.mountpoint / "elsewhere").rename(served.volume.mountpoint / "deep" / "er")
        drop_caches()
        check_all(holder, "moved")
        assert (served.client / "deep" / "er" / "inner" / "moved").exists()


def test_removal_is_stale_and_nothing_else_is(served: Served) -> None:
    """Removed by another user (on the server), because a client's own removal is a silly
    rename."""
    with holding(served) as holder:
        inner = served.volume.mountpoint / "kept" / "inner"
        fid = (inner / "file").stat().st_ino
        (inner / "file").unlink()
        (inner / "file").write_bytes(b"another")
        assert (inner / "file").stat().st_ino != fid
        stale_when_closed(served, holder)
        wait_until(
            "the client's look at the new file",
            lambda: (served.client / "kept" / "inner" / "file").read_bytes() == b"another",
        )
        holder.do("open", "new", served.client / "kept" / "inner" / "file", os.O_RDWR)
        assert holder.do("read", "new") == b"another"
        sh("rm", "-r", inner)
        inner.mkdir()
        drop_caches()
        # (A client may say ENOENT by itself to who creates in a removed directory.)
        wait_until("ESTALE", lambda: holder.outcome("list", "directory") == "ESTALE")
        assert holder.outcome("list_cwd") == "ESTALE"
        assert os.listdir(served.client / "kept" / "inner") == []


def stale_when_closed(served: Served, holder: Holder) -> None:
    """A removed file lives as long as the server has it open: with NFSv4 until the client closes
    it, with NFSv3 until nfsd's cache does. Then, and for good, the handle is stale."""
    if f"{served.client} nfs4 " in Path("/proc/mounts").read_text():
        assert holder.do("read", "file") == b"content"
        holder.do("close", "file")
        return
    wait_until("ESTALE", lambda: holder.outcome("chmod", "file", 0o600) == "ESTALE")
    drop_caches()
    assert holder.outcome("chmod", "file", 0o600) == "ESTALE"
    assert holder.outcome("read", "file") == "ESTALE"


def test_a_removed_file_outlives_the_layer_while_it_is_open(served: Served) -> None:
    with holding(served) as holder:
        holder.do("open", "other", served.client / "kept" / "inner" / "file", os.O_RDONLY)
        (served.volume.mountpoint / "kept" / "inner" / "file").unlink()
        (served.volume.mountpoint / "kept" / "inner" / "file").write_bytes(b"new")
        served.volume.kill()
        served.volume.start()
        drop_caches()
        stale_when_closed(served, holder)


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_no_client_makes_up_a_handle(served: Served, version: str) -> None:
    """nfsd asks a handle for no directory above it, and fids are numbers in a row: what keeps a
    client from a file in a directory that is closed to it is the generation alone."""
    own, secret = served.client / "own", served.volume.mountpoint / "closed" / "secret"
    own.write_bytes(b"own")
    secret.parent.mkdir(mode=0o700)
    secret.write_bytes(b"secret")
    known, wanted = (handle_of(path) for path in (served.volume.mountpoint / "own", secret))
    fids = own.stat().st_ino, secret.stat().st_ino
    handle = handle_of(own)
    assert handle.count(known[4:]) == 1, "the server's handle is in the client's"

    def read(generation: int) -> bytes:
        # The client's own part has the file's number, too.
        here, there = (struct.pack("<II", *divmod(fid, 1 << 32)) for fid in fids)
        forged = handle.replace(known[4:], made_up(known, fids[1], generation)[4:])
        forged = forged.replace(here, there)
        root = os.open(served.client, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fd = syscalls.open_by_handle(root, forged, os.O_RDONLY)
        finally:
            os.close(root)
        with open(fd, "rb") as file:
            return file.read()

    for guess in (0, 1, generation_of(known), generation_of(wanted) ^ 1):
        with pytest.raises(OSError, match="Stale file handle"):
            read(guess)
    assert read(generation_of(wanted)) == b"secret"
