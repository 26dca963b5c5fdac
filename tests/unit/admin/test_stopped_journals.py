"""The journal of a stopped volume is read once, and again where it has changed."""

import os
from pathlib import Path

import pytest

from fusejournal.admin import stopped_journals
from fusejournal.admin.stopped_journals import StoppedJournal, StoppedJournals
from fusejournal.node.state_dir import VolumeState, load_state
from fusejournal.operations import Create
from fusejournal.types import ROOT_FID, SYSTEM_CALLER, Fid
from tests.support.nodes import make_volume
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount


def _change(tmp_path: Path, name: bytes) -> None:
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        fid = volume.volume.new_fid()
        create = Create(Fid(fid), ROOT_FID, name, 0o100644, 0, 0, 0, None)
        volume.volume.commit(create, SYSTEM_CALLER)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The readings of journals, as they come."""
    found: list[object] = []
    read = stopped_journals._read

    def read_noted(state: VolumeState) -> StoppedJournal:
        found.append(read(state))
        return found[-1]  # type: ignore[return-value]

    monkeypatch.setattr(stopped_journals, "_read", read_noted)
    return found


def test_it_is_read_once_while_nothing_changes(
    tmp_path: Path, opened: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_volume(tmp_path / "state", "data")
    _change(tmp_path, b"one")
    state, kept = load_state(tmp_path / "state"), StoppedJournals()
    kept.read(state)
    kept.read(state)
    assert len(opened) == 2  # a file that changed just now may change again at the same time
    # Time goes on (an inode's time of change cannot be set).
    monkeypatch.setattr(stopped_journals, "_QUIET_NS", -1)
    first = kept.read(state)
    assert kept.read(state) is first
    assert len(opened) == 3
    assert first.head_seq > 0


def test_what_changes_is_seen(
    tmp_path: Path, opened: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopped_journals, "_QUIET_NS", -1)
    make_volume(tmp_path / "state", "data")
    _change(tmp_path, b"one")
    state, kept = load_state(tmp_path / "state"), StoppedJournals()
    first = kept.read(state)
    assert first.is_clean
    _change(tmp_path, b"two")
    second = kept.read(state)
    assert second.head_seq > first.head_seq
    # Its content alone, at the same length and time.
    newest = max(state.journal_dir.glob("*.fj"))
    about, content = newest.stat(), bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    os.utime(newest, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert kept.read(state).damage is not None
    assert len(opened) == 3
