"""Volumes of the release before are mounted by this one, and nothing is lost: they were kept as
text."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusejournal.backing.root_mark import filesystem_instance
from fusejournal.node.state_dir import load_state
from fusejournal.replay.digest import digest_tree
from tests.support.layer import Layer
from tests.support.losses import begin_another_boot
from tests.support.mirrors import Node, check_equal, nodes
from tests.support.trees import fids, rebuild
from tests.upgrade.releases import CONFIG, fids_of, kept, restore

pytestmark = pytest.mark.mount

_RELEASE = "0.1.0"


@pytest.fixture
def raw() -> Any:
    return kept(_RELEASE)


@pytest.fixture
def pair(tmp_path: Path, raw: Any) -> Iterator[tuple[Node, Node]]:
    """Both nodes as they were left, in new places."""
    with nodes(tmp_path, None, config=CONFIG) as (primary, mirror):
        for node, left in ((primary, raw["primary"]), (mirror, raw["mirror"])):
            restore(left, node)
            peers = node.state / "peers.json"
            text = peers.read_text()
            for other, before in ((primary, raw["primary"]), (mirror, raw["mirror"])):
                text = text.replace(f'"{before["address"]}:', f'"{other.host.address}:')
            peers.write_text(text)
        yield primary, mirror


def be_in_boot(node: Node, boot: str) -> None:
    """Have the record say that the volume was used last in *this* boot of the machine, on these
    disks, or in *another*."""
    if boot == "another":
        begin_another_boot(node.state)
        return
    record = node.state / "boot"
    said = json.loads(record.read_text())
    said["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    said["state"], said["backing"] = _instance(node.state), _instance(node.backing)
    record.write_text(json.dumps(said))


def _instance(place: Path) -> str:

    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return filesystem_instance(fd)
    finally:
        os.close(fd)


def check_tree(node: Layer, raw: Any, side: str) -> None:
    assert digest_tree(node.mountpoint).digest == raw["digest"]
    assert fids(node.mountpoint) == fids_of(raw[side])


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_primary(pair: tuple[Node, Node], raw: Any, boot: str, tmp_path: Path) -> None:
    primary, _ = pair
    be_in_boot(primary, boot)
    primary.start()
    check_tree(primary, raw, "primary")
    epochs = [one for one in primary.entries() if one["op"] == "epoch"]
    assert len(epochs) == (1 if boot == "this" else 2)
    (primary.mountpoint / "new").write_text("written by this version")
    digest = digest_tree(primary.mountpoint).digest
    primary.stop()
    (tmp_path / "rebuilt").mkdir()
    rebuild(primary.state, tmp_path / "rebuilt", load_state(primary.state).uuid)
    assert digest_tree(tmp_path / "rebuilt").digest == digest


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_mirror(pair: tuple[Node, Node], raw: Any, boot: str) -> None:
    _, mirror = pair
    be_in_boot(mirror, boot)
    mirror.start()
    check_tree(mirror, raw, "mirror")
    assert mirror.head_seq() == mirror.mirroring()["applied_seq"]
    mirror.stop()


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_pair(pair: tuple[Node, Node], raw: Any, boot: str) -> None:
    primary, mirror = pair
    for node in pair:
        be_in_boot(node, boot)
    mirror.start()
    primary.start()
    check_tree(primary, raw, "primary")
    (primary.mountpoint / "new").write_text("written by this version")
    check_equal(primary, mirror)
    for node in pair:
        node.stop()
