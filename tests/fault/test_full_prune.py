"""Pruning where the disk of the state directory is full to the last block: what is to be made room
for is read and pruned all the same."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from fusejournal.journal.base import load_base
from fusejournal.replay.digest import digest_tree
from tests.support.filesystems import filesystem, fill
from tests.support.layer import Layer
from tests.support.patience import wait_until

pytestmark = pytest.mark.mount

_CONFIG = """
[journal]
segment_bytes = "1MiB"
checkpoint_interval_seconds = 0.05
keep_bytes = "2MiB"
[log]
level = "error"
"""


def _write_until_full(root: Path) -> None:
    with pytest.raises(OSError, match="No space"):  # noqa: PT012 -- one of many
        for number in range(1000):
            (root / f"f{number}").write_bytes(os.urandom(300_000))


def _is_written(path: Path, content: bytes) -> bool:
    try:
        path.write_bytes(content)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise
    return True


@pytest.mark.parametrize(("kind", "live"), [("ext4", True), ("tmpfs", False)])
def test_a_full_disk_is_pruned(tmp_path: Path, kind: str, live: bool) -> None:
    with filesystem(kind, tmp_path, "disk", 64) as disk, Layer(tmp_path, config=_CONFIG) as layer:
        layer.state = disk / "state"
        layer.start()
        state, kept = str(layer.state), str(tmp_path / "kept")
        layer.run("version", "store", "init", state, "--store", kept)
        assert not layer.ask()["disk_low"]
        _write_until_full(layer.mountpoint)
        fill(disk / "filler")
        wanted = digest_tree(layer.mountpoint).digest
        status = layer.ask()
        assert status["disk_low"]
        assert any(f"are left under {layer.state}" in line for line in status["degraded"])
        if not live:
            layer.kill()  # an orderly stop needs room
            layer.detach()
            fill(disk / "more")
        config = ("--config", str(tmp_path / "config.toml"), "--json")
        deadline = time.monotonic() + 30  # for the checkpoint
        while True:
            told = json.loads(layer.run("prune", state, "--dry-run", *config).stdout)
            if told["journal"]["segments"] > 10:
                break
            assert time.monotonic() < deadline, told
        # (Without a block that was kept for it the base could not be written down.)
        told = json.loads(layer.run("prune", state, *config).stdout)
        base = load_base(layer.state)
        assert base is not None
        assert base.seq == told["journal"]["up_to_seq"]
        if not live:
            layer.start()
        assert digest_tree(layer.mountpoint).digest == wanted
        assert not layer.ask()["disk_low"]
        # The journal's file system frees what was pruned at its next commit.
        wait_until(lambda: _is_written(layer.mountpoint / "f0", b"there is room again"))
        # And once more: the next base finds its block, too.
        _write_until_full(layer.mountpoint)
        fill(disk / "filler2")
        layer.run("prune", state, *config)
        found = load_base(layer.state)
        assert found is not None
        assert found.seq > base.seq
        layer.run("restore", state, "--to-seq", str(found.seq), "--target", str(tmp_path / "out"))
        for name in ("filler", "filler2", "more"):
            (disk / name).unlink(missing_ok=True)
        layer.stop()
