"""Versions that a layer has made and pruned by the schedule of its configuration."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.keep_versions import VersionKeeping
from fusejournal.journal.base import load_base
from fusejournal.node.version_record import load_version_status
from tests.support.layer import Layer
from tests.support.mirrors import check_equal, nodes

pytestmark = pytest.mark.mount

_CONFIG = """
[journal]
segment_entries = 256
checkpoint_interval_seconds = 0.05
keep_bytes = 0
[versions]
every = "1s"
prune_every = "2s"
keep_last = 2
[log]
level = "error"
"""


def _await(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def _versions(layer: Layer) -> dict[str, Any]:
    found: dict[str, Any] = layer.ask()["versions"]
    return found


def _await_version(layer: Layer) -> int:
    """Waits for a version of the tree as it is. Returns its seq."""
    head_seq = layer.head_seq()
    _await(lambda: (_versions(layer)["last_seq"] or 0) >= head_seq)
    return head_seq


def _work(root: Path, name: str) -> None:
    (root / name).mkdir()
    for number in range(150):
        (root / name / f"f{number}").write_bytes(b"%d" % number)


def test_made_and_pruned_by_themselves_and_what_fails_is_said(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with Layer(tmp_path, config=_CONFIG) as layer:
        layer.start()
        (line,) = layer.ask()["degraded"]
        assert "there is no store of versions" in line
        layer.run("version", "store", "init", str(layer.state), "--store", str(kept))
        for name in ("one", "two"):
            _work(layer.mountpoint, name)
            _await_version(layer)
        _await(lambda: load_base(layer.state) is not None)
        found = _await(lambda: (told := _versions(layer))["pruned"] and told)
        assert found["reachable"]
        assert found["store"] == str(kept)
        assert found["failures"] == 0
        assert found["next_make"] > time.time() - 5
        listed = layer.run("version", "list", str(layer.state), "--json").stdout
        assert listed.count("\n") <= 4  # the newest two, the base, one made since
        words = layer.run("status", str(layer.state)).stdout
        assert f" in {kept}, reached since " in words
        assert " next made in " in words
        assert layer.ask()["degraded"] == []
        # A store that is away costs no more than delay.
        os.rename(kept, tmp_path / "away")
        _await(lambda: _versions(layer)["reachable"] is False)
        line = layer.ask()["degraded"][0]
        assert line.startswith("versions fail since ")
        assert str(kept) in line
        _work(layer.mountpoint, "four")
        assert _versions(layer)["failures"] > 0
        os.rename(tmp_path / "away", kept)
        head_seq = _await_version(layer)
        _await(lambda: layer.ask()["degraded"] == [])
        # What is known outlives the layer, and the process that was at work does not.
        layer.stop()
        known = load_version_status(layer.state)
        assert known is not None
        assert known.last_seq == head_seq
        assert f" in {kept}, reached since " in layer.run("status", str(layer.state)).stdout
        layer.run("restore", str(layer.state), "--to-version", known.last_key, "--target",
                  str(tmp_path / "out"))  # fmt: skip
        assert sorted(os.listdir(tmp_path / "out")) == ["four", "one", "two"]


def test_two_nodes_with_one_store_make_one_version_a_period(tmp_path: Path) -> None:
    config = '[versions]\nevery = "2s"\n'
    (tmp_path / "config.toml").write_text(config)
    with nodes(tmp_path, None) as (primary, mirror):
        for node in (primary, mirror):
            node.start()

        def make(node: Layer) -> tuple[int, float | None]:
            """The versions there are after *node* has done its part, and when it is next due."""
            outcome = VersionKeeping(node.state, tmp_path / "config.toml").do("make")
            assert outcome.done, outcome.status.error
            return outcome.status.count, outcome.again_in_seconds

        def change(name: str) -> None:
            (primary.mountpoint / name).write_bytes(b"x")
            check_equal(primary, mirror)

        change("a")
        for node in (primary, mirror):
            kept = str(tmp_path / "kept")
            node.run("version", "store", "init", str(node.state), "--store", kept)
        assert make(primary) == (1, None)
        change("b")
        count, again_in_seconds = make(mirror)
        assert count == 1
        assert again_in_seconds is not None
        assert 1 < again_in_seconds <= 2.5
        assert make(primary) == (2, None)
        change("c")
        assert make(mirror)[0] == 2
        # The primary does not come again: the mirror goes on, and then the primary leaves it to it.
        assert make(mirror) == (3, None)
        change("d")
        assert make(primary)[0] == 3
        assert make(mirror) == (4, None)
        for node in (mirror, primary):
            node.stop()
