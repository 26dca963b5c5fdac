"""What ``status`` says of mirrors, and of a volume that nobody has mounted."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fusejournal.cli import status as module
from fusejournal.cli.status import report, status
from fusejournal.node.state_dir import load_state
from tests.support.nodes import make_volume
from tests.support.volumes import open_volume

MIRROR: dict[str, Any] = {
    "primary": "vm-data",
    "address": "10.0.0.1:7710",
    "heard_seconds_ago": 1.0,
    "state": "catching up",
    "eta_seconds": 90.0,
    "received_seq": 20_000,
    "source_head_seq": 32_000,
    "applied_seq": 18_000,
    "lag_entries": 14_000,
    "lag_seconds": 61.5,
    "entries_per_second": 155.5,
    "bytes_per_second": 2 << 20,
    "trouble": None,
    "last_error": None,
}


def test_a_mirror_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "one", "one", "mirror")
    stopped = report(load_state(tmp_path / "one"))
    replication: dict[str, object] = {"listen": None, "mirrors": 0, "mirror": MIRROR, "peers": []}
    monkeypatch.setattr(module, "report", lambda _: stopped | {"replication": replication})
    shown = CliRunner().invoke(status, ["one"]).output
    assert "vm-data at 10.0.0.1:7710, heard 1 s ago: catching up, 1 min 30 s to go" in shown
    assert "received 20,000 of 32,000 entries, applied 18,000" in shown
    assert "behind by 14,000 entries, 61.5 s" in shown
    assert "156 entries/s, 2.0 MiB/s" in shown


@pytest.mark.mount
@pytest.mark.parametrize("orderly", [True, False])
def test_all_is_durable_after_an_orderly_stop(tmp_path: Path, orderly: bool) -> None:
    make_volume(tmp_path / "one" / "state", "one")
    state = load_state(tmp_path / "one" / "state")
    with open_volume(tmp_path / "one", uuid=state.uuid, orderly=orderly) as volume:
        volume.work(3)
    told = report(state)
    assert (told["durable_seq"] == told["head_seq"]) is orderly
    assert told["head_seq"] > 10


def test_a_copy_of_the_state_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "one", "one")
    assert report(load_state(tmp_path / "one"))["degraded"] == []
    shutil.copytree(tmp_path / "one", tmp_path / "backup-of-one")
    shown = CliRunner().invoke(status, []).output.splitlines()
    assert len(shown) == 2
    assert f"{tmp_path / 'backup-of-one'} has a copy of its state" in shown[1]
