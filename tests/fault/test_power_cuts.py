"""The system crashes at any moment: what was on its disk is there, and what the journal has is
made of it.

The disk is a real file system with its own journal and its own time; a cut leaves of the layer's
files what had been written back by then. ``FUSEJOURNAL_TEST_CUTS`` says how many cuts there are,
``FUSEJOURNAL_TEST_SEED`` which."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from fusejournal.journal.reader import JournalReader
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import load_state
from fusejournal.operations import NewEpoch
from fusejournal.types import Epoch, Reign, Seq
from tests.support.layer import Layer
from tests.support.mirrors import Node, check_equal
from tests.support.mischief import Mischief
from tests.support.network import network
from tests.support.power import crash_system, power_disk
from tests.support.trees import difference, image, rebuild

pytestmark = pytest.mark.mount

CUTS = int(os.environ.get("FUSEJOURNAL_TEST_CUTS", "2"))
SEED = int(os.environ.get("FUSEJOURNAL_TEST_SEED", "1"))
_CONFIG = """
[journal]
segment_bytes = "256KiB"
flush_interval_seconds = 0.2
checkpoint_interval_seconds = 1.0
[replication]
take_back_seconds = 10.0
"""


def epoch_seq(layer: Layer) -> int:
    """The seq at which the last epoch begins."""
    reader = JournalReader(layer.state / "journal")
    return max(
        entry.seq
        for entry in reader.read(Seq(1), Seq(1 << 40))
        if isinstance(entry.operation, NewEpoch)
    )


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_power_cuts(tmp_path: Path, kind: str) -> None:
    """All that was durable is in the journal, and the tree is what the journal says."""
    dice = random.Random(SEED)
    replayed = tmp_path / "replayed"
    with power_disk(tmp_path, kind) as disk, Layer(disk.mountpoint, config=_CONFIG) as layer:
        disk.sync()
        layer.start()
        uuid = load_state(layer.state).uuid
        with Mischief(layer.mountpoint, SEED, pause_seconds=0.001) as work:
            for number in range(CUTS):
                time.sleep(dice.uniform(0.2, 2.5))
                durable_seq = layer.ask()["durable_seq"]
                crash_system(layer, disk)
                layer.start()
                assert epoch_seq(layer) > durable_seq
                time.sleep(dice.uniform(0, 0.2))
                work.pause()
                print(f"cut {number}:", layer.ask()["repairs"], layer.ask()["degraded"])
                replayed.mkdir()
                rebuild(layer.state, replayed, uuid)
                assert not (found := difference(image(layer.mountpoint), image(replayed))), found
                assert not (found := difference(image(layer.backing), image(replayed))), found
                shutil.rmtree(replayed)
                work.go_on()
        layer.stop()


@pytest.mark.parametrize("victim", ["primary", "mirror"])
def test_power_cuts_with_a_mirror(tmp_path: Path, victim: str) -> None:
    """A primary takes back what it lost; a mirror goes on where its disk is; and both are level."""
    dice = random.Random(SEED)
    with power_disk(tmp_path) as disk, network() as net:
        places = {
            name: (disk.mountpoint if name == victim else tmp_path) / name
            for name in ("primary", "mirror")
        }
        with (
            Node(places["primary"], net.host(), "primary", _CONFIG) as primary,
            Node(places["mirror"], net.host(), "mirror", _CONFIG) as mirror,
        ):
            primary.ships_to(mirror)
            disk.sync()
            primary.start()
            mirror.start()
            lost = primary if victim == "primary" else mirror
            with Mischief(primary.mountpoint, SEED, pause_seconds=0.002) as work:
                for number in range(CUTS):
                    time.sleep(dice.uniform(0.2, 2.0))
                    crash_system(lost, disk)
                    lost.start()
                    time.sleep(dice.uniform(0, 0.2))
                    work.pause()
                    print(f"cut {number}:", lost.ask()["repairs"], lost.ask()["degraded"])
                    primary.resume(mirror)
                    check_equal(primary, mirror)
                    assert not (mirror.state / "parted.json").exists()
                    work.go_on()
            primary.stop()
            mirror.stop()


def test_mirror_is_lost_before_its_primary_has_spoken(tmp_path: Path) -> None:
    """It has no record of its boot yet, and begins as if it had never run."""
    with (
        power_disk(tmp_path) as disk,
        network() as net,
        Node(tmp_path / "primary", net.host(), "primary", _CONFIG) as primary,
        Node(disk.mountpoint / "mirror", net.host(), "mirror", _CONFIG) as mirror,
    ):
        primary.ships_to(mirror)
        disk.sync()
        mirror.start()
        crash_system(mirror, disk)
        mirror.start()
        primary.start()
        (primary.mountpoint / "file").write_text("all that there is")
        check_equal(primary, mirror)
        primary.stop()
        mirror.stop()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_new_page_of_watermarks_is_on_the_disk_with_its_name(tmp_path: Path, kind: str) -> None:
    """A fence that a system crash forgets would be none."""
    fence = Reign(Epoch(7), 5)
    with power_disk(tmp_path, kind) as disk:
        path = disk.mountpoint / "watermarks"
        page = WatermarkPage(path)
        page.write_fence(fence)
        page.sync()
        disk.cut()
        page.close()
        disk.come_back()
        page = WatermarkPage(path)
        found = page.fence
        page.close()
        assert found == fence
