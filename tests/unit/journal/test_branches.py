"""Branches: what a lost history had is kept once, read back, bounded, and gone when it is
dropped."""

import itertools
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from fusejournal.errors import FusejournalError, UnknownBranchError
from fusejournal.journal.branches import (
    Branch,
    BranchLimits,
    drop_branch,
    find_branch,
    list_branches,
    make_branch,
    occupied_by_branches,
    tend_branches,
)
from fusejournal.journal.cut_back import cut_back
from fusejournal.journal.reader import END, JournalReader
from fusejournal.journal.segment import list_segments
from fusejournal.types import Epoch, Position, Seq
from tests.support.losses import Died, dying_at
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount

_NO_LIMITS = BranchLimits(1 << 62, 1e9)


def _position(state: Path, seq: int) -> Position:
    ((_, frame),) = JournalReader(state / "journal").frames(Seq(seq), Seq(seq + 1))
    return Position(Epoch(1), Seq(seq), frame.checksum)


def _volume(directory: Path, *, compress: bool = False, start: int = 0) -> Path:
    """A stopped volume with many segments; its state directory."""
    with open_volume(directory) as volume:
        volume.work(100, start)
        journal = volume.volume.journal
        journal.sync()
        for path in journal.sealed.compressible()[:-1] if compress else ():
            journal.sealed.compress(path)
    return directory / "state"


def _keep(state: Path, seq: int) -> Branch:
    """Keep what comes after entry *seq* as a branch, and cut the journal back."""
    reader = JournalReader(state / "journal")
    head_seq, _ = reader.head()
    assert reader.segments()
    (uuid,) = {reader.uuid}
    assert uuid is not None
    parted = _position(state, seq)
    branch = make_branch(state, uuid, parted, _position(state, head_seq), "east", "2/0abc")
    cut_back(state / "journal", parted)
    return branch


def _frames(reader: JournalReader, from_seq: int = 1) -> list[bytes]:
    return [bytes(frame.content) for _, frame in reader.frames(Seq(from_seq), END)]


@pytest.mark.parametrize(
    "spoilt", ["", "[]", '{"format": 9}', '{"format": 1, "parted": "x"}', None]
)
def test_one_that_cannot_be_understood_is_named_and_the_others_are_there(
    tmp_path: Path, spoilt: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    state = _volume(tmp_path / "one")
    head_seq, _ = JournalReader(state / "journal").head()
    bad, good = _keep(state, head_seq - 3), _keep(state, head_seq - 9)
    page = bad.directory / "branch.json"
    page.unlink() if spoilt is None else page.write_text(spoilt)
    lines = list[str]()
    assert list_branches(state, lines.append) == [good]
    assert [line.startswith(f"branch {bad.name} is left out: {bad.directory}") for line in lines]
    assert f"'fusejournal log {bad.directory}'" in lines[0] or "another version" in lines[0]
    another = _keep(state, head_seq - 20)  # as a rejoin does
    assert [branch.name for branch in list_branches(state)] == [good.name, another.name]
    assert tend_branches(state, _NO_LIMITS, 60.0) == []
    assert bad.directory.is_dir()
    with pytest.raises(FusejournalError):
        find_branch(state, bad.name)
    caplog.clear()


@pytest.mark.parametrize("compress", [False, True])
def test_nothing_is_lost_between_journal_and_branch(tmp_path: Path, compress: bool) -> None:
    state = _volume(tmp_path / "one", compress=compress)
    before = _frames(JournalReader(state / "journal"))
    starts = [int(path.stem) for path in list_segments(state / "journal")]
    assert len(starts) > 3
    # In the midst of a segment, and right before the next begins.
    for seq in (len(before) - 3, starts[2] + 5, starts[2] - 1, 2):
        own = _frames(JournalReader(state / "journal"), seq + 1)
        branch = _keep(state, seq)
        assert _frames(branch.reader(), seq + 1) == own
        assert _frames(JournalReader(state / "journal")) == before[:seq]
        assert find_branch(state, branch.name) == branch
    # Each goes on from what an older one, or the journal, has of the time before it.
    newest = list_branches(state)[0]
    assert _frames(newest.whole_reader()) == before
    assert sum(path.stat().st_nlink for path in state.rglob("*.fj*")) == len(
        list(state.rglob("*.fj*"))
    )


def test_what_is_appended_after_a_cut_is_none_of_the_branch(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    boundary = int(list_segments(state / "journal")[2].stem) - 1
    branch = _keep(state, boundary)
    kept = {path.name: path.read_bytes() for path in branch.directory.iterdir()}
    with open(list_segments(state / "journal")[-1], "ab") as segment:
        segment.write(b"more")
    assert {path.name: path.read_bytes() for path in branch.directory.iterdir()} == kept


def test_a_branch_tells_who_and_when(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    branch = _keep(state, 20)
    entries = list(branch.reader().read(Seq(21), END))
    assert branch.uids == (1000,)
    assert branch.first_ns == entries[0].time_ns
    assert 0 < branch.entries < len(entries)  # VOIDs and CLEAN are no changes
    assert str(branch.parted) == f"1/20/{branch.parted.chain:016x}"
    assert branch.first_seq == 21


@pytest.mark.parametrize("compress", [False, True])
def test_a_kill_at_any_call(tmp_path: Path, compress: bool) -> None:
    """The next time it is whole, and once."""
    made = _volume(tmp_path / "one", compress=compress)
    for death in itertools.count(1):
        state = tmp_path / str(death)
        shutil.copytree(made / "journal", state / "journal")
        before = _frames(JournalReader(state / "journal"))
        seq = int(list_segments(state / "journal")[1].stem) + death
        parted, head = _position(state, seq), _position(state, len(before))
        with dying_at("", death) as left, suppress(Died):
            _keep(state, seq)
        if list_branches(state):
            (branch,) = list_branches(state)
            assert _frames(branch.reader(), seq + 1) == before[seq:]
            cut_back(state / "journal", parted)
        else:
            branch = make_branch(state, list_uuid(state), parted, head, "east", "2/0abc")
            cut_back(state / "journal", parted)
        assert [one.name for one in list_branches(state)] == [f"{seq + 1}-{len(before)}"]
        assert _frames(branch.reader(), seq + 1) == before[seq:]
        assert _frames(JournalReader(state / "journal")) == before[:seq]
        if left[0] > 0:
            break
    assert death > 10


def list_uuid(state: Path) -> UUID:
    """The volume's."""
    reader = JournalReader(state / "journal")
    reader.head()
    assert reader.uuid is not None
    return reader.uuid


def test_the_same_is_kept_once(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    head_seq, _ = JournalReader(state / "journal").head()
    args = list_uuid(state), _position(state, 30), _position(state, head_seq), "east", "2/0abc"
    assert make_branch(state, *args) == make_branch(state, *args)
    assert occupied_by_branches(state)[0] == 1


def test_an_unknown_name_is_told_with_those_there_are(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    with pytest.raises(UnknownBranchError, match="there is none"):
        find_branch(state, "1-2")
    branch = _keep(state, 30)
    for name in ("1-2", "../branches", "", "x"):
        with pytest.raises(UnknownBranchError, match=f"there are {branch.name}"):
            find_branch(state, name)


def test_branches_grow_old_by_the_hours_that_pass(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    branch = _keep(state, 30)
    limits = BranchLimits(1 << 62, 1.0)
    assert tend_branches(state, limits, 0.0) == []
    assert tend_branches(state, limits, 86000.0) == []
    assert find_branch(state, branch.name).age_seconds == 86000
    assert tend_branches(state, _NO_LIMITS, 0.0) == []
    (dropped,) = tend_branches(state, limits, 500.0)
    assert dropped.name == branch.name
    assert occupied_by_branches(state) == (0, 0)


def test_the_oldest_goes_first_and_the_newest_stays(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    oldest, middle, newest = (_keep(state, seq) for seq in (400, 200, 100))
    count, occupied_bytes = occupied_by_branches(state)
    assert count == 3
    assert tend_branches(state, BranchLimits(occupied_bytes, 90.0), 0.0) == []
    dropped = tend_branches(state, BranchLimits(occupied_bytes - 1, 90.0), 0.0)
    assert [one.name for one in dropped] == [oldest.name]
    assert [one.name for one in tend_branches(state, BranchLimits(0, 90.0), 0.0)] == [middle.name]
    assert [one.name for one in list_branches(state)] == [newest.name]


def test_a_drop_that_is_killed_goes_on(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    branch = _keep(state, 30)
    with dying_at("branch.drop.directory", 1), suppress(Died):
        drop_branch(branch)
    assert list_branches(state) == []
    tend_branches(state, _NO_LIMITS, 0.0)
    assert list((state / "branches").iterdir()) == []


def test_a_journal_that_is_another_is_not_cut(tmp_path: Path) -> None:
    state = _volume(tmp_path / "one")
    before = _frames(JournalReader(state / "journal"))
    for position in (
        _position(state, 50)._replace(chain=1),
        Position(Epoch(1), Seq(10**6), 1),
        Position(Epoch(1), Seq(0), 0),
    ):
        with pytest.raises(FusejournalError, match=r"has not the entry|not in the journal"):
            cut_back(state / "journal", position)
    assert _frames(JournalReader(state / "journal")) == before
