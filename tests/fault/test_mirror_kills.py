"""Whatever dies, is cut off or is slow: when it is back, mirrors have what the primary has.

A random workload never stops but for the comparison. ``FUSEJOURNAL_TEST_KILLS`` says how many
random kills and cuts there are (100 take some minutes), ``FUSEJOURNAL_TEST_SEED`` which."""

import os
import random
import time
from pathlib import Path

import pytest

from tests.support.mirrors import Node, check_equal, started
from tests.support.mischief import Mischief, Reading

pytestmark = pytest.mark.mount

KILLS = int(os.environ.get("FUSEJOURNAL_TEST_KILLS", "8"))
SEED = int(os.environ.get("FUSEJOURNAL_TEST_SEED", "1"))


def revive(*nodes: Node, fault: str = "") -> None:
    """Kill *nodes*, those that are not dead, and mount them anew."""
    for node in nodes:
        node.kill()
        node.detach()
        node.start(fault=fault, wait=False)
    for node in nodes:
        node.await_live()


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
