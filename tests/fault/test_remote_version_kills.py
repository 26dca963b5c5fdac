"""A version whose making is killed, before and after requests to a service, or is interrupted while
no server answers: all versions are as they were, and the next attempt makes it."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.configured import ConfiguredVolume
from tests.support.forked import Forked, run
from tests.support.seaweed import SeaweedFS

pytestmark = pytest.mark.mount

_CALLS_MAX = 60
_STRIDE = 4
"""One in so many calls is killed: each costs a second, and the local store's are killed all."""


@pytest.fixture(scope="module")
def volume(
    seaweed: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConfiguredVolume]:
    with ConfiguredVolume(tmp_path_factory.mktemp("volume")) as volume:
        volume.configure(seaweed.options())
        volume.start()
        where = ("--store", seaweed.address())
        volume.run("version", "store", "init", str(volume.state), *where)
        yield volume
        volume.stop()


def _names(volume: ConfiguredVolume) -> list[str]:
    lines = volume.run("version", "list", str(volume.state), "--json").stdout.splitlines()
    return [json.loads(line)["name"] for line in lines]


def _run(volume: ConfiguredVolume, fault: str, *command: str) -> int:
    environment = {**volume.environment, "FUSEJOURNAL_FAULT": fault}
    done = run(["version", *command], environment, check=False, timeout=60)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def test_killed_between_requests(volume: ConfiguredVolume) -> None:
    state, killed = str(volume.state), 0
    for number in range(1, _CALLS_MAX, _STRIDE):
        (volume.mountpoint / "file").write_bytes(os.urandom(300_000))
        before = _names(volume)
        code = _run(volume, f"remote.*:{number}:kill", "create", state, f"v{number}")
        if code == 0:
            break
        killed += 1
        assert _names(volume)[: len(before)] == before
        volume.run("version", "create", state)
    assert 1 < killed < _CALLS_MAX // _STRIDE
    for seq in _seqs(volume):
        volume.run("version", "verify", state, seq, "--data")
    # What the killed ones left is collected, and that is killed, too.
    volume.run("version", "delete", state, _seqs(volume)[0], "--yes")
    for number in (2, 5):
        _run(volume, f"remote.*:{number}:kill", "collect", state)
    volume.run("version", "collect", state)
    for seq in _seqs(volume):
        volume.run("version", "verify", state, seq, "--data")


def _seqs(volume: ConfiguredVolume) -> list[str]:
    lines = volume.run("version", "list", str(volume.state), "--json").stdout.splitlines()
    return [str(json.loads(line)["seq"]) for line in lines]


def test_interrupted_while_nobody_answers(
    volume: ConfiguredVolume, seaweed: SeaweedFS, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        volume.configure(seaweed.options(nobody.getsockname()[1]))
        began = time.monotonic()
        said = tmp_path / "said"
        command = ["version", "create", str(volume.state), "never"]
        making = Forked(command, volume.environment, out=said, err=said)
        with nobody.accept()[0]:  # it has connected, and waits
            making.send_signal(signal.SIGINT)
            assert making.wait(30) == 130
        assert time.monotonic() - began < 30
        assert said.read_text().split("\n")[-2:] == ["fusejournal: interrupted", ""]
    volume.configure(seaweed.options())
    assert "never" not in _names(volume)
