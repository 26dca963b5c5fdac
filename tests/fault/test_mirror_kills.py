"""Nodes and links die, are cut off or slow: when all are back, mirrors have what the primary has.

A random workload never stops but for the comparison. ``FUSEJOURNAL_TEST_KILLS`` says how many
random kills and cuts there are (100 take some minutes), ``FUSEJOURNAL_TEST_SEED`` which."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mirrors import Node, check_equal, started, wait_for
from tests.support.mischief import Mischief, Reading

pytestmark = pytest.mark.mount

KILLS = int(os.environ.get("FUSEJOURNAL_TEST_KILLS", "6"))
SEED = int(os.environ.get("FUSEJOURNAL_TEST_SEED", "1"))


def revive(*nodes: Node, fault: str = "") -> None:
    """Kill *nodes*, those that are not dead, and mount them anew."""
    for node in nodes:
        node.kill()
        node.detach()
        node.start(fault=fault, wait=False)
    for node in nodes:
        node.await_live()


# At which calls, and the how many'th of them. A node that is mounted anew dies at the next one.
MIRROR_CALLS = {
    "tree": "apply.create:2 apply.mkdir:1 apply.symlink:1 apply.link:1 apply.tag:3",
    "names": "apply.unlink:2 apply.rmdir:1 apply.rename:4 apply.exchange:1 apply.times.directory:9",
    "files": "apply.write:9 apply.truncate:1 apply.write.mode:1 apply.write.times:3 "
    "apply.setattr:1 apply.setattr.mode:1 apply.setattr.times:1 apply.setxattr:1 apply.times:3",
    "journal": "journal.append:3 journal.fallocate:1 journal.header:1 journal.create:1 "
    "journal.seal:1 journal.sync:4 journal.sync.directory:1",
    "catalog": "catalog.commit:2 catalog.sync:1 checkpoint.syncfs:1 watermarks.sync:1",
}
BIRTH_CALLS = (
    "watermarks.make.rename:1 watermarks.make.directory:1 boot.sync:1 boot.write:1 "
    "journal.create:1 journal.header:1 journal.fallocate:1 journal.append:1 "
    "journal.sync.directory:1 apply.*:1"
)
PRIMARY_CALLS = (
    "journal.append:30 apply.write:5 apply.rename:3 apply.times.directory:7 journal.header:2 "
    "journal.seal:1 journal.sync:5 catalog.commit:2 checkpoint.syncfs:1"
)
_OFTEN = """
[journal]
segment_bytes = "64KiB"
flush_interval_seconds = 0.05
checkpoint_interval_seconds = 0.1
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """A primary and its mirror, which have lived through the tests before."""
    with started(tmp_path_factory.mktemp("both"), None, config=_OFTEN) as (primary, mirror):
        yield primary, mirror


def await_death(victim: Node, call: str) -> None:
    """Wait until *victim* has died at *call*."""
    wait_for(lambda: not victim.is_alive(), lambda: (call, victim.words()))
    assert victim.wait() == -signal.SIGKILL, call


def kill_at(calls: str, victim: Node, primary: Node) -> None:
    """Stop *victim*; then let it die at each of *calls*, while a user works."""
    victim.stop()
    with Mischief(primary.mountpoint, len(calls), pause_seconds=0.002) as work:
        for call in calls.split():
            victim.detach()
            victim.start(fault=f"{call}:kill")
            await_death(victim, call)
        revive(victim)
        work.pause()


@pytest.mark.parametrize("calls", MIRROR_CALLS.values(), ids=MIRROR_CALLS.keys())
def test_mirror_killed_at_calls(both: tuple[Node, Node], calls: str) -> None:
    primary, mirror = both
    kill_at(calls, mirror, primary)
    check_equal(primary, mirror)


def test_primary_killed_at_calls(both: tuple[Node, Node]) -> None:
    primary, mirror = both
    kill_at(PRIMARY_CALLS, primary, primary)
    check_equal(primary, mirror)


def test_new_mirror_killed_at_calls(both: tuple[Node, Node]) -> None:
    primary, mirror = both
    mirror.stop()
    mirror.begin_anew()
    for call in BIRTH_CALLS.split():
        mirror.detach()
        mirror.start(fault=f"{call}:kill")
        primary.resume(mirror)  # which it would try later and later
        await_death(mirror, call)
    revive(mirror)
    check_equal(primary, mirror)


def test_random_kills(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    with started(tmp_path, None, None) as nodes:
        primary, *mirrors = nodes
        with (
            Mischief(primary.mountpoint, SEED, pause_seconds=0.002) as work,
            Reading(mirrors[0].mountpoint) as reading,
        ):
            for number in range(KILLS):
                time.sleep(dice.uniform(0, 0.4))
                victims = dice.sample(nodes, dice.choice((1, 1, 1, 2)))
                for victim in victims:
                    victim.kill()
                time.sleep(dice.choice((0.0, 0.0, 0.3)))
                revive(*victims)
                time.sleep(dice.uniform(0, 0.3))
                work.pause()
                reading.pause()
                print(f"kill {number}: {[victim.name for victim in victims]}", work.done)
                check_equal(*nodes)
                work.go_on()
                reading.go_on()
        for node in nodes:
            node.stop()


def test_random_cuts(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    with (
        started(tmp_path, None) as (primary, mirror),
        Mischief(primary.mountpoint, SEED, pause_seconds=0.002) as work,
    ):
        for _ in range(KILLS):
            time.sleep(dice.uniform(0, 0.2))
            mirror.host.cut()
            time.sleep(dice.uniform(0, 0.8))
            if dice.random() < 0.3:
                revive(mirror)
            mirror.host.mend()
            work.pause()
            check_equal(primary, mirror)
            work.go_on()
