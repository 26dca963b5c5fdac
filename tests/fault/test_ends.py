"""All the ways in which a layer can end, in place: only who stops it in order gets the bare backing
to see. After a fault the mount is dead, until the next layer serves."""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fusejournal.disk.mounts import device_of
from fusejournal.errors import MountError
from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from tests.support.faulty import FAULTS
from tests.support.layer import Layer
from tests.support.patience import wait_until
from tests.support.trees import rebuild

pytestmark = pytest.mark.mount


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    with Layer(tmp_path, in_place=True) as one:
        yield one


def is_dead(layer: Layer) -> bool:
    """True if no process can get at the tree: neither through the layer nor around it."""
    try:
        os.close(os.open(layer.mountpoint / "f", os.O_RDWR))
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED) and layer.is_mounted()
    return False


def check_journal(layer: Layer, tmp_path: Path) -> None:
    """It tells what the tree holds."""
    digest = digest_tree(layer.mountpoint)
    layer.stop()
    assert not layer.is_mounted()
    (tmp_path / "rebuilt").mkdir()
    rebuild(layer.state, tmp_path / "rebuilt", load_state(layer.state).uuid)
    assert digest_tree(tmp_path / "rebuilt") == digest


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", ["sampler", "durability", "request"])
def test_a_fault_leaves_the_mount_dead(layer: Layer, tmp_path: Path, part: str, fault: str) -> None:
    trigger = tmp_path / "fault"
    layer.environment |= {"FAULTY": f"{part}:{fault}", "FAULTY_TRIGGER": str(trigger)}
    layer.program = "tests.support.faulty:ending"
    layer.start()
    (layer.mountpoint / "f").write_text("version 1")
    trigger.touch()
    while layer.is_alive():
        with suppress(OSError):
            os.statvfs(layer.mountpoint)
    assert layer.wait() != 0
    assert is_dead(layer)
    trigger.unlink()
    layer.start()
    assert (layer.mountpoint / "f").read_text() == "version 1"
    (layer.mountpoint / "f").write_text("version 2")
    check_journal(layer, tmp_path)


def test_an_aborted_connection_leaves_the_mount_dead(layer: Layer, tmp_path: Path) -> None:
    layer.start()
    (layer.mountpoint / "f").write_text("version 1")
    _, _, minor = device_of(layer.mountpoint).partition(":")
    control = tmp_path / "control"
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", str(control)], check=True)
    try:
        (control / minor / "abort").write_text("1")
    finally:
        subprocess.run(["umount", str(control)], check=True)
    assert layer.wait() == MountError.exit_code
    assert "was cut" in layer.words()
    assert is_dead(layer)
    layer.start()
    assert (layer.mountpoint / "f").read_text() == "version 1"
    layer.stop()


def kill(layer: Layer) -> None:
    """And let the next start have some work to do, as after a system crash."""
    layer.start()
    (layer.mountpoint / "f").write_text("version 1")
    layer.kill()
    assert is_dead(layer)
    boot = layer.state / "boot"
    boot.write_text(json.dumps(json.loads(boot.read_text()) | {"boot_id": "another"}))


@pytest.mark.parametrize(
    "fault", ["checkpoint.*:1:EIO", "journal.sync:1:EIO", "boot.sync:1:EIO", "boot.sync:1:kill"]
)
def test_a_start_that_fails_leaves_the_mount_dead(layer: Layer, fault: str) -> None:
    kill(layer)
    layer.start(fault=fault)
    assert not layer.is_alive()
    assert is_dead(layer)
    layer.start()
    assert (layer.mountpoint / "f").read_text() == "version 1"
    layer.stop()
    assert not layer.is_mounted()


def starting_again(layer: Layer) -> None:
    """Kill it, and begin to start it again on a disk that is slow just then."""
    kill(layer)
    layer.start(fault="boot.sync:1:stall", wait=False)
    wait_until(lambda: json.loads((layer.state / "boot").read_text())["boot_id"] != "another")


def test_nobody_gets_at_the_backing_while_the_next_layer_starts(layer: Layer) -> None:
    starting_again(layer)
    wait_until(lambda: is_dead(layer))
    dead = 0
    while is_dead(layer):
        dead += 1
    layer.await_live()
    assert dead > 10
    assert (layer.mountpoint / "f").read_text() == "version 1"
    layer.stop()


def test_a_stop_amid_the_start_is_one_in_order(layer: Layer) -> None:
    starting_again(layer)
    os.kill(layer.pid, signal.SIGTERM)
    assert layer.wait() in (0, 130)  # by how far it had come
    assert not layer.is_mounted()
    layer.start()
    assert (layer.mountpoint / "f").read_text() == "version 1"
    layer.stop()


def test_a_first_start_that_fails_leaves_what_was_there(layer: Layer) -> None:
    (layer.backing / "f").write_text("not imported")
    layer.start(fault="journal.sync:1:EIO")
    assert not layer.is_alive()
    assert not layer.is_mounted()
    assert (layer.backing / "f").read_text() == "not imported"
    layer.start()
    layer.stop()


def test_an_unmount_by_hand_ends_it_in_order(layer: Layer) -> None:
    layer.start()
    (layer.mountpoint / "f").write_text("version 1")
    subprocess.run(["umount", str(layer.mountpoint)], check=True)
    assert layer.wait() == 0
    assert layer.entries()[-1]["op"] == "clean"
