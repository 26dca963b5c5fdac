"""Restarts that would fail, that fail, and that something comes between."""

import os
import signal
import subprocess
import threading
from contextlib import suppress

import pytest

from fusejournal.control.client import ask
from fusejournal.node.state_dir import load_state
from tests.support.layer import Layer
from tests.support.patience import wait_until

pytestmark = pytest.mark.mount


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("nonsense", "config.toml"),
        ("mirrorz = 1", "mirrorz"),
        ("[replication]\nmirrors = 'many'", "replication.mirrors"),
        ("[replication]\nlisten = 'nowhere at all'", "replication.listen"),
        ("[volume]\nrole = 'mirror'", "is a primary"),
    ],
)
def test_a_restart_that_would_fail_is_refused(layer: Layer, config: str, error: str) -> None:
    layer.start()
    layer.reconfigure(config)
    done = layer.run("restart", "volume", check=False)
    assert done.returncode == 2, done.stderr
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1
    mounting = layer.run(*layer.mount_arguments(), check=False)
    assert mounting.stderr == done.stderr or "is a primary" in error
    assert layer.is_alive()
    (layer.mountpoint / "f").write_bytes(b"content")
    layer.reconfigure("")
    layer.run("restart", "volume")
    layer.stop()


def test_a_restart_that_fails_can_be_mended(held: Layer) -> None:
    (held.mountpoint / "f").write_bytes(b"content")
    held.reconfigure("nonsense")
    ask(held.state, "restart")  # with nothing checked before
    assert held.wait() != 0
    held.reconfigure("")
    held.start()
    assert (held.mountpoint / "f").read_bytes() == b"content"
    assert ask(held.state, "status")["held"]
    held.stop()


def test_nobody_gets_the_volume_in_the_midst_of_a_restart(held: Layer) -> None:
    state = load_state(held.state)
    restarting = subprocess.Popen(held.command("restart", "volume"), env=held.environment)
    looked = 0
    while restarting.poll() is None:
        assert state.holder() is not None
        looked += 1
    assert restarting.returncode == 0
    assert looked > 100
    held.stop()
    assert state.holder() is None


def test_a_sigterm_in_the_midst_of_a_restart_ends_the_layer(layer: Layer) -> None:
    layer.reconfigure('[volume]\ndurability = "nfs"\n[journal]\nflush_interval_seconds = 60\n')
    layer.start(fault="journal.sync:1:stall+")

    def make() -> None:
        with suppress(OSError):
            (layer.mountpoint / "d").mkdir()

    making = threading.Thread(target=make)
    making.start()
    wait_until(lambda: (layer.backing / "d").exists())
    # The restart waits for the request, which waits for a slow disk.
    ask(layer.state, "restart")
    os.kill(layer.pid, signal.SIGTERM)
    assert layer.wait() == 0, layer.words()
    making.join(20)
    assert not layer.is_mounted()
    assert (layer.backing / "d").is_dir()


def starting(layer: Layer) -> None:
    """Begin to start it again, on a disk that is slow just then."""
    layer.start()
    layer.kill()
    layer.detach()
    layer.start(fault="catalog.commit:1:stall", wait=False)
    wait_until(lambda: load_state(layer.state).holder() is not None)


def test_umount_waits_for_a_layer_that_is_starting(layer: Layer) -> None:
    starting(layer)
    done = layer.run("umount", "volume")
    assert f"waiting for process {layer.pid}, which is starting" in done.stderr
    assert layer.wait() == 0
    assert not layer.is_mounted()


def test_umount_after_a_start_that_fails(layer: Layer) -> None:
    starting(layer)
    layer.kill()
    done = layer.run("umount", "volume", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (7, 1)
