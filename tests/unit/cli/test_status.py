"""Words in which ``status`` shows a mirror and its peers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusejournal.address import Address
from fusejournal.admin.peers import add_peer
from fusejournal.admin.status import volume_status
from fusejournal.cli import status as module
from fusejournal.cli.status import status
from fusejournal.node.state_dir import load_state
from fusejournal.replication.states import MirrorState
from tests.golden.statuses import MIRROR, PEER, PRIMARY, REPLICATION
from tests.support.nodes import make_volume


def test_a_stopped_volume_has_its_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "one", "one")
    add_peer(load_state(tmp_path / "one"), "east", Address("10.0.0.2", 7710))
    shown = CliRunner().invoke(status, ["one"])
    assert shown.exit_code == 0
    assert "peer east   10.0.0.2:7710, not paired\n" in shown.output


def test_the_state_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "one", "one")
    shown = CliRunner().invoke(status, ["one"])
    assert f"state files {tmp_path / 'one'}\n" in shown.output
    told = json.loads(CliRunner().invoke(status, ["one", "--json"]).output)
    assert told["state_directory"] == str(tmp_path / "one")


def test_a_mirror_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "one", "one", "mirror")
    stopped = volume_status(load_state(tmp_path / "one"))
    replication = replace(REPLICATION, mirror=MIRROR, peers=(PEER,))
    running = replace(stopped, replication=replication, limits=PRIMARY.limits)
    monkeypatch.setattr(module, "volume_status", lambda _: running)
    shown = CliRunner().invoke(status, ["one"]).output
    assert "vm-data at 10.0.0.1:7710, heard 1 s ago: catching up, 1 min 30 s to go" in shown
    assert "behind by 14,000 entries of" not in shown
    silent = replace(MIRROR, address=None, heard_seconds_ago=720.0, state=MirrorState.WAITING)
    running = replace(running, replication=replace(REPLICATION, mirror=silent))
    again = CliRunner().invoke(status, ["one"]).output
    assert "vm-data, heard 12 min 0 s ago: waiting for a primary" in again
    assert "behind by 14,000 entries of those that it has told of, 61.5 s" in again
    assert "received 20,000 of 32,000 entries, applied 18,000" in shown
    assert "behind by 14,000 entries, 61.5 s" in shown
    assert "156 entries/s, 2.0 MiB/s" in shown
    assert "peer east   10.0.0.2:7710: connecting, tries again in 1.5 s" in shown
    assert "last error: 10.0.0.2:7710: it ended" in shown
    assert "what to do: is it mounted?" in shown
    assert "note: its backing's file system holds less than the one here" in shown
    assert (
        "holds       files up to 8 EiB, an extended attribute up to 65,536 bytes, "
        "all of one file's up to an unknown number, symlinks up to 1,023 bytes, "
        "names up to 255 bytes, links to a file up to 2,147,483,647"
    ) in shown
