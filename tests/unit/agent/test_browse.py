"""Answers about a volume's tree and its files' lives."""

from pathlib import Path
from unittest import mock

import pytest

from fusejournal.admin.source import open_source
from fusejournal.agent import browse
from fusejournal.agent.fields import Fields
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Rename
from fusejournal.types import ROOT_FID, Fid
from tests.support.nodes import make_volume
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


def test_the_lives_of_a_file_that_was_saved_very_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save is a file of its own: the last ones are told, and how many there were."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    fids: list[Fid] = []
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        for _ in range(6):
            fid, old = volume.volume.new_fid(), fids[-1] if fids else Fid(0)
            volume.volume.commit(Create(fid, ROOT_FID, b".new", 0o100644, 0, 0, 0, None), SOMEBODY)
            volume.volume.commit(Rename(fid, ROOT_FID, b".new", ROOT_FID, b"a", 0, old), SOMEBODY)
            fids.append(fid)
    source = open_source("data")
    with mock.patch.object(browse, "_LIVES_MAX", 8):
        found = browse.life(source, Fields({"path": "a"}))
    assert found["count"] == 6
    assert [one["fid"] for one in found["lives"]] == fids[-len(found["lives"]) :]
    assert 1 < len(found["lives"]) < 6
    with mock.patch.object(browse, "_LIVES_MAX", 1):
        assert len(browse.life(source, Fields({"path": "a"}))["lives"]) == 1
    assert len(browse.life(source, Fields({"path": "a"}))["lives"]) == 6
