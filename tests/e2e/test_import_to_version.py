"""A first mount whose content goes to a store of versions, in parts: the state's disk has a part of
it at a time, whatever is killed the same command goes on, and the volume is one like any other."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.journal.base import load_base
from fusejournal.journal.segment import list_segments
from fusejournal.replay.digest import digest_tree
from tests.support.forked import run
from tests.support.layer import Layer
from tests.support.losses import crash_system

pytestmark = pytest.mark.mount

_CONFIG = "[journal]\nsegment_entries = 256\n"
_ALL = bool(os.environ.get("FUSEJOURNAL_TEST_ALL_PRUNE_CALLS"))


_FAULTS = [
    "*:250:kill",  # amid the import
    "object.link:3:kill",
    "object.sync:5:EIO",
    "journal.drop.unlink:2:kill",
    "journal.base.rename:1:kill",
    "journal.base.directory:2:kill",
    "*:60:kill",  # of the command, or of the layer's start
]


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    """A volume that was never mounted, over a directory of some 4 MB."""
    with Layer(tmp_path, config=_CONFIG) as layer:
        for number in range(400):
            path = layer.backing / f"d{number // 50}" / f"f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(10_000))
        os.link(layer.backing / "d1/f51", layer.backing / "linked")
        os.symlink("d1", layer.backing / "symlink")
        with open(layer.backing / "sparse", "wb") as file:
            file.truncate(1 << 20)
            os.pwrite(file.fileno(), b"x" * 5000, 300_000)
        os.setxattr(layer.backing / "d2", "user.k", b"v")
        yield layer


def _mount(layer: Layer, *arguments: str, fault: str = "") -> int:
    """Mounts as a user does; with *fault* the command and its layer are killed there. Returns the
    exit code."""
    environment = {**layer.environment, **({"FUSEJOURNAL_FAULT": fault} if fault else {})}
    places = ("--name", "imported", "--state", str(layer.state))
    config = ("--config", str(layer.base / "config.toml"))
    command = ["mount", *places, *config, *arguments, str(layer.backing), str(layer.mountpoint)]
    done = run(command, environment, check=False, timeout=120)
    print(done.stderr)
    return done.returncode


def _import(layer: Layer, *, fault: str = "") -> int:
    store = ("--import-to", str(layer.base / "kept"), "--import-part", "1536KiB")
    return _mount(layer, *store, fault=fault)


def _unmount(layer: Layer) -> None:
    layer.run("umount", str(layer.state))


def test_the_content_is_in_versions_only(layer: Layer, tmp_path: Path) -> None:
    wanted = digest_tree(layer.backing).digest
    assert _import(layer) == 0
    assert digest_tree(layer.mountpoint).digest == wanted
    base = load_base(layer.state)
    assert base is not None
    left = len(list_segments(layer.state / "journal"))
    assert left <= 3
    (layer.mountpoint / "d1/f51").write_bytes(b"changed")
    head_seq = layer.head_seq()
    layer.run("undo", str(layer.state), f"{head_seq - 1}-{head_seq}", "--apply")
    assert digest_tree(layer.mountpoint).digest == wanted
    head_seq = layer.head_seq()
    _unmount(layer)
    # The machine, its catalog and a file are lost.
    crash_system(layer.state, head_seq)
    shutil.rmtree(layer.state / "catalog")
    (layer.backing / "d0/f7").unlink()
    assert _mount(layer) == 0
    assert digest_tree(layer.mountpoint).digest == wanted
    target = tmp_path / "restored"
    layer.run(*("restore", str(layer.state), "--to-seq", str(head_seq)), *("--target", str(target)))
    assert digest_tree(target).digest == wanted
    _unmount(layer)


@pytest.mark.parametrize("fault", _FAULTS if _ALL else _FAULTS[3:4])
def test_whatever_is_killed_goes_on(layer: Layer, fault: str) -> None:
    wanted = digest_tree(layer.backing).digest
    assert _import(layer, fault=fault) != 0
    assert not os.path.ismount(layer.mountpoint)
    assert _import(layer) == 0
    assert digest_tree(layer.mountpoint).digest == wanted
    assert load_base(layer.state) is not None
    _unmount(layer)


def test_a_plain_mount_goes_on_with_it(layer: Layer) -> None:
    wanted = digest_tree(layer.backing).digest
    assert _import(layer, fault="journal.base.directory:1:kill") != 0
    assert _mount(layer) == 0
    assert digest_tree(layer.mountpoint).digest == wanted
    _unmount(layer)


def test_a_store_that_cannot_be_is_refused(layer: Layer) -> None:
    below = layer.backing / "kept"
    assert _mount(layer, "--import-to", str(below), "--import-part", "1MiB") != 0
    assert not below.exists()
    assert _mount(layer, "-f", "--import-to", str(layer.base / "kept")) == 2
    assert _mount(layer, "--role", "mirror", "--import-to", str(layer.base / "kept")) == 2
