"""The status of volumes that are not mounted."""

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.admin.live import ask_layer
from fusejournal.admin.status import all_statuses, volume_status
from fusejournal.cli.status import status
from fusejournal.disk import mounts
from fusejournal.disk.mounts import FILESYSTEM_TYPE, MountInfo
from fusejournal.errors import NotRunningError
from fusejournal.node.lock import hold, note_wait
from fusejournal.node.state_dir import load_state
from tests.support.nodes import make_volume
from tests.support.volumes import open_volume


@pytest.mark.mount
@pytest.mark.parametrize("orderly", [True, False])
def test_all_is_durable_after_an_orderly_stop(tmp_path: Path, orderly: bool) -> None:
    make_volume(tmp_path / "one" / "state", "one")
    state = load_state(tmp_path / "one" / "state")
    with open_volume(tmp_path / "one", uuid=state.uuid, orderly=orderly) as volume:
        volume.work(3)
    told = volume_status(state)
    assert (told.durable_seq == told.head_seq) is orderly
    assert told.head_seq is not None
    assert told.head_seq > 10


def test_the_start_of_a_layer_is_told(tmp_path: Path) -> None:
    """And what it waits for, whatever is asked: it has no socket yet."""
    make_volume(tmp_path / "one", "one")
    state = load_state(tmp_path / "one")

    def refused() -> str:
        with pytest.raises(NotRunningError) as error:
            ask_layer(state, "peer-list")
        return str(error.value)

    with hold(state.directory, "one", state.mountpoint, lambda: None):
        assert volume_status(state).state == "starting"
        assert refused().startswith(f"volume one is not mounted: process {os.getpid()} has it")
        note_wait(state.directory, "east has not given its vote")
        found = volume_status(state)
        assert (found.state, found.pid) == ("starting", os.getpid())
        assert found.degraded == ("it is not mounted yet: east has not given its vote",)
        assert refused().endswith("its start waits: east has not given its vote")
    assert refused() == "volume one is not mounted: fusejournal mount one"


def test_a_copy_of_the_state_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "one", "one")
    assert volume_status(load_state(tmp_path / "one")).degraded == ()
    shutil.copytree(tmp_path / "one", tmp_path / "backup-of-one")
    shown = CliRunner().invoke(status, []).output.splitlines()
    assert len(shown) == 2
    assert f"{tmp_path / 'backup-of-one'} has a copy of its state" in shown[1]
    (one,) = all_statuses()
    assert (one.name, one.state, one.role) == ("one", "stopped", "primary")
    assert str(tmp_path / "backup-of-one") in one.degraded[0]


def test_a_dead_mount_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_volume(tmp_path / "one", "one")
    state = load_state(tmp_path / "one")

    def mounted(source: str) -> list[MountInfo]:
        return [MountInfo("0:99", "/", state.mountpoint, FILESYSTEM_TYPE, source)]

    monkeypatch.setattr(mounts, "mounts", lambda: mounted("fusejournal:another"))
    assert volume_status(state).degraded == ()
    monkeypatch.setattr(mounts, "mounts", lambda: mounted("fusejournal:one"))
    found = volume_status(state)
    assert found.state == "stopped"
    (told,) = found.degraded
    assert "its mount is dead" in told
    assert "'fusejournal mount one'" in told
    assert "'fusejournal umount one'" in told


def test_nothing_is_known_of_a_journal_that_is_not_there(tmp_path: Path) -> None:
    make_volume(tmp_path / "one", "one")
    found = volume_status(load_state(tmp_path / "one"))
    assert (found.head_seq, found.epoch, found.journal_bytes, found.pid) == (None, None, 0, None)
    assert found.replication is None
    assert "flushes" not in found.to_json()
