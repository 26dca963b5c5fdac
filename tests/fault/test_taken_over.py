"""A held mount: the layer's process goes, the next takes its connection over, and a process that
uses the mount notices a pause."""

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from fusejournal.control.client import ask
from fusejournal.disk.mounts import mounts
from fusejournal.layer.handshake import TRY_AGAIN
from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from tests.support.layer import Layer
from tests.support.patience import wait_until
from tests.support.trees import rebuild
from tests.support.users import acting

pytestmark = pytest.mark.mount


def holders(layer: Layer) -> list[int]:
    """The holders that run, by pid. (There may be others on this machine.)"""
    found = subprocess.run(
        ["pgrep", "-f", "fusejournal.layer.connection_holder"],
        capture_output=True,
        text=True,
        check=False,
    )
    record = layer.state / "connection"
    told = record.read_text() if record.exists() else ""
    return [pid for pid in map(int, found.stdout.split()) if f'"pid": {pid},' in told]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def patiently(change: Callable[[], object], *, done: tuple[int, ...]) -> None:
    """Make *change*, again if the layer died meanwhile; an errno of *done* then says that the
    first try was carried out before its answer was lost."""
    tried = False
    while True:
        try:
            change()
        except OSError as error:
            if tried and error.errno in done:
                return
            if error.errno != TRY_AGAIN:
                raise
            tried = True
        else:
            return


def check(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        assert os.read(fd, len(data) + 1) == data
    finally:
        os.close(fd)


def work(root: Path, worker: int, stop: threading.Event) -> None:
    """Files made, written, moved and removed; every third stays, as ``kept``."""
    dice = random.Random(worker)
    number = 0
    while not stop.is_set() or number % 3:
        path = root / f"{worker}-{number}"
        other = root / f"{worker}-{number}.moved"
        data = dice.randbytes(dice.randrange(1, 9000))
        patiently(path.mkdir, done=(errno.EEXIST,))
        patiently(partial((path / "f").write_bytes, data), done=())
        patiently(partial(path.rename, other), done=(errno.ENOENT,))
        patiently(partial(check, other / "f", data), done=())
        if number % 3:
            patiently((other / "f").unlink, done=(errno.ENOENT,))
            patiently(other.rmdir, done=(errno.ENOENT,))
        number += 1


def test_work_goes_on_through_kills(held: Layer, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    workers = [
        context.Process(target=work, args=(held.mountpoint, number, stop)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    dice = random.Random(1)
    for _ in range(6):
        time.sleep(dice.uniform(0.02, 0.3))
        held.kill()
        held.start()
    stop.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    digest = digest_tree(held.mountpoint)
    held.run("umount", "volume")
    (tmp_path / "rebuilt").mkdir()
    rebuild(held.state, tmp_path / "rebuilt", load_state(held.state).uuid)
    assert digest_tree(tmp_path / "rebuilt") == digest


def test_a_request_that_died_with_the_layer_is_answered(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        layer.export_to_nobody()
        layer.start(fault="apply.mkdir:2:kill")
        (layer.mountpoint / "one").mkdir()
        layer.run("restart", "volume")  # the plan begins anew
        (layer.mountpoint / "two").mkdir()
        errors: list[int | None] = []

        def make() -> None:
            try:
                (layer.mountpoint / "three").mkdir()
            except OSError as error:
                errors.append(error.errno)

        thread = threading.Thread(target=make)
        thread.start()
        assert layer.wait() == -signal.SIGKILL
        thread.join(0.2)
        assert thread.is_alive()
        layer.start()
        thread.join(20)
        assert errors == [TRY_AGAIN]
        # The entry was in the journal, so what became of the change was decided: it is done.
        assert sorted(os.listdir(layer.mountpoint)) == ["one", "three", "two"]
        assert (layer.mountpoint / "three").is_dir()
        layer.stop()


def test_open_files_keep_their_openers(held: Layer) -> None:
    held.mountpoint.chmod(0o777)
    root = os.open(held.mountpoint, os.O_RDONLY)
    with acting(uid=1234, gid=1234):
        fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=root)
    os.close(root)
    closed = os.open(held.mountpoint / "f", os.O_RDONLY)
    # The kernel learns that a close need not be told: else the next layer, forked from here, would
    # wait at its start for itself.
    os.close(os.dup(closed))
    held.kill()
    held.start()
    os.close(closed)
    os.write(fd, b"by the opener")
    held.run("restart", "volume")
    os.pwrite(fd, b"BY", 0)
    assert os.pread(fd, 100, 0) == b"BY the opener"
    os.close(fd)
    assert [e["uid"] for e in held.entries() if e["op"] == "write"] == [1234, 1234]
    held.stop()


def test_open_files_without_a_name_outlive_the_layer(held: Layer) -> None:
    """In a restart, and where it is killed; what is closed, or was not open, leaves nothing."""
    fds = []
    for number, keep in enumerate((True, True, False)):
        path = held.mountpoint / f"f{number}"
        fds.append(os.open(path, os.O_CREAT | os.O_RDWR))
        os.write(fds[number], b"content %d" % number)
        path.unlink()
        if not keep:
            os.close(os.dup(fds[number]))
    # The kernel learns that a close need not be told: see above.
    held.run("restart", "volume")
    os.pwrite(fds[0], b"CONTENT", 0)
    os.close(fds.pop())
    held.kill()
    held.start()
    for number, fd in enumerate(fds):
        wanted = b"content %d" % number if number else b"CONTENT 0"
        assert os.pread(fd, 100, 0) == wanted
        os.ftruncate(fd, 3)
        assert os.fstat(fd).st_size == 3
        assert os.fstat(fd).st_nlink == 0
        os.close(fd)
    assert os.listdir(held.mountpoint) == []
    held.stop()
    assert os.listdir(held.backing) == []
    held.start()
    held.stop()


def test_a_stop_in_order_leaves_no_holder(held: Layer) -> None:
    (pid,) = holders(held)
    held.stop()
    assert not is_running(pid)
    assert not held.is_mounted()
    assert not (held.state / "connection").exists()


def test_unmounting_a_held_mount_by_hand(held: Layer) -> None:
    (held.mountpoint / "f").write_bytes(b"content")
    held.kill()
    (pid,) = holders(held)
    held.detach()
    wait_until(lambda: not is_running(pid))
    held.start()
    assert (held.mountpoint / "f").read_bytes() == b"content"
    held.stop()


def test_umount_command_on_a_held_mount(held: Layer) -> None:
    held.kill()
    report = json.loads(held.run("status", "volume", "--json").stdout)
    assert report["state"] == "held"
    assert "its users wait" in report["degraded"][0]
    (pid,) = holders(held)
    held.run("umount", "volume")
    assert not held.is_mounted()
    assert not is_running(pid)


def test_nobody_is_held_for_longer_than_configured(tmp_path: Path) -> None:
    with Layer(tmp_path, config="[volume]\nhold_seconds = 0.5\n") as layer:
        layer.export_to_nobody()
        layer.start()
        layer.run("restart", "volume")
        layer.kill()
        with pytest.raises(OSError) as caught:  # noqa: PT011  # either, by where it waited
            os.listdir(layer.mountpoint)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        assert "its mount is dead" in layer.run("status", "volume").stdout
        layer.start()
        assert os.listdir(layer.mountpoint) == []
        layer.stop()


def options(layer: Layer) -> set[str]:
    """Those of its mount."""
    (mount,) = (one for one in mounts() if one.mountpoint == layer.mountpoint)
    return {"ro", "nosuid", "nodev", "noexec"} & mount.options


def test_a_mount_that_is_taken_over_gets_its_new_options(held: Layer) -> None:
    assert options(held) == set()
    held.reconfigure('[volume]\noptions = ["nosuid", "nodev"]\n')
    held.run("restart", "volume")
    assert options(held) == {"nosuid", "nodev"}
    held.kill()
    held.start("-o", "ro,dev")
    assert options(held) == {"nosuid", "ro"}
    with pytest.raises(OSError, match="Read-only"):
        (held.mountpoint / "d").mkdir()
    held.kill()
    held.start("-o", "suid,dev")
    assert options(held) == set()
    (held.mountpoint / "d").mkdir()
    # What cannot be had is told.
    with open(held.mountpoint / "f", "w") as file:
        os.close(os.dup(file.fileno()))  # as above
        held.kill()
        held.start("-o", "ro")
        assert "options stay as they were: Device or resource busy" in held.ask()["degraded"][0]
        with pytest.raises(OSError, match="Read-only"):
            (held.mountpoint / "e").mkdir()
    held.stop()


def test_other_places_are_refused_while_a_mount_is_held(layer: Layer, tmp_path: Path) -> None:
    layer.export_to_nobody()
    layer.start()
    layer.run("restart", "volume")
    (layer.mountpoint / "f").write_bytes(b"content")
    layer.kill()
    for name in ("elsewhere", "other"):
        (tmp_path / name).mkdir()
    for places in (
        (layer.backing, tmp_path / "elsewhere"),
        (tmp_path / "other", layer.mountpoint),
    ):
        done = layer.run(
            "mount", *map(str, places), "--name", "volume", "--state", str(layer.state), check=False
        )
        assert done.returncode == 4, done
        assert f"{layer.backing} mounted at {layer.mountpoint}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert load_state(layer.state).mountpoint == layer.mountpoint
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(layer.mountpoint)], check=True)
    done = layer.run(*layer.mount_arguments(), check=False)
    assert done.returncode == 4
    assert "mounted over volume volume" in done.stderr
    subprocess.run(["umount", str(layer.mountpoint)], check=True)
    layer.run("mount", "volume", "--config", str(tmp_path / "config.toml"))
    assert (layer.mountpoint / "f").read_bytes() == b"content"
    layer.run("umount", "volume")


def test_a_mount_by_another_libfuse_is_made_anew(held: Layer) -> None:
    (held.mountpoint / "f").write_bytes(b"content")
    fd = os.open(held.mountpoint / "f", os.O_RDONLY)
    os.close(os.dup(fd))
    held.kill()
    record = held.state / "connection"
    told = json.loads(record.read_text())
    told["reply"] = told["reply"][:-2] + "01"
    record.write_text(json.dumps(told))
    held.start()
    assert "mounting anew" in held.words()
    assert (held.mountpoint / "f").read_bytes() == b"content"
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.pread(fd, 10, 0)
    os.close(fd)
    held.stop()


def test_local_callers_do_not_wait_for_a_layer_that_died(layer: Layer) -> None:
    """After a restart as before: only an export's clients are held."""
    layer.start()
    layer.run("restart", "volume")
    assert not layer.ask()["held"]
    assert not (layer.state / "connection").exists()
    layer.kill()
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.listdir(layer.mountpoint)
    layer.start()
    layer.export_to_nobody()
    layer.kill()
    layer.start()
    assert layer.ask()["held"]
    Path(layer.environment["FUSEJOURNAL_NFS_ROOT"], "etc/exports").write_text("")
    ask(layer.state, "exported")
    assert not layer.ask()["held"]
    layer.stop()


@pytest.fixture(params=["expiring", "looking"])
def nested(held: Layer, request: pytest.FixtureRequest) -> Iterator[Layer]:
    """A tree in which something else is mounted, and in a directory of which a process works; the
    kernel can, or cannot, be made to ask anew for a name that it keeps."""
    if request.param == "looking":
        held.program = "tests.support.faulty:on_an_old_kernel"
        held.kill()
        held.start()
    (held.mountpoint / "place").mkdir()
    (held.mountpoint / "work").mkdir()
    (held.mountpoint / "file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(held.mountpoint / "place")], check=True)
    yield held
    subprocess.run(["umount", "-l", str(held.mountpoint / "place")], check=False)


@pytest.mark.parametrize("event", ["restart", "kill"])
def test_what_is_mounted_inside_stays(nested: Layer, event: str) -> None:
    place, work = nested.mountpoint / "place", nested.mountpoint / "work"
    (place / "mine").write_text("on tmpfs")
    worker = subprocess.Popen(
        ["sh", "-c", "read _; exec pwd -P"],
        cwd=work, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if event == "restart":
        nested.run("restart", "volume")
    else:
        nested.kill()
        nested.start()
    assert os.path.ismount(place)
    assert (place / "mine").read_text() == "on tmpfs"
    assert os.readlink(f"/proc/{worker.pid}/cwd") == str(work)
    out, _ = worker.communicate("\n")
    assert out.strip() == str(work)


def test_a_lost_answer_is_not_remembered_wrongly(nested: Layer) -> None:
    """A name that the layer moved and could not say so: the kernel still has it where it was."""
    old, new = nested.mountpoint / "file", nested.mountpoint / "work" / "moved"
    nested.kill()
    nested.start(fault="apply.rename:1:kill")
    fid = old.stat().st_ino

    def move() -> None:
        with suppress(OSError):
            old.rename(new)

    moving = threading.Thread(target=move)
    moving.start()
    assert nested.wait() == -signal.SIGKILL
    nested.start()
    moving.join(20)
    assert new.stat().st_ino == fid
    assert not old.exists()


def test_a_file_that_is_not_known_to_be_open(tmp_path: Path) -> None:
    """More were open than can be kept: calls on the rest are refused, and the layer goes on."""
    with Layer(tmp_path) as layer:
        layer.program = "tests.support.faulty:with_a_small_table"
        layer.export_to_nobody()
        layer.start()
        kept, unknown = (
            os.open(layer.mountpoint / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b")
        )
        os.close(os.dup(kept))  # as above
        layer.kill()
        layer.start()
        for act in (os.fsync, os.fdatasync, lambda fd: os.write(fd, b"x")):
            with pytest.raises(OSError, match="Stale"):
                act(unknown)
        os.write(kept, b"x")
        os.fsync(kept)
        for fd in (kept, unknown):
            os.close(fd)
        layer.stop()
