"""A mirror that copies its primary's tree, with real processes in network namespaces: while changes
are made, and both sides are killed in the midst of it."""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fusejournal.journal.base import load_base
from fusejournal.journal.segment import first_seq_of, list_segments
from fusejournal.replay.digest import digest_tree
from tests.support.forked import Forked, run
from tests.support.mirrors import CONFIG, Node, await_level, started, wait_for
from tests.support.trees import fids

pytestmark = pytest.mark.mount

_CONFIG = (
    CONFIG.replace("[journal]", "[journal]\nkeep_bytes = 0\ncheckpoint_interval_seconds = 0.05")
    + 'keep_bytes = "2MiB"\n'
)
_THOROUGH = bool(os.environ.get("FUSEJOURNAL_TEST_COPIES"))
_FILES = 20
_FILE_BYTES = 1 << 20
_KILLS = ("object.link:3:kill", "level.write:7:kill", "level.done.unlink:1:kill")


class Writer:
    """Changes this and that in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_over = threading.Event()
        self._chance = random.Random(7)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs it until the end of the block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _run(self) -> None:
        number = 0
        while not self._is_over.wait(0.01):
            number += 1
            try:
                self._change(number)
            except OSError:
                time.sleep(0.05)  # its layer was killed

    def _change(self, number: int) -> None:
        name = self._directory / f"w{number % 50}"
        name.write_bytes(self._chance.randbytes(1000))
        if number % 7 == 0:
            name.rename(self._directory / f"moved{number % 11}")
        if number % 5 == 0:
            with open(self._directory / f"large{number % _FILES}", "r+b") as file:
                file.seek(self._chance.randrange(_FILE_BYTES))
                file.write(b"changed")


def _run(node: Node, *options: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
    command = "rejoin", str(node.state), *options
    environment = {**node.environment, "FUSEJOURNAL_FAULT": fault}
    return run(command, environment, check=False, timeout=120, namespace=node.namespace)


def rejoin(node: Node, *options: str) -> dict[str, Any]:
    """Runs a rejoin to its end. Returns what it says."""
    done = _run(node, "--json", *options)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def killed(node: Node, fault: str) -> None:
    """Runs a rejoin that is killed at a call."""
    done = _run(node, fault=fault)
    assert done.returncode == -9, (fault, done)


def kill_while_it_serves(primary: Node, mirror: Node) -> None:
    """Kills the primary's layer once something of a copy has come."""
    packs = mirror.state / "versions" / "packs"
    said = mirror.base / "rejoin.said"
    process = Forked(
        ("rejoin", str(mirror.state)), mirror.environment, err=said, namespace=mirror.namespace
    )
    try:
        wait_for(lambda: packs.exists() and any(packs.iterdir()), lambda: "nothing came")
        primary.kill()
        status = process.wait(90)
    finally:
        process.send_signal(signal.SIGKILL)
    words = said.read_text()
    assert status == 26, words
    assert "Traceback" not in words


def prune(node: Node) -> None:
    """Has its journal begin with the newest segment that may be the first."""

    def has_gone() -> bool:
        node.run("prune", str(node.state), "--config", str(node.base / "config.toml"))
        return len(list_segments(node.state / "journal")) < 4

    wait_for(has_gone, lambda: node.run("prune", str(node.state), "--dry-run").stdout)


def check_level(primary: Node, mirror: Node) -> None:
    await_level(primary, mirror)
    wanted = digest_tree(primary.mountpoint).digest
    wait_for(lambda: digest_tree(mirror.mountpoint).digest == wanted, lambda: "digests differ")
    assert digest_tree(mirror.backing).digest == wanted
    assert fids(mirror.mountpoint) == fids(primary.mountpoint)


def _begin(primary: Node, mirror: Node, kept: Path) -> None:
    """Has the primary's journal begin later than with entry 1, and the mirror be new."""
    primary.run("version", "store", "init", str(primary.state), "--store", str(kept))
    for number in range(_FILES):
        (primary.mountpoint / f"large{number}").write_bytes(os.urandom(_FILE_BYTES))
    await_level(primary, mirror)
    prune(primary)
    assert load_base(primary.state) is not None
    mirror.stop()
    mirror.begin_anew()
    mirror.start()
    status = primary.await_peer(mirror, "needs full copy")
    assert "'fusejournal rejoin'" in status["advice"]
    mirror.stop()


def _be_away(primary: Node, mirror: Node) -> None:
    """The mirror is away until its primary's journal begins later than it ends."""
    root = primary.mountpoint
    mirror.stop()
    (root / "new").write_bytes(os.urandom(3 << 20))
    (root / "large1").unlink()
    (root / "large2").rename(root / "there")
    primary.await_peer(mirror, "needs full copy")
    prune(primary)
    with open(root / "large3", "r+b") as file:
        file.seek(500_000)
        file.write(b"a little")


def _take_over(primary: Node, mirror: Node, target: Path) -> None:
    """The mirror becomes the primary; its base stands for what was before."""
    primary.kill()
    mirror.run("promote", str(mirror.state), "--force")
    wait_for(lambda: mirror.ask()["role"] == "primary", mirror.words)
    (mirror.mountpoint / "after").write_text("the promotion")
    wanted, head_seq = digest_tree(mirror.mountpoint).digest, mirror.head_seq()
    to = ("--to-seq", str(head_seq), "--target", str(target))
    mirror.run("restore", str(mirror.state), *to)
    assert digest_tree(target).digest == wanted
    mirror.stop()


def test_a_new_mirror_and_one_that_was_away(tmp_path: Path) -> None:
    with started(tmp_path, None, config=_CONFIG) as (primary, mirror):
        _begin(primary, mirror, tmp_path / "kept")
        with Writer(primary.mountpoint).running():
            planned = rejoin(mirror, "--dry-run")
            assert (planned["rung"], planned["done"]) == (4, False)
            kill_while_it_serves(primary, mirror)
            primary.start()
            for fault in _KILLS if _THOROUGH else _KILLS[1:2]:
                killed(mirror, fault)
            done = rejoin(mirror)
            assert (done["rung"], done["done"]) == (4, True)
            mirror.start()
            primary.resume(mirror)
            wait_for(lambda: primary.peer(mirror)["state"] == "streaming", mirror.words)
        check_level(primary, mirror)
        base = load_base(mirror.state)
        assert base is not None
        assert first_seq_of(list_segments(mirror.state / "journal")[0]) == base.seq + 1
        if _THOROUGH:
            _be_away(primary, mirror)
            planned = rejoin(mirror, "--dry-run")
            assert (planned["rung"], planned["done"]) == (3, False)
            killed(mirror, "level.journal:1:kill")
            assert rejoin(mirror)["rung"] == 3
            mirror.start()
            check_level(primary, mirror)
        _take_over(primary, mirror, tmp_path / "restored")
