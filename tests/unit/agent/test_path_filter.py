"""The timeline's filter by path finds what a reading of all finds, whatever was moved."""

import random
from pathlib import Path
from typing import Any

import pytest

from fusejournal.admin.source import JournalSource, open_source
from fusejournal.agent import timeline
from fusejournal.agent.fields import Fields
from fusejournal.agent.timeline import Scans
from fusejournal.history.json_values import exact
from fusejournal.history.query import Criteria, find, walk
from fusejournal.journal.index import index_path
from fusejournal.journal.index_making import write_index
from fusejournal.node.state_dir import load_state
from fusejournal.operations import Create, Link, Mkdir, Rename, Unlink, Write
from fusejournal.types import ROOT_FID, Caller, Fid
from tests.support.indexes import as_version_1
from tests.support.nodes import make_volume
from tests.support.volumes import OpenVolume, open_volume

pytestmark = pytest.mark.mount
_WHO = Caller(1000, 1000, 7)
_USERS = [_WHO, Caller(0, 0, 8), *[_WHO] * 6, Caller(1001, 1000, 9)]
_NAMES = [b"a", b"b", b"c", b"d"]
_PATTERNS = ["*a", "a/**", "?", "[ab]*c", "nosuch*", "**/b", "d/*", "*nosuch/a"]


class _Tree:
    """A random tree that grows, moves and shrinks."""

    def __init__(self, volume: OpenVolume, seed: int) -> None:
        self._volume = volume.volume
        self._random = random.Random(seed)
        self._names: dict[tuple[Fid, bytes], Fid] = {}
        self._directories = [ROOT_FID]
        self._above: dict[Fid, Fid] = {}
        for _ in range(700):
            self._step()

    def _step(self) -> None:
        pick = self._random.choice
        parent, name = pick(self._directories), pick(_NAMES)
        there = self._names.get((parent, name))
        kind = self._random.random()
        if there is None and kind < 0.3:
            fid = self._volume.new_fid()
            self._commit(Mkdir(fid, parent, name, 0o40755, 0, 0, None, None))
            self._directories.append(fid)
            self._above[fid] = parent
            self._names[parent, name] = fid
        elif there is None and kind < 0.9:
            fid = self._volume.new_fid()
            self._commit(Create(fid, parent, name, 0o100644, 0, 0, 0, None))
            self._names[parent, name] = fid
        elif there is not None and there not in self._directories:
            if kind < 0.5:
                self._volume.commit(Write(there, 0, None), pick(_USERS), b"x")
            elif kind < 0.7:
                self._commit(Unlink(there, parent, name))
                del self._names[parent, name]
            else:
                self._move(parent, name, there)
        elif there is not None and kind < 0.4:
            self._move(parent, name, there)

    def _move(self, parent: Fid, name: bytes, fid: Fid) -> None:
        place = self._random.choice(self._directories), self._random.choice(_NAMES)
        above: Fid | None = place[0]
        while above is not None and above != fid:
            above = self._above.get(above)
        if place in self._names or above == fid:
            return
        if fid not in self._directories and self._random.random() < 0.3:
            self._commit(Link(fid, *place))
            self._names[place] = fid
            return
        self._commit(Rename(fid, parent, name, *place, 0, Fid(0)))
        del self._names[parent, name]
        self._names[place] = fid
        if fid in self._above:
            self._above[fid] = place[0]

    def _commit(self, operation: object) -> None:
        who = self._random.choice(_USERS)
        self._volume.commit(operation, who)  # type: ignore[arg-type]


@pytest.fixture(params=range(3))
def source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> JournalSource:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        _Tree(volume, request.param)
    found = open_source("data")
    # Indexes that are made when they are asked for, those that the layer made, and older ones.
    for segment in found.reader.segments()[:-1] if request.param else ():
        write_index(segment)
        if request.param == 2:
            index_path(segment).write_bytes(as_version_1(index_path(segment).read_bytes()))
    return found


def _shown(source: JournalSource, path: str | None, scans: Scans, **fields: Any) -> list[int]:
    found: list[int] = []
    before = None
    for _ in range(100_000):
        page = timeline.entries(
            source, Fields({"path": path or "", "count": 50, "before_seq": before, **fields}), scans
        )
        found += [one["seq"] for one in page["entries"]]
        before = page["next_before_seq"]
        if before is None:
            return found
    raise AssertionError("it does not come to an end")


def _read(source: JournalSource, criteria: Criteria) -> list[int]:
    """Returns the entries that are meant, the newest first, by a reading of all."""
    return [int(match.entry.seq) for match, is_meant in walk(source.lookup, criteria) if is_meant][
        ::-1
    ]


def _paths(source: JournalSource) -> list[str]:
    return sorted(
        {
            exact(path)
            for match in find(source.lookup, source.criteria())
            for path in (match.path, match.new_path)
            if path
        }
    )


def test_it_finds_what_a_reading_finds(source: JournalSource) -> None:
    paths = _paths(source)
    assert len(paths) > 50
    by_index: list[bool] = []
    by_pattern: list[bool] = []
    for path in [*random.Random(1).sample(paths, 40), "a", *_PATTERNS]:
        found = _read(source, source.criteria(paths=[path]))
        scans = Scans()
        assert _shown(source, path, scans) == found, path
        if path not in _PATTERNS:
            by_index += [one is not None for one in scans._candidates.values()]
        elif "/" not in path and path != "?":
            by_pattern += [one is not None for one in scans._candidates.values()]
    assert all(by_pattern)
    assert len(by_pattern) > 4
    # Also where much is moved, some segments are read by their index.
    assert sum(by_index) > 10


def test_user_kind_and_path_are_looked_for_together(source: JournalSource) -> None:
    dice = random.Random(2)
    paths = [None, *dice.sample(_paths(source), 4), *dice.sample(_PATTERNS, 2)]
    seen, empty, scans = 0, 0, Scans()
    for path in paths:
        for uid in (None, 0, 7):
            for ops in ([], ["write"], ["rename", "unlink"]):
                criteria = source.criteria(paths=[path] if path else [], uid=uid, ops=ops)
                wanted = _read(source, criteria)
                found = find(source.lookup, criteria, newest_first=True)
                assert [match.entry.seq for match in found] == wanted, (path, uid, ops)
                assert _shown(source, path, scans, uid=uid, op=ops) == wanted, (path, uid, ops)
                seen, empty = seen + bool(wanted), empty + (not wanted)
    assert seen > 20
    assert empty > 20


def test_several_paths_are_looked_for_together(source: JournalSource) -> None:
    paths = random.Random(3).sample(_paths(source), 4)
    criteria = source.criteria(paths=paths, ops=["write"])
    found = [match.entry.seq for match in find(source.lookup, criteria)]
    assert found == _read(source, criteria)[::-1]
    assert found


def test_segments_without_such_an_entry_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment has the path, and the user, but in no one entry both."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        for name in (b"one", b"other"):
            fid = volume.volume.new_fid()
            volume.volume.commit(Create(fid, ROOT_FID, name, 0o100644, 0, 0, 0, None), _WHO)
        for number in range(300):
            volume.volume.commit(Write(Fid(fid - 1), number, None), _USERS[0], b"x")
            volume.volume.commit(Write(fid, number, None), _USERS[1], b"x")
    source = open_source("data")
    assert len(source.reader.segments()) > 2
    assert source.lookup.tenures(b"one")
    monkeypatch.setattr(source.reader, "pick", None)
    assert _shown(source, "one", Scans(), uid=0) == []
    monkeypatch.setattr(source.reader, "read", None)
    assert list(find(source.lookup, source.criteria(paths=["one"], uid=0))) == []


def test_a_reading_goes_on_with_the_next_page(
    source: JournalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _shown(source, "**/a", Scans())
    assert whole
    monkeypatch.setattr(timeline, "_SECONDS", 0.0)
    monkeypatch.setattr(timeline, "_PIECE", 64)
    scans = Scans()
    first = timeline.entries(source, Fields({"path": "**/a"}), scans)
    assert (first["entries"], first["next_before_seq"]) == ([], source.head_seq + 1)
    assert _shown(source, "**/a", scans) == whole
    # Each page reads a piece at least, however late it is.
    pages, before, scans = 0, None, Scans()
    while pages == 0 or before is not None:
        page = timeline.entries(source, Fields({"path": "**/a", "before_seq": before}), scans)
        before = page["next_before_seq"]
        pages += 1
        assert pages <= source.head_seq // 64 + 3 * len(source.reader.segments())


def test_a_file_that_editors_save_is_found_by_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each save is a new file that is renamed over the old; a directory in its place is not."""
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path))
    make_volume(tmp_path / "state", "data")
    with open_volume(tmp_path, uuid=load_state(tmp_path / "state").uuid) as volume:
        old = Fid(0)
        for name in (b"plan", b"old"):
            fid = volume.volume.new_fid()
            volume.volume.commit(Mkdir(fid, ROOT_FID, name, 0o40755, 0, 0, None, None), _WHO)
        docs = fid
        for number in range(200):
            fid = volume.volume.new_fid()
            volume.volume.commit(Create(fid, docs, b".tmp", 0o100644, 0, 0, 0, None), _WHO)
            volume.volume.commit(Write(fid, 0, None), _WHO, b"%d" % number)
            volume.volume.commit(Rename(fid, docs, b".tmp", docs, b"text", 0, old), _WHO)
            old = fid
        other = volume.volume.new_fid()
        volume.volume.commit(Create(other, ROOT_FID, b"x", 0o100644, 0, 0, 0, None), _WHO)
        volume.volume.commit(Rename(docs, ROOT_FID, b"old", ROOT_FID, b"new", 0, Fid(0)), _WHO)
    source = open_source("data")
    for path in ("old/text", "new"):
        scans = Scans()
        found = _read(source, source.criteria(paths=[path]))
        assert _shown(source, path, scans) == found
        assert len(found) >= (200 if path == "old/text" else 1)
        by_index = [one is not None for one in scans._candidates.values()]
        assert by_index[0] is False  # the newest segment, where the directory was moved
        assert path == "new" or (all(by_index[1:]) and len(by_index) > 1)
