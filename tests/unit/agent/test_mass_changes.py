"""Mass changes: many files of one user in a short time, and what is none."""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.admin.source import open_source
from fusejournal.agent import mass_changes
from fusejournal.agent.mass_changes import MassChanges
from fusejournal.agent.problems import Problem
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Rename, Unlink, Write
from fusejournal.types import ROOT_FID, Caller, Fid
from tests.support.nodes import make_volume
from tests.support.volumes import OpenVolume, open_volume

pytestmark = pytest.mark.mount
_FILES = 60
_OTHER = Caller(1001, 1001, 55)


class _Story:
    """A volume with files, and a watch of it."""

    def __init__(self, root: Path, volume: OpenVolume) -> None:
        self._root = root
        self.volume = volume
        self.changes = MassChanges(50)
        self.files = [self.make(b"old%d" % number) for number in range(_FILES)]

    def make(self, name: bytes) -> Fid:
        """Makes a file by the other user."""
        fid = self.volume.volume.new_fid()
        self.volume.volume.commit(Create(fid, ROOT_FID, name, 0o100644, 0, 0, 0, None), _OTHER)
        self.write(fid)
        return fid

    def write(self, fid: Fid) -> None:
        """Writes to it."""
        self.volume.volume.commit(Write(fid, 0, None), _OTHER, b"x")

    def look(self) -> list[Problem]:
        """Looks once."""
        return self.changes.look(open_source("data"))


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Story]:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        yield _Story(tmp_path, volume)


def test_many_files_rewritten_renamed_and_removed(story: _Story) -> None:
    assert story.look() == []  # what was before it looked is not looked at
    for fid in story.files[:48]:
        story.write(fid)
        story.write(fid)
    assert story.look() == []
    for fid in story.files[48:]:
        story.write(fid)
    (problem,) = story.look()
    assert (problem.key, problem.is_bad) == ("mass:1001:rewrote", True)
    assert re.search("user .+ rewrote (59|60) files and more within 5 min", problem.words)
    assert problem.entries is not None
    assert problem.entries[:2] == (1001, "write,truncate")
    assert problem.advice == f"fusejournal log data --uid 1001 --since {problem.entries.since}"
    assert problem.to_json()["entries"] == problem.entries._asdict()
    assert story.look() == [problem]  # it is told for a while
    for number, fid in enumerate(story.files):
        moved = Rename(fid, ROOT_FID, b"old%d" % number, ROOT_FID, b"new%d" % number, 0, Fid(0))
        story.volume.volume.commit(moved, _OTHER)
    for number, fid in enumerate(story.files):
        story.volume.volume.commit(Unlink(fid, ROOT_FID, b"new%d" % number), _OTHER)
    keys = [one.key for one in story.look()]
    assert keys == ["mass:1001:rewrote", "mass:1001:renamed", "mass:1001:removed"]


def test_new_files_are_none(story: _Story) -> None:
    """An archive is unpacked, and thrown away again."""
    story.look()
    made = [story.make(b"more%d" % number) for number in range(_FILES)]
    for fid in made:
        story.write(fid)
    assert story.look() == []
    for number, fid in enumerate(made):
        story.write(fid)
        story.volume.volume.commit(Unlink(fid, ROOT_FID, b"more%d" % number), _OTHER)
    assert story.look() == []


def test_under_load_pieces_are_read(story: _Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mass_changes, "_ENTRIES_MAX", 200)
    monkeypatch.setattr(mass_changes, "_PIECE", 20)
    random.seed(7)
    story.look()
    for _ in range(20):
        for fid in story.files:
            story.write(fid)
    (problem,) = story.look()
    assert problem.key == "mass:1001:rewrote"
    assert MassChanges(0).look(open_source("data")) == []


def test_two_nodes_of_one_volume(story: _Story, tmp_path: Path) -> None:
    """Such as a primary and its mirror on one machine, each with its own journal."""
    story.look()
    for fid in story.files[:30]:
        story.write(fid)
    assert story.look() == []
    copy = tmp_path / "elsewhere" / "mirror"
    shutil.copytree(tmp_path / "state", copy)
    for fid in story.files[30:45]:
        story.write(fid)
    assert story.look() == story.changes.look(open_source(str(copy))) == []
    for fid in story.files[45:]:
        story.write(fid)
    assert [one.key for one in story.look()] == ["mass:1001:rewrote"]
    assert story.changes.look(open_source(str(copy))) == []
