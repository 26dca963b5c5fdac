"""Mounting as mount(8) calls it: the helper, its options, its exit codes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_mounting import fails
from tests.e2e.test_mounting_again import mount_options
from tests.support.layer import Layer
from tests.support.patience import wait_until

pytestmark = pytest.mark.mount


def test_the_helper_of_mount(layer: Layer) -> None:
    places = (str(layer.backing), str(layer.mountpoint))
    options = f"rw,nosuid,name=volume,state={layer.state},nofail,x-a.b=c"
    assert layer.run("mount-helper", *places, "-o", options).stdout == ""
    assert "nosuid" in mount_options(layer)
    pid = layer.ask()["pid"]
    layer.run("mount-helper", *places, "-o", options)
    assert layer.ask()["pid"] == pid
    # umount(8) does not wait for the layer's end; the next mount does.
    subprocess.run(["umount", str(layer.mountpoint)], check=True)
    told = layer.run("mount-helper", "fusejournal:volume", places[1], "-v", "-r").stdout
    assert told == f"mount.fusejournal: {layer.mountpoint}: mounted, volume volume\n"
    assert "ro" in mount_options(layer)
    assert [entry["op"] for entry in layer.entries()][-1] == "clean"
    layer.run("umount", "volume")


def _remount(layer: Layer, options: str, check: bool = True) -> str:
    """Have the helper remount as mount(8) does. Returns what it has to say."""
    arguments = ("mount-helper", "fusejournal:volume", str(layer.mountpoint))
    return layer.run(*arguments, "-o", f"remount,{options}", check=check).stderr


def test_remounting(layer: Layer) -> None:
    """Read-only, and back; it takes what was done to the disk, and a new layer leaves it."""
    layer.reconfigure("[journal]\nflush_interval_seconds = 60\n")
    layer.export_to_nobody()
    layer.run(*layer.mount_arguments("-o", "nosuid"))
    file = layer.mountpoint / "file"
    with file.open("w"):
        told = _remount(layer, "rw,nosuid,relatime,user_id=0,group_id=0,ro", check=False)
        assert f"({Path(sys.executable).name}" in told
        assert "is open to be written" in told
    file.write_text("content")
    _remount(layer, "ro")
    assert {"ro", "nosuid"} <= mount_options(layer)
    status = layer.ask()
    assert status["checkpoint_seq"] == status["durable_seq"] == status["head_seq"]
    with pytest.raises(OSError, match="Read-only") as caught:
        file.write_text("more")
    assert caught.value.errno == errno.EROFS
    assert file.read_text() == "content"
    layer.run("restart", "volume")
    assert {"ro", "nosuid"} <= mount_options(layer)
    _remount(layer, "rw,suid,noatime")
    assert not mount_options(layer) & {"ro", "nosuid", "relatime"}
    file.write_text("more")
    layer.reconfigure('[volume]\noptions = ["nodev"]\n')
    layer.run("restart", "volume")
    assert {"nodev", "nosuid", "relatime"} <= mount_options(layer)
    layer.run("umount", "volume")
    layer.run("mount", "volume", "-o", "ro")
    assert "mounted read-only" in _remount(layer, "rw", check=False)
    layer.run("umount", "volume")
    assert "no volume is mounted there" in _remount(layer, "ro", check=False)


def test_what_is_mounted_sync_is_on_the_disk(layer: Layer) -> None:
    layer.reconfigure("[journal]\nflush_interval_seconds = 60\n")
    # (A security context is SELinux's to take: without it no process does.)
    context = 'context="system_u:object_r:nfs_t:s0:c1,c2"'
    layer.start("-o", f"sync,lazytime,noatime,{context},nodiratime")
    assert {"sync", "lazytime", "noatime", "nodiratime"} <= mount_options(layer)
    fd = os.open(layer.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    for act in (lambda: os.write(fd, b"x"), lambda: os.mkdir(layer.mountpoint / "directory")):
        act()
        status = layer.ask()
        assert status["durable_seq"] == status["head_seq"]
    os.close(fd)


def test_the_helper_waits_for_a_layer_that_is_ending(layer: Layer) -> None:
    layer.start()
    os.kill(layer.pid, signal.SIGSTOP)
    try:
        subprocess.run(["umount", "-l", str(layer.mountpoint)], check=True)
        helper = subprocess.Popen(
            layer.command("mount-helper", "fusejournal:volume", str(layer.mountpoint)),
            env=layer.environment,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            helper.wait(2)
    finally:
        os.kill(layer.pid, signal.SIGCONT)
    assert layer.wait() == 0
    assert helper.wait(30) == 0
    assert layer.is_mounted()
    layer.run("umount", "volume")


def test_the_helper_fails_with_mounts_codes(layer: Layer) -> None:
    mountpoint = str(layer.mountpoint)
    line = fails(layer, 32, "mount-helper", "/nowhere", mountpoint, "-o", "name=other")
    assert line == "mount.fusejournal: /nowhere: No such file or directory\n"
    line = fails(layer, 32, "mount-helper", "fusejournal:nobody", mountpoint)
    assert "no volume 'nobody'" in line
    assert "'gaga'" in fails(layer, 1, "mount-helper", "/nowhere", mountpoint, "-o", "rw,gaga")


def test_the_helper_asks_nothing_of_a_mount_that_may_hang(layer: Layer) -> None:
    layer.start()
    os.kill(layer.pid, signal.SIGSTOP)
    try:
        layer.run("mount-helper", "fusejournal:volume", str(layer.mountpoint))
        options = f"name=volume,state={layer.state}"
        layer.run("mount-helper", str(layer.backing), str(layer.mountpoint), "-o", options)
    finally:
        os.kill(layer.pid, signal.SIGCONT)


def test_the_helper_mounts_in_another_namespace(layer: Layer) -> None:
    other = subprocess.Popen(["unshare", "--mount", "sleep", "600"])
    try:
        wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
        places = (str(layer.backing), str(layer.mountpoint), "-o", f"state={layer.state}")
        layer.run("mount-helper", *places, "-N", f"/proc/{other.pid}/ns/mnt")
        try:
            assert not layer.is_mounted()
            assert f" {layer.mountpoint} " in Path(f"/proc/{other.pid}/mounts").read_text()
        finally:
            os.kill(layer.ask()["pid"], signal.SIGTERM)
            wait_until(lambda: not (layer.state / "control.sock").exists())
    finally:
        other.kill()
        other.wait()
