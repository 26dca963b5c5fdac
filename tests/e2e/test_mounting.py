"""Mounting, stopping and asking, by the command line as a user types it."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.layer import Layer
from tests.support.losses import begin_another_boot
from tests.support.patience import wait_until
from tests.support.trees import difference, image

pytestmark = pytest.mark.mount


def fails(layer: Layer, code: int, *arguments: str) -> str:
    """Run a command that must end with *code* and one line on stderr; returns the line."""
    done = layer.run(*arguments, check=False)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_mount_returns_when_it_is_live_and_umount_when_it_is_over(layer: Layer) -> None:
    (layer.backing / "there before").touch()
    told = layer.run(*layer.mount_arguments()).stdout
    mounted = f"volume volume is mounted at {layer.mountpoint}: changes there are journaled"
    assert told.splitlines() == ["1 file or directory imported", mounted]
    assert os.path.ismount(layer.mountpoint)
    (layer.mountpoint / "file").write_text("content")
    status = json.loads(layer.run("status", "volume", "--json").stdout)
    assert {
        "name": "volume",
        "role": "primary",
        "epoch": 1,
        "backing": str(layer.backing),
        "mountpoint": str(layer.mountpoint),
        "state": "running",
        "degraded": [],
    }.items() <= status.items()
    assert len(status["uuid"]) == 36
    assert status["head_seq"] >= status["durable_seq"] >= status["checkpoint_seq"] >= 0
    assert Path(f"/proc/{status['pid']}/exe").exists()
    for name in ("volume", str(layer.mountpoint), str(layer.state)):
        assert str(layer.mountpoint) in layer.run("status", name).stdout
    assert "volume" in layer.run("status").stdout
    layer.run("umount", "volume")
    assert not os.path.ismount(layer.mountpoint)
    assert layer.run("mount", "volume").stdout == f"{mounted}\n"
    told = layer.run("restart", "volume").stdout
    assert told == f"volume volume is back at {layer.mountpoint}\n"
    assert layer.run("restart", "-q", "volume").stdout == ""
    layer.run("umount", "volume")
    assert layer.run(*layer.mount_arguments("-q")).stdout == ""
    layer.run("umount", "volume")
    assert not Path(f"/proc/{status['pid']}/exe").exists()  # gone, or left to be reaped
    stopped = json.loads(layer.run("status", "volume", "--json").stdout)
    assert (stopped["state"], stopped["pid"], stopped["degraded"]) == ("stopped", None, [])
    assert layer.entries()[-1]["op"] == "clean"
    assert "not mounted" in fails(layer, 7, "umount", "volume")
    for words in (["mark", "volume", "here"], ["restart", "volume"]):
        line = fails(layer, 7, *words)
        assert "volume volume is not mounted: fusejournal mount volume" in line


def test_log(layer: Layer) -> None:
    layer.start()
    name = os.fsdecode(b"odd\xff\nname")
    (layer.mountpoint / name).write_text("content")
    os.rename(layer.mountpoint / name, layer.mountpoint / "even")
    lines = layer.run("log", "volume", "-n", "3").stdout.splitlines()
    assert len(lines) == 3
    assert "create" in lines[0]
    assert "/odd\\xff\\nname" in lines[0]
    assert "7 bytes at 0" in lines[1]
    assert "-> /even" in lines[2]
    newest = [
        json.loads(line)
        for line in layer.run("log", "volume", "-n", "2", "--json").stdout.splitlines()
    ]
    assert [line["op"] for line in newest] == ["write", "rename"]
    for line in newest:
        assert {"seq", "time", "op", "uid", "gid", "pid", "fid", "path"} <= line.keys()
        assert os.fsencode(line["path"]) == b"odd\xff\nname"
    assert newest[1]["new_path"] == "even"


def test_a_second_mount_is_refused_by_the_name_of_the_first(layer: Layer) -> None:
    layer.start()
    line = fails(layer, 4, *layer.mount_arguments())
    assert str(layer.pid) in line
    assert str(layer.mountpoint) in line
    other = layer.base / "other"
    other.mkdir()
    line = fails(
        layer,
        4,
        "mount",
        str(layer.backing),
        str(other),
        "--name",
        "volume",
        "--state",
        str(layer.state),
    )
    assert str(layer.pid) in line
    line = fails(layer, 5, "mount", str(layer.backing), str(other), "--name", "second")
    assert "belongs to volume" in line


def test_in_place(tmp_path: Path) -> None:
    with Layer(tmp_path, in_place=True) as layer:
        (layer.backing / "sub").mkdir()
        (layer.backing / "sub" / "file").write_text("was there")
        before = image(layer.backing)
        layer.start()
        assert not difference(image(layer.mountpoint), before)
        (layer.mountpoint / "more").write_text("new")
        after = image(layer.mountpoint)
        layer.stop()
        assert not difference(image(layer.backing), after)
        with open(layer.backing / "more") as held:
            line = fails(layer, 4, *layer.mount_arguments())
            assert f"process {os.getpid()}" in line
            assert held.name in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_in_order(layer: Layer, number: signal.Signals) -> None:
    layer.start()
    (layer.mountpoint / "file").write_text("x")
    os.kill(layer.pid, number)
    assert layer.wait() == 0
    assert not layer.is_mounted()
    assert layer.entries()[-1]["op"] == "clean"
    assert layer.words() == ""
    layer.start()
    assert (layer.mountpoint / "file").read_text() == "x"


def test_umount_says_who_uses_it(layer: Layer) -> None:
    layer.start()
    (layer.mountpoint / "file").write_text("x")
    with open(layer.mountpoint / "file"):
        line = fails(layer, 4, "umount", "volume")
        assert str(os.getpid()) in line
        assert "--lazy" in line
        assert (layer.mountpoint / "file").read_text() == "x"
        layer.run("umount", "volume", "--lazy")
    assert layer.wait() == 0
    assert layer.entries()[-1]["op"] == "clean"


def test_umount_waits_for_what_nfsd_lets_go_of(layer: Layer) -> None:
    """It may keep files open for some seconds after their export is gone, and says nothing of it.
    Here a file that only the kernel holds: it is on its way between two sockets."""
    layer.start()
    layer.export_to_nobody()
    root = Path(layer.environment["FUSEJOURNAL_NFS_ROOT"])
    (root / "etc/exports").write_text("")
    threads = root / "proc/fs/nfsd/threads"
    threads.parent.mkdir(parents=True)
    threads.write_text("8\n")
    here, there = socket.socketpair()
    with here, there:
        with open(layer.mountpoint / "f", "w") as file:
            socket.send_fds(here, [b"x"], [file.fileno()])
        ending = subprocess.Popen(
            layer.command("umount", "volume"), env=layer.environment, stderr=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            ending.wait(3)
        assert layer.is_mounted()
    _, said = ending.communicate(timeout=60)
    assert (said, ending.returncode, layer.wait(), layer.is_mounted()) == (b"", 0, 0, False)


def test_lazy_umount_in_the_midst_of_requests(layer: Layer) -> None:
    """The layer ends, though no process asks it anything any more."""
    layer.start()
    over = threading.Event()

    def ask_for_names() -> None:
        number = 0
        while not over.is_set():
            os.path.lexists(layer.mountpoint / f"absent{number}")
            number += 1

    (layer.mountpoint / "file").write_text("x")
    asking = threading.Thread(target=ask_for_names)
    with open(layer.mountpoint / "file"):
        asking.start()
        try:
            layer.run("umount", "volume", "--lazy")
        finally:
            over.set()
            asking.join()
    assert layer.wait() == 0


def test_umount_by_the_system_stops_the_layer(layer: Layer) -> None:
    layer.start()
    subprocess.run(["umount", str(layer.mountpoint)], check=True)
    assert layer.wait() == 0
    assert layer.entries()[-1]["op"] == "clean"


def test_dead_mount_is_taken_away(layer: Layer) -> None:
    layer.start()
    layer.kill()
    layer.run("umount", "volume")
    assert not layer.is_mounted()
    layer.start()


def test_read_only(layer: Layer) -> None:
    (layer.backing / "file").write_text("x")
    line = fails(layer, 5, *layer.mount_arguments("-o", "ro"))
    assert "has no journal yet" in line
    layer.start()
    (layer.mountpoint / "more").write_text("y")
    layer.kill()
    head = layer.entries()[-1]["seq"]
    layer.start("-o", "ro")
    assert (layer.mountpoint / "more").read_text() == "y"
    assert sorted(os.listdir(layer.mountpoint)) == ["file", "more"]
    with pytest.raises(OSError, match="Read-only"):
        (layer.mountpoint / "file").write_text("z")
    with pytest.raises(FileNotFoundError):
        (layer.mountpoint / "nothing").stat()
    (layer.backing / "foreign").write_text("behind the layer")
    with pytest.raises(FileNotFoundError):
        (layer.mountpoint / "foreign").stat()
    assert layer.ask()["state"] == "read-only"
    layer.stop()
    assert layer.entries()[-1]["seq"] == head
    layer.start()
    (layer.mountpoint / "file").write_text("z")
    layer.stop()


def test_mount_options(layer: Layer) -> None:
    layer.start("-o", "nosuid,nodev")
    with open("/proc/mounts") as mounts:
        options = next(line.split()[3] for line in mounts if str(layer.mountpoint) in line)
    assert {"nosuid", "nodev", "allow_other", "default_permissions"} <= set(options.split(","))
    layer.stop()
    assert "'nonsense'" in fails(layer, 2, *layer.mount_arguments("-o", "nonsense"))


def test_places_that_cannot_be(layer: Layer) -> None:
    inside = layer.backing / "inside"
    inside.mkdir()
    backing, name = str(layer.backing), ("--name", "x")
    fails(layer, 2, "mount", backing, str(inside), *name)
    fails(layer, 2, "mount", str(inside), backing, *name)
    fails(layer, 6, "mount", backing, str(layer.base / "nowhere"), *name)
    fails(layer, 5, "mount", str(layer.base / "nowhere"), str(layer.mountpoint), *name)
    fails(layer, 5, "mount", backing, str(layer.mountpoint), "--state", str(inside), *name)
    fails(layer, 2, "mount", backing, str(layer.mountpoint), "--name", "a/b")
    fails(layer, 3, "status", "nobody")
    fails(layer, 3, "log", "nobody")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inside)], check=True)
    try:
        assert "is mounted inside" in fails(
            layer, 5, "mount", backing, str(layer.mountpoint), *name
        )
    finally:
        subprocess.run(["umount", str(inside)], check=True)


def test_a_refused_first_mount_leaves_nothing(layer: Layer) -> None:
    other = layer.base / "another"
    other.mkdir()
    (other / "file").touch()
    mirror = ("--role", "mirror", "--listen", "127.0.0.1:0")
    for background in ((), ("-f",)):
        fails(layer, 2, *layer.mount_arguments("--role", "mirror", *background))
        arguments = layer.mount_arguments(*mirror, *background)
        arguments[1] = str(other)
        assert "is not empty" in fails(layer, 5, *arguments)
        arguments = layer.mount_arguments(*background)
        arguments[2] = str(layer.base / "nowhere")
        fails(layer, 6, *arguments)
        assert not layer.state.exists()
        fails(layer, 3, "status", "volume")
    layer.start()
    assert layer.ask()["role"] == "primary"


def test_backing_without_attributes_is_refused(layer: Layer) -> None:
    line = fails(layer, 5, "mount", "/proc/self", str(layer.mountpoint), "--name", "proc")
    assert "/proc" in line


def test_configuration(layer: Layer) -> None:
    wrong = layer.base / "wrong.toml"
    wrong.write_text("[journal]\nsegment_byte = 5\n")
    arguments = layer.mount_arguments()
    arguments[arguments.index("--config") + 1] = str(wrong)
    assert "did you mean 'journal.segment_bytes'" in fails(layer, 2, *arguments)


def test_a_file_put_into_the_backing_is_imported_when_it_is_looked_up(layer: Layer) -> None:
    layer.start()
    (layer.backing / "foreign").write_text("from behind")
    (layer.backing / "directory").mkdir()
    (layer.backing / "directory" / "below").write_text("too")
    assert (layer.mountpoint / "foreign").read_text() == "from behind"
    assert (layer.mountpoint / "directory" / "below").read_text() == "too"
    made = [entry for entry in layer.entries() if entry["op"] == "import"]
    assert [entry["path"] for entry in made] == ["foreign", "directory", "directory/below"]
    assert "found in the backing" in layer.words()


def test_stopping_an_import(layer: Layer) -> None:
    for number in range(3000):
        (layer.backing / f"f{number}").write_text(str(number))
    before = image(layer.backing)
    layer.start(wait=False)
    wait_until(
        lambda: (
            layer.state.joinpath("journal").exists()
            and sum(f.stat().st_size for f in layer.state.glob("journal/*.fj")) > 20_000
        )
    )
    os.kill(layer.pid, signal.SIGINT)
    assert layer.wait() == 130
    assert "goes on from here" in layer.words()
    layer.start()
    assert not difference(image(layer.mountpoint), before)
    imported = [entry for entry in layer.entries() if entry["op"] == "import"]
    assert len({entry["path"] for entry in imported}) == len(imported) == 3000


def test_stopping_what_follows_a_system_crash(layer: Layer) -> None:
    layer.start()
    for number in range(30):
        (layer.mountpoint / f"f{number}").write_text(str(number))
    before = image(layer.mountpoint)
    layer.kill()
    layer.detach()
    for number in range(0, 30, 2):
        (layer.backing / f"f{number}").unlink()
    begin_another_boot(layer.state)
    layer.start(fault="reconcile.write:1:stall+", wait=False)  # for a minute
    wait_until(lambda: any(path.name.endswith(".new") for path in layer.backing.rglob("*")))
    os.kill(layer.pid, signal.SIGINT)
    begun = time.monotonic()
    assert layer.wait() == 130
    assert time.monotonic() - begun < 20
    assert "goes on from here" in layer.words()
    layer.start()
    assert not difference(image(layer.mountpoint), before)


def test_interrupting_a_mount_in_the_background(layer: Layer) -> None:
    for number in range(5000):
        (layer.backing / f"f{number}").write_text(str(number))
    command = subprocess.Popen(
        layer.command(*layer.mount_arguments()), env=layer.environment, stderr=subprocess.PIPE
    )
    wait_until(lambda: layer.state.joinpath("journal").exists())
    command.send_signal(signal.SIGINT)
    _, words = command.communicate(timeout=30)
    assert command.returncode == 130, words
    assert b"Traceback" not in words
    assert not layer.is_mounted()
    assert json.loads(layer.run("status", str(layer.state), "--json").stdout)["pid"] is None


def test_systemd_is_told(layer: Layer) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(layer.base / "notify"))
        told.settimeout(20)
        layer.environment["NOTIFY_SOCKET"] = str(layer.base / "notify")
        layer.start()
        assert told.recv(100) == b"READY=1"
