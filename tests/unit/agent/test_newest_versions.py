"""The newest versions in the overview: what a store that hangs holds up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fusejournal.admin.versions import VolumeVersions
from fusejournal.agent.overview import Overview
from fusejournal.disk import mounts
from fusejournal.node.state_dir import load_state
from tests.support.nodes import make_volume
from tests.support.patience import PATIENCE_SECONDS, wait_until
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount


@contextmanager
def _hanging(directory: Path) -> Iterator[None]:
    """Has a mount over *directory* of a file system that never answers, as that of a server that
    is away."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mounts.mount(fd, directory, "hanging", frozenset())
        try:
            yield
        finally:
            os.close(fd)
            fd = -1
            mounts.unmount(directory, lazy=True)
    finally:
        if fd >= 0:
            os.close(fd)


def _make_volumes(root: Path, *names: str) -> None:
    """Volumes, each with a version in a store of its own."""
    for name in names:
        make_volume(root / name / "state", name)
        with open_volume(root / name, uuid=load_state(root / name / "state").uuid):
            pass
        kept = VolumeVersions(name)
        kept.kept.init(str(root / name / "store"), encrypt=False)
        kept.create("monday", lambda _, __: None)


def _look(told: Overview) -> dict[str, dict[str, Any]]:
    """Returns the volumes of an overview that is made anew, by name. It has to come."""
    found: list[dict[str, Any]] = []
    told._made = float("-inf")
    thread = Thread(target=lambda: found.extend(told.volumes()), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    return {one["name"]: one for one in found}


def test_a_store_that_hangs_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its volume is there with what the store told last; all others are as they were."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "root"))
    _make_volumes(tmp_path, "attic", "cellar")
    told = Overview()
    wait_until(lambda: all("name" in one["version"] for one in _look(told).values()))
    with _hanging(tmp_path / "attic" / "store"):
        monkeypatch.setattr("fusejournal.agent.newest_versions._PERIOD_SECONDS", 0.0)
        monkeypatch.setattr("fusejournal.agent.newest_versions._STORE_SECONDS", 0.1)
        wait_until(lambda: "error" in _look(told)["attic"]["version"])
        found = _look(told)
        version = found["attic"]["version"]
        assert (version["error"], version["name"]) == ("its store does not answer", "monday")
        assert version["seen_ns"] > version["made_ns"]
        assert "store" in {one["key"] for one in found["attic"]["problems"]}
        # One that never answered is no volume without versions; and its neighbour is there.
        anew = Overview()
        wait_until(lambda: _look(anew)["cellar"]["version"].get("name") == "monday")
        assert _look(anew)["attic"]["version"] == {"error": "its store does not answer"}
    monkeypatch.setattr("fusejournal.agent.newest_versions._STORE_SECONDS", PATIENCE_SECONDS)
    wait_until(lambda: "error" not in _look(told)["attic"]["version"])
    assert _look(told)["attic"]["version"]["name"] == "monday"
